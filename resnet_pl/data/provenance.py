"""Where the images of a training run came from, as stored in its checkpoint."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule

from resnet_pl.utils import UserError


@dataclass
class Provenance:
    """The data of a training run.

    Attributes:
        root: folder of the images; None for images without one.
        classes: class names in the order of the network's outputs.
        class_names: readable class names in the same order.
        splits: image names of each split; None if the folders on disk define the splits.
        test_bytes: total size of the test images, to detect other images with the same names.
        digests: fingerprints of the images of each split, see `digests.fingerprints`, to detect training images in
            other folders; None if they were not computed.
    """

    root: str | None = None
    classes: list[str] = field(default_factory=list)
    class_names: list[str] = field(default_factory=list)
    splits: dict[str, list[str]] | None = None
    test_bytes: int | None = None
    digests: dict[str, str] | None = None

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Provenance:
        """Returns the provenance of a checkpoint; ignores keys that this version does not know."""
        return cls(**{each.name: stored[each.name] for each in fields(cls) if stored.get(each.name) is not None})

    def splits_are_in(self, names: Container[str], root: Path | None) -> bool:
        """Returns whether these are the images of the splits.

        Args:
            names: names of the available images.
            root: their folder.

        Raises:
            UserError: they are, but some are missing. Testing on the others could be testing on training images.
        """
        wanted = [name for split in (self.splits or {}).values() for name in split]
        missing = [name for name in wanted if name not in names]
        same_root = self.root is not None and root is not None and Path(self.root).resolve() == root.resolve()
        if missing and (same_root or 2 * len(missing) < len(wanted)):
            raise UserError(
                f"{root} lacks {len(missing)} of the {len(wanted)} images that the checkpoint was trained and tested "
                f"on, for example {missing[0]}\nrestore them, or use other data with --data.root"
            )
        return bool(wanted) and not missing


def provenance_of(data: Any) -> dict[str, Any] | None:
    """Returns the provenance of a data module for the checkpoint; None for data modules of other projects."""
    return data.provenance() if hasattr(data, "provenance") else None


def classes_of(data: Any) -> list[str] | None:
    """Returns the class names of any data module: its `class_names` or `classes`; None if it has none, or not yet.

    `predict` with files has no classes to compare.
    """
    if data is None or getattr(data, "predict_paths", None) is not None:
        return None
    names = getattr(data, "class_names", None) or getattr(data, "classes", None)
    return [str(name) for name in names] if isinstance(names, list | tuple) else None


def resolve_classes(
    data: LightningDataModule | None, names: list[str] | None, number: int | None, rename: bool = False
) -> tuple[list[str] | None, int | None]:
    """Returns the class names and the number of classes of a network, checked against the data.

    Args:
        data: the training or test data, if any. Its attributes `class_names` or `classes`, and `num_classes`, are used.
        names: the network's class names, if known.
        number: the network's number of classes, if given.
        rename: whether `names` may be other names for the data's classes, as at the start of a training.

    Raises:
        UserError: the data has other classes, or another number of classes.
    """
    if (data_names := classes_of(data)) is not None:
        restored = getattr(data, "restored_provenance", None)
        rename = rename or (restored is not None and data_names == restored.class_names)  # as in the training
        if names is not None and list(names) != data_names and not (rename and len(names) == len(data_names)):
            raise UserError(
                f"{describe(data)} has the {len(data_names)} classes {_join(data_names)}, but the network was trained "
                f"on the {len(names)} classes {_join(names)}\nuse data with the same classes, or train a new network"
            )
        names = data_names if names is None else names
    if names and number not in (None, len(names)):
        raise UserError(
            f"model.num_classes is {number}, but the data has {len(names)} classes\n"
            "remove model.num_classes: it is taken from the data"
        )
    return names, len(names) if names else number or getattr(data, "num_classes", None)


def resolve_multi_label(data: Any, trained: bool | None) -> bool:
    """Returns whether an image can have several classes, checked against the data.

    Args:
        data: the training or test data, if any; its attribute `multi_label` is used.
        trained: what is known of the network.

    Raises:
        UserError: the data differs from the network.
    """
    found = getattr(data, "multi_label", None)
    if found is not None and trained is not None and found != trained:
        one, several = "one label per image", "several labels per image"
        raise UserError(
            f"{describe(data)} has {several if found else one}, but the network is for {several if trained else one}\n"
            "use other data, or train a new network without model.multi_label: it is read from the data"
        )
    return bool(found or trained)


def describe(data: Any) -> str:
    """Returns a short description of any data module, for messages and reports."""
    return data.describe() if hasattr(data, "describe") else type(data).__name__


def _join(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (", …" if len(names) > 6 else "")
