"""Which classes a net tells apart: those of its data, or of the data that it was trained on."""

from __future__ import annotations

from collections.abc import Sequence

from resnet_pl.data.base import ImageDataModule
from resnet_pl.utils import UserError


def names_of(data: ImageDataModule, own: Sequence[str] | None, renamed: bool) -> list[str]:
    """The names of a net's classes.

    Args:
        data: what it is trained or tested on.
        own: the names it has, if any.
        renamed: whether these may be other names for the data's classes.

    Raises:
        UserError: the data has other classes.
    """
    names = list(data.class_names)
    if own is None or list(own) == names or (renamed and len(own) == len(names)):
        return names if own is None else list(own)
    raise UserError(
        f"{data.describe()} has the {len(names)} classes {_few(names)}, but the net was trained on the {len(own)} "
        f"classes {_few(own)}\n"
        "give data with the same classes, or train a new net"
    )


def count_classes(names: Sequence[str] | None, number: int | None) -> int:
    """How many classes there are by their names, by the number that is given, or both; raises UserError."""
    if names and number and len(names) != number:
        raise UserError(
            f"model.num_classes is {number}, but the data has {len(names)} classes\n"
            "leave model.num_classes out: it is taken from the data"
        )
    return number or len(names or ())


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (", …" if len(names) > 6 else "")
