"""Types of constructor arguments that jsonargparse and type checkers read differently."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import Unpack

    NonNegativeFloat = PositiveFloat = UnitInterval = float
    NonNegativeInt = PositiveInt = int
else:
    # Numbers with a range, checked by jsonargparse and shown in --help.
    from jsonargparse.typing import (
        NonNegativeFloat,
        NonNegativeInt,
        PositiveFloat,
        PositiveInt,
        restricted_number_type,
    )

    UnitInterval = restricted_number_type(
        "UnitInterval", float, [(">=", 0), ("<", 1)], docstring="Float from 0 up to, not including, 1"
    )

    class Unpack:
        """`typing.Unpack` for type checkers, `Any` at run time.

        From typing's own, jsonargparse would take the arguments of `**kwargs: Unpack[Args]` without their defaults and
        help. Without it, jsonargparse follows `super().__init__(**kwargs)` and finds both there.
        """

        def __class_getitem__(cls, arguments: object) -> Any:
            return Any


__all__ = ["NonNegativeFloat", "NonNegativeInt", "PositiveFloat", "PositiveInt", "UnitInterval", "Unpack"]
