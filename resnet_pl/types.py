"""Numbers with a range, checked by jsonargparse and shown in --help; plain int or float to type checkers."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    NonNegativeFloat = PositiveFloat = UnitInterval = float
    NonNegativeInt = PositiveInt = int
else:
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

__all__ = ["NonNegativeFloat", "NonNegativeInt", "PositiveFloat", "PositiveInt", "UnitInterval"]
