"""The splits of a checkpoint that is resumed or evaluated: the same images, and no test on training images."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from resnet_pl.data.digests import fingerprints, readable, split_fingerprints
from resnet_pl.data.layout import Listing, label_names
from resnet_pl.data.provenance import Provenance
from resnet_pl.utils import UserError, rank_zero_print

# The splits that a stage cannot do without.
NEEDED = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("test",),
    "calibrate": ("val", "test"),
    "report": ("val", "test"),
    "export": ("test",),
    "probe": ("train",),
}


class RestoredSplits:
    """Finds the images of a checkpoint's splits in a folder.

    Args:
        restored: what the checkpoint knows of its data.
        root: the folder.
        source: what defines the images, see `ImageFolder.source`.
        stage: the subcommand, such as `fit` or `test`; only its splits have to be complete.
        skip: whether missing images are skipped, as unreadable ones are.
    """

    def __init__(self, restored: Provenance, root: Path, source: Path, stage: str, skip: bool) -> None:
        self.restored, self.root, self.source, self.skip = restored, root, source, skip
        self.needed = NEEDED.get(stage, ())
        self.is_evaluation = stage != "fit"

    # ------------------------------------------------------------------------------------ the training data
    def find(self, images: Mapping[str, str]) -> dict[str, Listing] | None:
        """Returns the stored splits; None if the images are not those of the training.

        Args:
            images: the images in the folder and their classes.

        Raises:
            UserError: images of a needed split are missing.
        """
        stored = self.restored.splits
        if not stored or not any(stored.values()):
            return None
        missing = {split: [name for name in names if name not in images] for split, names in stored.items()}
        if not self._is_training_folder() and not self._has_the_images(images, missing):
            return None
        removed = self._removed(missing)
        self._check_missing(missing)
        self._note_added(images)
        some_class = next(iter(images.values()), self.restored.classes[0])
        return {
            split: {n: images[n] if n in images else self._class_of(n, some_class) for n in names if n not in removed}
            for split, names in stored.items()
        }

    def _removed(self, missing: Mapping[str, list[str]]) -> set[str]:
        """Returns the images that exist but have no class any more: a table without their rows.

        Raises:
            UserError: a training would need their classes.
        """
        removed = {name for names in missing.values() for name in names if (self.root / name).is_file()}
        if removed and not self.is_evaluation:
            raise UserError(
                f"{self.source} lacks {len(removed):,} images of the checkpoint that are in {self.root}, for example "
                f"{min(removed)}: a resumed run trains on the same images\n"
                "restore them, or start a new run from these weights with --model.weights"
            )
        return removed

    def _is_training_folder(self) -> bool:
        root = self.restored.root
        return root is not None and Path(root).resolve() == self.source.resolve()

    def _has_the_images(self, images: Mapping[str, str], missing: Mapping[str, list[str]]) -> bool:
        """Whether most of the names exist and are the same images: cameras number the photos of all users alike."""
        stored = self.restored.splits or {}
        if 2 * sum(map(len, missing.values())) >= sum(map(len, stored.values())):
            return False
        digests = self.restored.digests
        if digests is None:  # an earlier version stored only the total size
            split = "test" if stored.get("test") else "val"
            known = [name for name in stored.get(split, ()) if name in images]
            return bool(missing.get(split)) or self.restored.test_bytes in (None, total_bytes(self.root, known))
        # Without a test set, test is val and has no digests of its own.
        split = next(split for split in ("test", "val", "train") if digests.get(split))
        known = [name for name in stored.get(split, ()) if name in images]
        before = dict(zip(stored.get(split, ()), split_fingerprints(digests[split]), strict=True))
        now = split_fingerprints(fingerprints([self.root / name for name in known]))
        return 2 * sum(before[name] == each for name, each in zip(known, now, strict=True)) >= len(known)

    def _check_missing(self, missing: Mapping[str, list[str]]) -> None:
        stored = self.restored.splits or {}
        for split in self.needed:
            lacking, total = missing.get(split, []), len(stored.get(split, ()))
            if lacking and (not self.skip or len(lacking) == total):
                fix = "use other data with --data.root"
                if len(lacking) < total:
                    fix = "continue without them: --data.on_bad_image skip"
                raise UserError(
                    f"{self.root} lacks {len(lacking):,} of the {total:,} {split} images of the checkpoint, "
                    f"for example {lacking[0]}\nrestore them, or {fix}"
                )
        if lacking := [name for names in missing.values() for name in names]:
            rank_zero_print(f"note: missing images of the checkpoint: {len(lacking):,}, for example {lacking[0]}")

    def _note_added(self, images: Mapping[str, str]) -> None:
        stored = {name for names in (self.restored.splits or {}).values() for name in names}
        added = [name for name in images if name not in stored]
        if added:
            classes = sorted(_classes_of(images[name] for name in added) - set(self.restored.classes))
            new = f"; new classes: {', '.join(classes[:5])}" if classes else ""
            rank_zero_print(f"note: images added since the checkpoint, not used: {len(added):,}{new}")

    def _class_of(self, name: str, fallback: Any) -> Any:
        """The class of a missing image, from its path. It is not read, but keeps its place in the order of an epoch."""
        if not isinstance(fallback, str):  # of data with several classes per image
            return fallback
        return next((part for part in reversed(Path(name).parts[:-1]) if part in self.restored.classes), fallback)

    # ------------------------------------------------------------------------------------ split folders
    def check_split_folders(self, splits: dict[str, Listing]) -> dict[str, Listing]:
        """Returns the images of train/, val/ and test/ folders, without classes that the checkpoint does not know."""
        known = set(self.restored.classes)
        for split, listing in splits.items():
            if split == "test" or listing is splits.get("test"):
                continue  # an error: the test would be incomplete
            if unknown := {name for name, each in listing.items() if not _classes_of([each]) <= known}:
                new = ", ".join(sorted(_classes_of(listing[name] for name in unknown) - known)[:5])
                rank_zero_print(f"note: {len(unknown):,} {split} images are not used: the network has no class {new}")
                splits[split] = {name: each for name, each in listing.items() if name not in unknown}
            before = len(split_fingerprints((self.restored.digests or {}).get(split, "")))
            if not self.is_evaluation and before not in (0, len(splits[split])):
                rank_zero_print(
                    f"note: the {split} split had {before:,} images when the checkpoint was saved and has "
                    f"{len(splits[split]):,} now; the resumed run differs from an uninterrupted one"
                )
        return splits

    # ------------------------------------------------------------------------------------ other data
    def without_trained(self, listing: Listing, split: str, also_val: bool) -> tuple[Listing, int]:
        """Returns the images of an evaluation that are not training images, and how many are excluded.

        Args:
            listing: the images.
            split: the split that they are evaluated as. The same split of the checkpoint is returned unchanged.
            also_val: whether the validation images of the training are excluded too.

        Raises:
            UserError: all are training images.
        """
        digests = self.restored.digests
        unchanged = split == "test" and self.restored.test_bytes == total_bytes(self.root, listing)
        if not self.is_evaluation or split not in self.needed or unchanged or not listing:
            return listing, 0
        if digests is None:
            if also_val:
                rank_zero_print(
                    "note: the checkpoint has no hashes: whether it was trained on these images is not checked"
                )
            return listing, 0
        trained = "".join(digests.get(each, "") for each in (("train", "val") if also_val else ("train",)))
        now = split_fingerprints(fingerprints([self.root / name for name in listing]))
        if not also_val and now == split_fingerprints(digests.get(split, "")):
            return listing, 0
        known = readable(split_fingerprints(trained))
        kept = {name: listing[name] for name, each in zip(listing, now, strict=True) if each not in known}
        return kept, self._report(listing, kept)

    def _report(self, listing: Listing, kept: Collection[str]) -> int:
        left_out = [name for name in listing if name not in kept]
        if not kept:
            raise UserError(
                f"all {len(listing):,} images in {self.root} were used in the training of the checkpoint\n"
                "use other images with --data.root"
            )
        if left_out:
            rank_zero_print(
                f"note: {len(left_out):,} of {len(listing):,} images are excluded, for example {left_out[0]}: "
                "they were used in the training of the checkpoint"
            )
        return len(left_out)


def _classes_of(labels: Iterable[Any]) -> set[str]:
    """The class names of labels; the label of an image with several classes is a tuple."""
    return {name for label in labels for name in label_names(label)}


def total_bytes(root: Path, names: Collection[str]) -> int:
    """Returns the total size of files; a dangling link has no size, and is reported when it is read."""
    return sum(path.stat().st_size for name in names if (path := root / name).exists())
