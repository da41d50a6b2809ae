"""Where the images of a training run came from, as its checkpoint tells."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from resnet_pl.utils import UserError

if TYPE_CHECKING:
    from resnet_pl.data.base import ImageDataModule


@dataclass
class Provenance:
    """What a checkpoint keeps of its data; empty without a checkpoint.

    Attributes:
        root: folder of the images.
        classes: in the order of the net's outputs.
        class_names: a name for each class that a person understands.
        splits: names of the images in each split; None where the folders on disk say it.
        test_bytes: size of the test images together, by which other images of the same names are told apart.
    """

    root: str | None = None
    classes: list[str] | None = None
    class_names: list[str] | None = None
    splits: dict[str, list[str]] | None = None
    test_bytes: int | None = None

    def __bool__(self) -> bool:
        return self.classes is not None

    def splits_are_in(self, names: Container[str], root: Path | None) -> bool:
        """Whether the splits are made of these images.

        Args:
            names: the images there are.
            root: folder they lie in.

        Raises:
            UserError: they are, but some are missing; a test on what is left could be one on training images.
        """
        wanted = [name for part in (self.splits or {}).values() for name in part]
        missing = [name for name in wanted if name not in names]
        same_place = self.root is not None and root is not None and Path(self.root).resolve() == root.resolve()
        if missing and (same_place or 2 * len(missing) < len(wanted)):
            raise UserError(
                f"{root} lacks {len(missing)} of the {len(wanted)} images that the checkpoint was trained and tested "
                f"on, the first is {missing[0]}\nput them back, or name other data with --data.root"
            )
        return bool(wanted) and not missing


def resolve_classes(
    data: ImageDataModule | None, names: list[str] | None, number: int | None, rename: bool = False
) -> tuple[list[str] | None, int | None]:
    """Names and number of a network's classes, checked against those of the data that it is trained or tested on.

    Args:
        data: the data, if any; files that `predict` was given have no classes to compare.
        names: the network's, if it has any yet.
        number: of the network's classes, if it was given.
        rename: whether the names may be other names for the data's classes.

    Raises:
        UserError: the data has other classes, or another number of them.
    """
    if data is not None and data.predict_paths is None:
        own = list(data.class_names)
        if names is not None and list(names) != own and not (rename and len(names) == len(own)):
            raise UserError(
                f"{data.describe()} has the {len(own)} classes {_few(own)}, but the network was trained on the "
                f"{len(names)} classes {_few(names)}\nuse data with the same classes, or train a new network"
            )
        names = own if names is None else names
    if names and number not in (None, len(names)):
        raise UserError(
            f"model.num_classes is {number}, but the data has {len(names)} classes\n"
            "remove model.num_classes: it is taken from the data"
        )
    return names, len(names) if names else number


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (", …" if len(names) > 6 else "")
