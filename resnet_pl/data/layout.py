"""How a folder of photos is read: class folders, split folders above or below them, and what is not read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from resnet_pl.data.class_folders import class_folders, has_results
from resnet_pl.data.image_files import NEEDS_PLUGIN, is_image_name, walk_files
from resnet_pl.utils import UserError, counted

# Names of split folders in lower case, those that Hugging Face datasets recognizes.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "validate", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
# Words and signs that are not part of the name of a split: train_set, Training Data, test-images.
_FILLER = re.compile(r"[\W_\d]+|(?:data)?sets?(?![a-z])|data(?![a-z])|images?(?![a-z])|imgs?(?![a-z])|split(?![a-z])")
_SYSTEM_FILES = {"thumbs.db", "desktop.ini"}
_MAX_DEPTH, _MAX_KINDS = 3, 6

Listing = dict[str, Any]  # image path relative to the root -> class, or a tuple of classes


def label_names(label: str | tuple[str, ...]) -> tuple[str, ...]:
    """Returns the class names of a label."""
    return (label,) if isinstance(label, str) else label


@dataclass
class Layout:
    """The images of a folder.

    Attributes:
        splits: images of `train`, `val` and `test`, or of `all` in a folder without splits.
        description: what the folder was read as, in a few words.
        notes: what is not read and why, one line each.
    """

    splits: dict[str, Listing]
    description: str
    notes: list[str] = field(default_factory=list)


def split_name(word: str) -> str | None:
    """Returns `train`, `val` or `test` for the usual names of a split in any case, such as Training; else None."""
    plain = _FILLER.sub("", word.lower())
    return next((split for split, names in SPLIT_NAMES.items() if plain in names), None)


def read_layout(root: Path, classes: Collection[str] = ()) -> Layout:
    """Finds the images and splits of a folder.

    ROOT/CLASS/*, ROOT/SPLIT/CLASS/* and ROOT/CLASS/SPLIT/* are read, also in a folder in ROOT, as archives unpack.

    Args:
        root: the folder.
        classes: the classes of a checkpoint, if one is evaluated or resumed; a folder may then lack some.

    Raises:
        UserError: there are no class folders, a class has no images, or the class folders look like splits.
    """
    return _Reader(root, classes).read()


class _Reader:
    def __init__(self, root: Path, classes: Collection[str]) -> None:
        self.root, self.classes = root, classes
        self.unread: Counter[str] = Counter()  # files that are not images, by extension
        self.notes: list[str] = []
        self.class_folders = cache(class_folders)

    def read(self) -> Layout:
        """Reads the folder."""
        base = self._find_base()
        if folders := self._split_folders(base):
            splits = self._read_splits(folders)
            description = ", ".join(
                f"{split} = {self._name(folder)}" for split, folder in folders.items() if split in splits
            )
        else:
            images = self._list_classes(base)
            by_class = self._splits_below(images, base)
            if not by_class:
                self._check_subfolders(base, images)
            splits = by_class or {"all": images}
            place = "" if base == self.root else f" in {self._name(base)}"
            description = f"class folders{place}" + (f" that contain {', '.join(by_class)}" if by_class else "")
        read = [*dict.fromkeys([self.root, base, *(folders[split] for split in splits if split in folders)])]
        return Layout(splits, description, [*self.notes, *self._output_notes(read), *self._unread_note(read)])

    def _name(self, folder: Path) -> str:
        return f"{folder.relative_to(self.root).as_posix()}/"

    def _find_base(self) -> Path:
        """The folder of the class or split folders; an archive often has another folder above them."""
        base = self.root
        for _ in range(_MAX_DEPTH):
            # Two of them are enough to know.
            holding = list(islice((folder for folder in self.class_folders(base) if _has(folder, images=True)), 2))
            if len(holding) != 1 or split_name(holding[0].name) or holding[0].name in self.classes:
                break
            # An empty folder is a class without images, which is reported.
            others = [folder for folder in self.class_folders(base) if folder != holding[0]]
            has_own_images = any(map(_is_image, holding[0].iterdir()))
            if not self.class_folders(holding[0]) or has_own_images or not all(map(_has, others)):
                break
            base = holding[0]
        return base

    def _split_folders(self, base: Path) -> dict[str, Path]:
        """The folder of each split; empty if the folder has none."""
        named = [(split, folder) for folder in self.class_folders(base) if (split := split_name(folder.name))]
        others = [folder for folder in self.class_folders(base) if not split_name(folder.name)]
        # A class may be called train or test, but the folder of a split contains class folders.
        if not named or (others and not any(self.class_folders(folder) for _, folder in named)):
            return {}
        folders: dict[str, Path] = {}
        for split, folder in named:
            if split in folders:
                raise UserError(
                    f"{base} has two folders for the {split} split: {folders[split].name}/ and {folder.name}/\n"
                    "put their images into one of them"
                )
            folders[split] = folder
        self._check_others([folder for folder in others if _has(folder, images=True)], base, folders)
        return {split: folders[split] for split in SPLIT_NAMES if split in folders}

    def _check_others(self, others: list[Path], base: Path, folders: Mapping[str, Path]) -> None:
        """Refuses folders next to the splits that are splits of other names; notes all others."""
        classes = {path.name for folder in folders.values() for path in self.class_folders(folder)}
        similar = [folder for folder in others if classes & {path.name for path in self.class_folders(folder)}]
        found = ", ".join(f"{folder.name}/" for folder in folders.values())
        if similar or (others and len(folders) == 1 and "train" in folders):
            other = (similar or others)[0].name
            raise UserError(
                f"{base} has {found} and {other}/: a split of another name, or a class?\n"
                f"rename {other}/ to train, val or test if it is a split; else rename or move it"
            )
        if others:
            names = _join([f"{folder.name}/" for folder in others])
            self.notes.append(f"{names} next to {found} {'is' if len(others) == 1 else 'are'} not read")

    def _read_splits(self, folders: Mapping[str, Path]) -> dict[str, Listing]:
        train = folders.get("train")
        known = set(self.classes) or {path.name for path in (self.class_folders(train) if train else ())}
        splits, unlabeled = {}, {}
        for split, folder in folders.items():
            names = {path.name for path in self.class_folders(folder)}
            # test/unknown/* or test/test/*, as other programs need it.
            if split != "train" and (not names or (len(names) == 1 and known and not names & known)):
                unlabeled[split] = folder
            else:
                splits[split] = self._list_classes(folder)
                self._check_subfolders(folder, splits[split])
        if not splits:
            self._list_classes(next(iter(folders.values())))  # raises the error
        for folder in unlabeled.values():
            count = sum(map(_is_image, walk_files(folder)))
            self.notes.append(
                f"{self._name(folder)} has no folder of a class: its {count:,} images have no labels and are not used; "
                f"predict --images {folder} classifies them"
            )
        return splits

    def _list_classes(self, folder: Path) -> Listing:
        """Lists all images below the class folders of a folder."""
        folders = self.class_folders(folder)
        if not folders:
            raise UserError(f"{folder} has no class folders\nput the images of each class in their own folder there")
        listing: Listing = {}
        for path in folders:
            images, others = _partition(path)
            self.unread += others
            if not images and not self.classes:
                found = f", but {_count_kinds(others)}{_plugin_hint(others)}" if others else ""
                raise UserError(f"class folder {path} has no images{found}\nadd images or remove the folder")
            listing |= {image.relative_to(self.root).as_posix(): path.name for image in images}
        return listing

    def _parts(self, name: str, folder: Path) -> list[str]:
        """The parts of an image's path below a folder: its class folder, subfolders, file name."""
        prefix = folder.relative_to(self.root).as_posix()
        return name.removeprefix("" if folder == self.root else f"{prefix}/").split("/")

    def _check_subfolders(self, folder: Path, listing: Listing) -> None:
        """Refuses class folders that all contain images in the same subfolders: they are probably splits."""
        subfolders: dict[str, set[str]] = {}
        for name, class_name in listing.items():
            parts = self._parts(name, folder)
            subfolders.setdefault(class_name, set()).update(parts[1:2] if len(parts) > 2 else ())
        same = set.intersection(*subfolders.values()) if len(subfolders) > 1 else set()
        if len(same) > 1 and not self.classes:
            raise UserError(
                f"the class folders {_join(subfolders)} in {folder} all contain {_join(sorted(same))}\n"
                "rename splits to train, val and test, or put the images of a class directly into its folder"
            )

    def _splits_below(self, listing: Listing, base: Path) -> dict[str, Listing]:
        """The splits of ROOT/CLASS/SPLIT/*; empty if an image is not in the folder of a split."""
        splits: dict[str, Listing] = {}
        for name, class_name in listing.items():
            parts = self._parts(name, base)
            split = split_name(parts[1]) if len(parts) > 2 else None
            if split is None:
                return {}
            splits.setdefault(split, {})[name] = class_name
        return {split: splits[split] for split in SPLIT_NAMES if split in splits} if "train" in splits else {}

    def _output_notes(self, folders: Iterable[Path]) -> list[str]:
        outputs = [path for folder in folders for path in folder.iterdir() if path.is_dir() and has_results(path)]
        return [f"{self._name(path)} contains the output of a command and is not read" for path in outputs]

    def _unread_note(self, folders: Iterable[Path]) -> list[str]:
        """A note on the files in the class folders that are not images, and on images directly in `folders`."""
        loose = sum(_is_image(path) for folder in folders for path in folder.iterdir())
        parts = [f"{_count_kinds(self.unread)} in the class folders"] if self.unread else []
        parts += [f"{counted(loose, 'image')} outside the class folders"] if loose else []
        return [f"not read: {' and '.join(parts)}{_plugin_hint(self.unread)}"] if parts else []


def _is_image(path: Path) -> bool:
    return is_image_name(path.name)


def _has(folder: Path, images: bool = False) -> bool:
    """Whether there is any file below a folder, or any image, also of a format whose plugin is missing."""
    return any(not images or _is_image(file) or _kind(file) in NEEDS_PLUGIN for file in walk_files(folder))


def _partition(folder: Path) -> tuple[list[Path], Counter[str]]:
    """The images below a folder, and the number of its other files by extension."""
    images, others = [], Counter()
    for file in walk_files(folder):
        if _is_image(file):
            images.append(file)
        elif file.name.lower() not in _SYSTEM_FILES:
            others[_kind(file)] += 1
    return images, others


def _plugin_hint(kinds: Collection[str]) -> str:
    needed = sorted(NEEDS_PLUGIN.intersection(kinds))
    return f"; to read {needed[0]}: pip install pillow-heif" if needed else ""


def _join(names: Iterable[str]) -> str:
    first = list(names)
    return ", ".join(first[:4]) + (" …" if len(first) > 4 else "")


def _kind(path: Path) -> str:
    return path.suffix.lower()


def _count_kinds(kinds: Mapping[str, int]) -> str:
    """Counts of files by extension: "12 .heic, 1 without extension"."""
    most = sorted(kinds.items(), key=lambda kind: (-kind[1], kind[0]))
    shown = ", ".join(f"{count:,} {kind or 'without extension'}" for kind, count in most[:_MAX_KINDS])
    return shown + (" …" if len(most) > _MAX_KINDS else "")
