"""Datasets of Hugging Face, written to image files once."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from typing_extensions import override

from resnet_pl.data.cache import default_folder, short_hash, stat_key
from resnet_pl.data.image_table import ImageTable
from resnet_pl.data.layout import split_name
from resnet_pl.data.typed_kwargs import ImageFolderArgs
from resnet_pl.types import PositiveInt, Unpack
from resnet_pl.utils import UserError, atomic_write, lock, rank_zero_print, require


class HFDataset(ImageTable):
    """A dataset of Hugging Face with a column of images and one of labels; needs `pip install datasets`.

    Before the first run, images are written unchanged to files, with a table of their labels and splits. Therefore they
    are decoded as all others, and the cache, resume and tests work as with a folder.

    Args:
        dataset: name on the Hugging Face Hub, or a local folder: of `save_to_disk`, or one that `load_dataset` reads.
        subset: configuration of the dataset, if it has several.
        revision: commit or tag on the Hub; by default the newest one at the time when the images are written.
        image_column: column of the images.
        label_column: column of the classes.
        group_column: column that identifies the patient, video or burst; images of a group are never held out from
            each other.
        root: folder in which the folder of the image files is created; null uses $XDG_CACHE_HOME/resnet_pl or
            ~/.cache/resnet_pl.
    """

    def __init__(
        self,
        dataset: str = "cifar10",
        subset: str | None = None,
        revision: str | None = None,
        image_column: str = "image",
        label_column: str = "label",
        group_column: str | None = None,
        root: str | None = None,
        batch_size: PositiveInt = 64,
        **kwargs: Unpack[ImageFolderArgs],
    ) -> None:
        state = _local_state(Path(dataset)) or dataset  # on the Hub, datasets of two users can have the same name
        key = short_hash(subset, revision, image_column, label_column, group_column, state)
        # One folder for each dataset and choice of columns: they must not be mixed up.
        folder = (Path(root) if root else default_folder() / "hf") / f"{Path(dataset).name}-{key}"
        super().__init__(
            labels=str(folder / "labels.csv"),
            root=str(folder),
            path_column="path",
            label_column="label",
            split_column="split",
            group_column="group" if group_column else "",
            label_separator=None,
            label_columns=None,
            column_names=None,
            delimiter=",",
            path_suffix="",
            batch_size=batch_size,
            **kwargs,
        )
        self.dataset, self.subset, self.revision = dataset, subset, revision
        self.names = {"image": image_column, "label": label_column, "group": group_column}

    @override
    def describe(self) -> str:
        return f"{type(self).__name__} {self.dataset}"

    @override
    def prepare_data(self) -> None:
        """Loads the dataset and writes its images, if this was not done before, unless other files are predicted."""
        if self.predict_paths is not None or self.labels.is_file():
            return
        with lock(self.root.with_name(f"{self.root.name}.lock"), f"the images of {self.dataset}", "writes"):
            if not self.labels.is_file():
                print(f"writing the images of {self.dataset} to {self.root}", flush=True)
                rows = [row for split, images in self._load().items() for row in self._write(split, images)]
                # Written last: if it exists, all images do.
                with atomic_write(self.labels) as partial, partial.open("w", newline="", encoding="utf-8") as file:
                    csv.writer(file).writerows([("path", "label", "split", "group"), *rows])

    def _load(self) -> dict[str, Any]:
        """The splits of the dataset, by `train`, `val` and `test`."""
        datasets = require("datasets", "hf", "HFDataset")
        path = Path(self.dataset)
        saved = (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()
        try:
            if saved:
                found = datasets.load_from_disk(self.dataset)
            else:
                found = datasets.load_dataset(self.dataset, self.subset, revision=self.revision)
        except Exception as error:  # of many types, also of other libraries
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            fix = "pass the name of a dataset, or the folder of one, with --data.dataset"
            raise UserError(f"data.dataset: {self.dataset} cannot be loaded: {reason}\n{fix}") from error
        if not isinstance(found, Mapping):
            found = {"train": found}
        names: dict[str, str] = {}
        for name in found:
            if (split := split_name(name)) and names.setdefault(split, name) != name:
                raise UserError(
                    f"data.dataset: {self.dataset} has two {split} splits: {names[split]} and {name}\n"
                    "join them with concatenate_datasets, and pass the folder of save_to_disk"
                )
        known = {split: found[name] for split, name in names.items()}
        if unknown := [name for name in found if not split_name(name)]:
            rank_zero_print(f"note: splits of {self.dataset} that are not used: {', '.join(unknown)}")
        if "train" not in known:
            raise UserError(f"data.dataset: {self.dataset} has no train split\nits splits are {', '.join(found)}")
        columns = known["train"].features
        for kind, name in self.names.items():
            if name and name not in columns:
                raise UserError(
                    f"data.{kind}_column: {self.dataset} has no column {name}\nits columns are {', '.join(columns)}"
                )
        if type(columns[self.names["image"]]).__name__ != "Image":
            raise UserError(f"data.image_column: {self.names['image']} of {self.dataset} does not contain images\n"
                            f"its columns are {', '.join(columns)}")  # fmt: skip
        cast = datasets.Image(decode=False)
        return {split: images.cast_column(self.names["image"], cast) for split, images in known.items()}

    def _write(self, split: str, images: Any) -> Iterator[tuple[str, str, str, str]]:
        """Writes the images of a split; yields path, label, split and group."""
        feature = images.features[self.names["label"]]
        unlabeled = 0
        (self.root / split).mkdir(parents=True, exist_ok=True)
        for index, row in enumerate(images):
            label = row[self.names["label"]]
            if label is None or (hasattr(feature, "int2str") and label < 0):
                unlabeled += 1
                continue
            if isinstance(label, list | dict):
                raise UserError(f"data.label_column: the labels of {self.dataset} are lists\nuse one label per image")
            image = row[self.names["image"]]
            data = image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
            path = f"{split}/{index:07d}{_extension(data)}"
            (self.root / path).write_bytes(data)
            text = feature.int2str(label) if hasattr(feature, "int2str") else str(label)
            group = row[self.names["group"]] if self.names["group"] else None
            yield path, text, split, "" if group is None else str(group)
        if unlabeled:
            rank_zero_print(f"note: {unlabeled:,} {split} images of {self.dataset} without a label are not used")


def _extension(data: bytes) -> str:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return f".{(image.format or 'jpg').lower()}"
    except Exception:  # damaged: reported when it is read
        return ".jpg"


def _local_state(folder: Path) -> list[Any]:
    """Names, sizes and times of a local dataset's files; empty for one of the Hub."""
    return [(path.as_posix(), stat_key(path)) for path in sorted(folder.rglob("*")) if path.is_file()]
