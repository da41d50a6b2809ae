"""Image folders: one folder per class, with or without train, val and test folders above."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from typing_extensions import override

from resnet_pl.data.bad_images import bad_images_error, check_bad_fraction, log_bad_image
from resnet_pl.data.base import ImageDataModule
from resnet_pl.data.batch_transforms import BatchTransform, PCAColor, RandomFlip
from resnet_pl.data.cache import open_cache
from resnet_pl.data.crops import Crop, ResizeCenterCrop, ScaleCrop
from resnet_pl.data.dataset import ImageFileDataset
from resnet_pl.data.decode import RGB, PixelFormat, verify_images
from resnet_pl.data.defaults import build_default
from resnet_pl.data.digests import content_digests, describe_copies, fingerprints
from resnet_pl.data.group_splits import describe_groups, match_groups
from resnet_pl.data.layout import Layout, Listing, label_names, read_layout
from resnet_pl.data.provenance import Provenance
from resnet_pl.data.restored_splits import RestoredSplits, total_bytes
from resnet_pl.data.statistics import Mean, Std, check_size
from resnet_pl.data.typed_kwargs import ImageDataModuleArgs
from resnet_pl.types import PositiveInt, Unpack
from resnet_pl.utils import UserError, expand_path, rank_zero_print, run_on_rank_zero

# RGB statistics of ImageNet, images in [0, 1]; torchvision's pretrained weights use them.
IMAGENET_MEAN = [0.485, 0.456, 0.406]
IMAGENET_STD = [0.229, 0.224, 0.225]
# The checkpoint holds fingerprints of all images, unless there are more. To read a part of each takes too long then.
MAX_FINGERPRINTS = 200_000
NO_TEST_SET = "val (no test set)"


class ImageFolder(ImageDataModule):
    """Images in folders named after their classes: root/CLASS/*, or root/{train,val,test}/CLASS/*.

    Split folders can have other usual names, such as Training or valid, and can be inside the class folders.

    Args:
        root: folder of the class folders.
        group_pattern: regular expression on the path of an image relative to `root`; its first group identifies the
            patient, video or burst, such as `(patient\\d+)_`. Images of a group are never held out from each other.
        train_image_size: size of the training crops in pixels; `image_size` by default. Smaller crops train faster, and
            the accuracy is often higher (arXiv:1906.06423). For networks that take any size, as the ResNets do.
        crop: training crop; the paper's scale augmentation (`ScaleCrop`) by default. `Letterbox` keeps the entire
            image, in training and in evaluation.
        mean: mean that is subtracted from images in [0, 1]: one value per channel (ImageNet's by default), or measured
            on the training split, per channel (`channel`) or per pixel (`pixel`).
        std: standard deviation that images are divided by: one value per channel (ImageNet's by default), measured on
            the training split (`channel`), or null for no division.
        batch_transforms: augmentation of training batches on the device; horizontal flip and PCA color augmentation by
            default. A list replaces the default, `+` appends to it.
        scaled_decoding: whether large JPEGs are decoded at a half, a quarter or an eighth of their size for training,
            where the crop still has at least `image_size` pixels. It is faster; the crops are the same. Evaluation and
            the cache always decode in full.
        verify_images: whether all files are checked quickly before the first step.
        cache: whether images are decoded once, before training, into a file that later epochs and runs share.
        cache_side: maximum shorter side of cached images, pixels; larger images are downscaled. With null, images keep
            their full size: training is the same as with `cache: false` and `scaled_decoding: false`. The evaluation
            reads the cache if this is null or image_size × 256 / 224, else the files.
        cache_dir: folder of the caches; null uses $XDG_CACHE_HOME/resnet_pl or ~/.cache/resnet_pl.
        in_channels: channels of the images: 3 reads all files as RGB, 1 as gray; another number is that of the files.
        max_value: white in gray files with more than 8 bits, such as 4095 for a 12-bit camera; null uses the range of
            the file's type.
    """

    defaults = {"crop": ScaleCrop, "batch_transforms": [RandomFlip, PCAColor]}

    def __init__(
        self,
        root: str = "data/photos",
        batch_size: PositiveInt = 64,
        image_size: PositiveInt | tuple[PositiveInt, PositiveInt] = 224,
        train_image_size: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None,
        crop: Crop | None = None,
        mean: Mean = IMAGENET_MEAN,
        std: Std = IMAGENET_STD,
        batch_transforms: list[BatchTransform] | None = None,
        val_split: int | float = 0.1,
        test_split: int | float = 0.1,
        scaled_decoding: bool = True,
        verify_images: bool = False,
        cache: bool = False,
        cache_side: PositiveInt | None = None,
        cache_dir: str | None = None,
        group_pattern: str | None = None,
        in_channels: PositiveInt = 3,
        max_value: PositiveInt | None = None,
        **kwargs: Unpack[ImageDataModuleArgs],
    ) -> None:
        # Plain integers, which every checkpoint may contain.
        self.pixel_format = PixelFormat(int(in_channels), max_value and int(max_value))
        if cache and self.pixel_format != RGB:
            raise UserError("data.cache is for RGB images\nset --data.cache false with in_channels or max_value")
        super().__init__(
            batch_size=batch_size,
            image_size=image_size,
            mean=mean,
            std=std,
            batch_transforms=batch_transforms,
            val_split=val_split,
            test_split=test_split,
            **kwargs,
        )
        if train_image_size is not None:
            self.train_image_size = check_size(train_image_size, "train_image_size")
            if mean == "pixel" and self.train_image_size != self.image_size:
                raise UserError("data.mean: pixel is for images of one size\nset --data.mean channel")
        self.root: Path = Path(expand_path(root))  # pyright: ignore[reportIncompatibleVariableOverride] - set only here
        self.crop, self.verify_images = crop or build_default(type(self), "crop"), verify_images
        self.eval_crop = self.crop.for_evaluation() if isinstance(self.crop, Crop) else self.eval_crop
        self.scaled_decoding = scaled_decoding
        self.cache, self.cache_side, self.cache_dir = cache, cache_side, cache_dir and expand_path(cache_dir)
        self.group_pattern = group_pattern
        self.layout: Layout | None = None
        self._stage = "fit"
        self._test_bytes: int | None = None
        self._digests: dict[str, str] | None = None

    def setup(self, stage: str) -> None:
        """Finds the splits; for training, also computes the fingerprints of the images and opens the cache."""
        self._stage = stage
        super().setup(stage)
        if stage != "fit":
            return
        self._digests = self._find_digests()
        if self._digests and not self.restored_provenance:
            names = {split: self.splits[split].names for split in self._digests}
            if note := describe_copies(self.root, names, self._digests):
                rank_zero_print(f"note: {note}")
        if self.cache:
            self._open_cache()

    def _open_cache(self) -> None:
        # All images of the folder, so that runs with other splits find the same cache, and missing ones too.
        listings = [*self.list_splits().values(), *(images.names for images in self.splits.values())]
        names = sorted({name for listing in listings for name in listing})
        images = open_cache(self.root, names, self.cache_side, self.cache_dir, self.source)
        position = {name: index for index, name in enumerate(names)}
        # Evaluation uses the cache only if every pixel stays the same.
        center_crop = isinstance(self.eval_crop, ResizeCenterCrop) and isinstance(self.image_size, int)
        same_side = center_crop and self.cache_side == round(self.image_size * 256 / 224)
        same_pixels = self.cache_side is None or same_side
        for name in ("train", "val") if same_pixels else ("train",):
            if split := self.splits.get(name):
                split.cache = images.select([position[image] for image in split.names])

    # ------------------------------------------------------------------------------------ splits
    def find_splits(self) -> dict[str, ImageFileDataset]:
        """Finds the classes and splits in the folder, or those of the restored checkpoint."""
        if not self.root.is_dir():
            fix = self.download_hint()
            if self.restored_provenance:
                fix = "the checkpoint was trained on it; pass the new location with --data.root"
            raise UserError(f"data.root: folder {self.root} not found\n{fix}")
        listings = self.list_splits()
        for note in self.layout.notes if self.layout else ():
            rank_zero_print(f"note: {note}")
        if self.restored_provenance:
            self.classes = list(self.restored_provenance.classes)
            listings = self._restore_splits(listings, self.restored_provenance)
        else:
            self.classes = self._find_classes(listings)
            listings = self._complete_splits(listings)
            self.split_note = describe_groups(listings, self.groups)
        if self.verify_images:
            self._verify_images(listings)
        # Measured now: a file may be missing when a checkpoint is written.
        self._test_bytes = total_bytes(self.root, listings.get("test", ()))
        return {split: self._make_dataset(split, listing) for split, listing in listings.items() if listing}

    def download_hint(self) -> str:
        """Returns the fix for a missing root folder, in one line."""
        return "pass the folder that contains one folder per class with --data.root FOLDER"

    @property
    def source(self) -> Path:
        """What defines images and labels, by which a checkpoint recognizes its data: the folder."""
        return self.root

    def list_splits(self) -> dict[str, Listing]:
        """Lists the images of the train, val and test folders; of `all`, if the root has no such folders."""
        self.layout = read_layout(self.root, self.restored_provenance.classes if self.restored_provenance else ())
        return self.layout.splits

    @property
    def layout_note(self) -> str | None:
        """What the folder was read as and which splits were held out, for the start of a run."""
        if self.layout is None:
            return None
        held_out = [split for split in ("val", "test") if split in self.splits and split not in self.layout.splits]
        note = f"; {' and '.join(held_out)} held out" if held_out and not self.split_labels else ""
        if self.split_labels:
            note = "; no test set: val chooses best.ckpt and `test` reports on val, which is optimistic"
        return self.layout.description + note

    def groups(self, names: Sequence[str]) -> list[str] | None:
        """Returns the group of each image, "" for a group of its own; None if the data has no groups."""
        return None if self.group_pattern is None else match_groups(self.group_pattern, names)

    def _find_classes(self, listings: dict[str, Listing]) -> list[str]:
        training = listings.get("train") or listings.get("all")
        if training is None:
            found = " and ".join(f"{split}/" for split in listings)
            raise UserError(f"{self.source} has {found} but no train/\nput training images in train/")
        classes = sorted({name for label in training.values() for name in label_names(label)})
        if len(classes) < 2:
            raise UserError(f"{self.source} has only one class ({', '.join(classes)})\na classifier needs two or more")
        return classes

    def _complete_splits(self, listings: dict[str, Listing]) -> dict[str, Listing]:
        """Adds the splits that the folder does not have; they are taken from the training images."""
        if "val" in listings:
            if self.num_folds:
                raise UserError(f"data.num_folds: {self.root} has a val folder\nfolds need data that is not split yet")
            self.store_split_names = False
            if "test" in listings:
                return listings
            # Results on data that is published with train/ and val/ only are reported on val/.
            self._label_val_as_test()
            return listings | {"test": listings["val"]}
        training = listings.get("train") or listings["all"]
        names = list(training)
        labels = self._encode(training.values())
        digests = content_digests([self.root / name for name in names], skip=self.on_bad_image == "skip")
        indices = self.split_indices(
            digests, labels, names, test=0 if "test" in listings else self.test_split, groups=self.groups(names)
        )
        splits = {split: {names[i]: training[names[i]] for i in chosen} for split, chosen in indices.items()}
        return splits | {"test": listings["test"]} if "test" in listings else splits

    def _label_val_as_test(self) -> None:
        """Labels the test split as the validation images, if the data has no test set."""
        self.split_sources["test"], self.split_labels["test"] = "val/ (no test/ found)", NO_TEST_SET

    def _restore_splits(self, listings: dict[str, Listing], restored: Provenance) -> dict[str, Listing]:
        """Returns the checkpoint's splits if this is the data it was trained on; otherwise only images to test on."""
        finder = RestoredSplits(restored, self.root, self.source, self._stage, self.on_bad_image == "skip")
        images = {name: class_name for listing in listings.values() for name, class_name in listing.items()}
        if restored.splits is None and {"train", "val"} <= set(listings):
            splits = finder.check_split_folders(self._complete_splits(listings))
        elif found := finder.find(images):
            splits = found
            self.split_sources = {split: f"the {split} split stored in the checkpoint" for split in splits}
            if splits.get("test") and splits["test"] == splits.get("val"):
                self._label_val_as_test()
        else:
            # If the folder has a test split, only that one: the network may have been trained on the others.
            split = next((split for split in ("test", "val") if split in listings), None)
            source = f"{split}/" if split else "all images"
            self.split_sources = dict.fromkeys(("val", "test"), f"{source} of a folder other than the training data")
            chosen = listings[split] if split else images
            splits, self.is_other_data = {"val": chosen, "test": chosen}, True
        for split in ("val", "test"):
            splits[split], count = finder.without_trained(splits.get(split, {}), split, self.is_other_data)
            if count:
                self.split_sources[split] = f"{self.describe_source(split)} without {count:,} training images"
        return splits

    @override
    def provenance(self) -> dict[str, Any]:
        own = {"root": str(self.source.resolve()), "test_bytes": self._test_bytes, "digests": self._digests}
        return super().provenance() | own

    def _find_digests(self) -> dict[str, str] | None:
        """The fingerprints of the images of each split, on the process that writes the checkpoint."""
        if self.trainer is not None and not self.trainer.is_global_zero:
            return None
        before = self.restored_provenance and self.restored_provenance.digests
        if before and self.restored_provenance and self.restored_provenance.splits:
            return before  # an image that has changed since was trained on too
        if sum(map(len, self.splits.values())) > MAX_FINGERPRINTS:
            return None
        # Without a test set, test is val.
        splits = {name: images for name, images in self.splits.items() if name not in self.split_labels}
        return {name: fingerprints([self.root / each for each in images.names]) for name, images in splits.items()}

    def _make_dataset(self, split: str, listing: Listing) -> ImageFileDataset:
        if unknown := sorted({name for label in listing.values() for name in label_names(label)} - {*self.classes}):
            raise UserError(
                f"{split} images in {self.source} have the class {unknown[0]}, which the training images do not have\n"
                f"the {len(self.classes)} known classes are {', '.join(self.classes[:10])}"
                f"{' …' if len(self.classes) > 10 else ''}"
            )
        names, labels = list(listing), self._encode(listing.values())
        options: dict[str, Any] = {"pixel_format": self.pixel_format}
        size, crop = self.image_size, self.eval_crop
        if split == "train":
            size, crop = self.train_image_size, self.crop
            options |= {"seed": self.seed, "scaled_decoding": self.scaled_decoding}
        images = ImageFileDataset(self.root, names, labels, size, crop, **options)
        images.num_classes = len(self.classes) if self.multi_label else None
        return images

    def _encode(self, labels: Iterable[Any]) -> list[Any]:
        """Returns the class index of each label, or a tuple of class indices."""
        index = {name: label for label, name in enumerate(self.classes)}
        return [index[label] if isinstance(label, str) else tuple(index[name] for name in label) for label in labels]

    def _verify_images(self, listings: dict[str, Listing]) -> None:
        """Checks all files quickly; raises UserError for bad files, or removes them from the listings of a new run."""
        names = {name for listing in listings.values() for name in listing}
        bad = verify_images([self.root / name for name in sorted(names)])
        if bad and self.on_bad_image == "error":
            raise bad_images_error(bad)
        check_bad_fraction(bad, len(names))
        for error in bad:
            rank_zero_print(f"skipped: {error}")
            run_on_rank_zero(log_bad_image, self.bad_images_dir, error)
        if self.restored_provenance:
            return  # the loader skips them, in the order of the epoch before
        bad_paths = {error.path for error in bad}
        for listing in listings.values() if bad else ():
            # Joined as above: a table can name absolute paths, also of files outside the root.
            for name in [name for name in listing if self.root / name in bad_paths]:
                del listing[name]
