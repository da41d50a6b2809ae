"""Any folder of class folders."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from resnet_pl.data.base import ImageDataModule
from resnet_pl.data.batch_transforms import BatchTransform, PCAColor, RandomFlip
from resnet_pl.data.cache import open_cache
from resnet_pl.data.crops import Crop, ScaleCrop
from resnet_pl.data.dataset import ImageFileDataset
from resnet_pl.data.decode import BadImage, check_bad_fraction, list_images, log_bad_image, verify_image
from resnet_pl.data.digests import content_digests
from resnet_pl.data.statistics import Mean, Std
from resnet_pl.types import PositiveInt
from resnet_pl.utils import UserError, progress, rank_zero_print, run_on_rank_zero

# RGB statistics of ImageNet, images in [0, 1]; the ones that torchvision's weights were trained with.
IMAGENET_MEAN = [0.485, 0.456, 0.406]
IMAGENET_STD = [0.229, 0.224, 0.225]
# Usual names of the folders of a data set that comes split.
SPLIT_FOLDERS = {"train": ["train"], "val": ["val", "valid", "validation"], "test": ["test"]}
Listing = dict[str, str]  # path relative to the root -> class


class ImageFolder(ImageDataModule):
    """Photos in folders named after their classes: root/CLASS/*, or root/{train,val,test}/CLASS/*.

    Args:
        root: folder of the class folders.
        crop: which part of a photo is trained on; the paper's scale augmentation by default.
        transforms: further transforms of single uint8 images in the workers, such as
            torchvision.transforms.v2.TrivialAugmentWide.
        verify_images: whether every file is checked quickly before the first step.
        mean: what is subtracted from images in [0, 1]: a value a channel (ImageNet's by default), or measured on the
            training split, `channel` by channel or `pixel` by pixel.
        std: what images are divided by: a value a channel, measured (`channel`), or nothing (null).
        batch_transforms: augmentation of whole batches on the device; mirroring and PCA colour by default.
        cache: decode every image once, before training, into a file that later epochs and runs share.
        cache_side: length that longer shorter sides are reduced to in the cache, pixels; null keeps every pixel, and a
            run learns the same as without a cache. image_size × 256 / 224 is evaluation's; smaller loses detail there.
        cache_dir: folder of caches; null takes $XDG_CACHE_HOME/resnet_pl or ~/.cache/resnet_pl.
    """

    def __init__(
        self,
        root: str = "data/photos",
        crop: Crop | None = None,
        transforms: list[nn.Module] | None = None,
        verify_images: bool = False,
        mean: Mean = IMAGENET_MEAN,
        std: Std = IMAGENET_STD,
        batch_transforms: list[BatchTransform] | None = None,
        cache: bool = False,
        cache_side: PositiveInt | None = None,
        cache_dir: str | None = None,
        **kwargs: Any,
    ) -> None:
        if batch_transforms is None:
            batch_transforms = [RandomFlip(), PCAColor()]
        super().__init__(mean=mean, std=std, batch_transforms=batch_transforms, **kwargs)
        self.root = Path(root)
        self.crop, self.transforms, self.verify_images = crop or ScaleCrop(), transforms or [], verify_images
        self.cache, self.cache_side, self.cache_dir = cache, cache_side, cache_dir
        self._test_bytes: int | None = None

    def setup(self, stage: str) -> None:
        """See `ImageDataModule.setup`; training also opens the cache."""
        super().setup(stage)
        if stage != "fit" or not self.cache:
            return
        # All photos of the folder, so that runs with other splits find the same cache.
        names = sorted({name for listing in self.list_splits().values() for name in listing})
        photos = open_cache(self.root, names, self.cache_side, self.cache_dir)
        position = {name: index for index, name in enumerate(names)}
        # Evaluation takes photos from it where that makes no difference to any pixel.
        same = self.cache_side in (None, round(self.image_size * 256 / 224))
        for part in ("train", "val") if same else ("train",):
            if split := self.splits.get(part):
                split.cache = photos.select([position[name] for name in split.names])

    # ------------------------------------------------------------------------------------ splits
    def find_splits(self) -> dict[str, ImageFileDataset]:
        """See `ImageDataModule.find_splits`."""
        if not self.root.is_dir():
            way_out = self.download_hint()
            if self.restored_provenance:
                way_out = "the checkpoint was trained there; name the place the images are in now with --data.root"
            raise UserError(f"data.root: there is no folder {self.root}\n{way_out}")
        listings = self.list_splits()
        if self.restored_provenance:
            self.classes = list(self.restored_provenance.classes)
            listings = self._stored(listings)
        else:
            self._name_classes(listings)
            listings = self._split(listings)
        if self.verify_images:
            self._scan(listings)
        # Measured now: a file may be gone when a checkpoint is written.
        self._test_bytes = self._size(listings.get("test", ()))
        return {part: self._photos(part, listing) for part, listing in listings.items() if listing}

    def download_hint(self) -> str:
        """The way out when there is no such folder, in a line."""
        return "give the folder that holds one folder for each class with --data.root FOLDER"

    def split_dir(self, part: str) -> Path | None:
        """The folder that holds a part of data that comes split, if there is one."""
        return next((self.root / name for name in SPLIT_FOLDERS[part] if (self.root / name).is_dir()), None)

    def list_splits(self) -> dict[str, Listing]:
        """Images of train, val and test where the root is divided so, else of `all`."""
        folders = {part: folder for part in SPLIT_FOLDERS if (folder := self.split_dir(part))}
        others = set(class_folders(self.root)) - set(folders.values())
        # Classes can be called train or test as well; parts hold class folders.
        if not folders or (others and not any(class_folders(folder) for folder in folders.values())):
            return {"all": self._list(self.root)}
        return {part: self._list(folder) for part, folder in folders.items()}

    def _list(self, folder: Path) -> Listing:
        """Every image below the class folders of a folder; raises UserError where a class has none."""
        classes = class_folders(folder)
        if not classes:
            raise UserError(f"{folder} has no class folders\nput the images of each class in a folder of its own there")
        listing: Listing = {}
        for path in classes:
            images = list_images(path)
            if not images and not self.restored_provenance:
                raise UserError(f"the class folder {path} has no image\nremove it or put images there")
            listing |= {image.relative_to(self.root).as_posix(): path.name for image in images}
        return listing

    def _name_classes(self, listings: dict[str, Listing]) -> None:
        training = listings.get("train") or listings.get("all")
        if training is None:
            raise UserError(f"{self.root} has {' and '.join(listings)} but no train\nput training images in train/")
        self.classes = sorted(set(training.values()))
        if len(self.classes) < 2:
            raise UserError(f"{self.root} has one class only ({self.classes[0]})\na classifier needs two or more")

    def _split(self, listings: dict[str, Listing]) -> dict[str, Listing]:
        """Completes the parts that the folders give by cutting the training images."""
        if "val" in listings:
            if self.num_folds:
                raise UserError(f"data.num_folds: {self.root} has a val folder\nfolds need data that is not split yet")
            self.store_split_names = False
            if "test" in listings:
                return listings
            # A set that people publish with train/ and val/ alone is reported on val/.
            self.split_sources = {"test": "val/, as there is no test/"}
            return listings | {"test": listings["val"]}
        whole = listings.get("train") or listings["all"]
        names = list(whole)
        labels = [self.classes.index(name) for name in whole.values()]
        digests = content_digests([self.root / name for name in names], skip=self.on_bad_image == "skip")
        cut = self.split_indices(digests, labels, names, test=0 if "test" in listings else self.test_split)
        parts = {part: {names[i]: whole[names[i]] for i in chosen} for part, chosen in cut.items()}
        return parts | {"test": listings["test"]} if "test" in listings else parts

    def _stored(self, listings: dict[str, Listing]) -> dict[str, Listing]:
        """The checkpoint's own split where this is the data it was trained on, else all that may be tested on."""
        if self.restored_provenance.splits is None and {"train", "val"} <= set(listings):
            return self._split(listings)
        whole: Listing = {}
        for listing in listings.values():
            whole |= listing
        if self.restored_provenance.splits_are_in(whole, self.root) and self._same_test_images():
            self.split_sources = {
                part: f"the {part} split stored in the checkpoint" for part in self.restored_provenance.splits
            }
            return {
                part: {name: whole[name] for name in names} for part, names in self.restored_provenance.splits.items()
            }
        # The folder's own test part if it has one: what lies beside it may have been trained on.
        part = next((part for part in ("test", "val") if part in listings), None)
        source = f"{part}/ of" if part else "every image of"
        self.split_sources = dict.fromkeys(("val", "test"), f"{source} a folder other than the training data's")
        chosen = listings[part] if part else whole
        return {"val": chosen, "test": chosen}

    def provenance(self) -> dict[str, Any]:
        """See `ImageDataModule.provenance`."""
        return super().provenance() | {"test_bytes": self._test_bytes}

    def _size(self, names: Iterable[str]) -> int:
        # A dangling link has no size; reading it tells.
        return sum(path.stat().st_size for name in names if (path := self.root / name).exists())

    def _same_test_images(self) -> bool:
        """Whether the files with the names of the stored test images are those images, elsewhere too."""
        known, here = self.restored_provenance.test_bytes, str(self.root.resolve())
        return (
            known is None
            or here == self.restored_provenance.root
            or known == self._size(self.restored_provenance.splits.get("test", []))
        )

    def _photos(self, part: str, listing: Listing) -> ImageFileDataset:
        number = {name: index for index, name in enumerate(self.classes)}
        unknown = sorted(set(listing.values()) - set(number))
        if unknown:
            raise UserError(
                f"{part} images in {self.root} have the class {unknown[0]}, which training does not know\n"
                f"the {len(number)} known classes are {', '.join(self.classes[:10])}{' …' if len(number) > 10 else ''}"
            )
        labels = [number[name] for name in listing.values()]
        training = {"crop": self.crop, "transforms": self.transforms, "seed": self.seed} if part == "train" else {}
        return ImageFileDataset(self.root, list(listing), labels, self.image_size, **training)

    def _scan(self, listings: dict[str, Listing]) -> None:
        """Checks every file quickly, and names or leaves out the bad ones as `on_bad_image` says."""
        bad: list[BadImage] = []
        names = {name for listing in listings.values() for name in listing}
        with progress("checking images", len(names)) as advance:
            for name in sorted(names):
                try:
                    verify_image(self.root / name)
                except BadImage as error:
                    bad.append(error)
                advance(1)
        if bad and self.on_bad_image == "error":
            raise UserError(_bad_images(bad))
        check_bad_fraction(bad, len(names))
        for error in bad:
            rank_zero_print(f"left out: {error}")
            run_on_rank_zero(log_bad_image, self.bad_images_dir, error)
            for listing in listings.values():
                listing.pop(Path(error.path).relative_to(self.root).as_posix(), None)


def class_folders(folder: Path) -> list[Path]:
    """The folders in a folder, without hidden ones, in order."""
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise UserError(f"cannot list folder {folder}: {error.strerror}") from error


def _bad_images(bad: Sequence[BadImage]) -> str:
    printable_path = "; ".join(str(error) for error in bad[:3]) + (" …" if len(bad) > 3 else "")
    return (
        f"{len(bad)} image{'s' if len(bad) > 1 else ''} cannot be read: {printable_path}\n"
        "repair or remove them, or leave such files out with --data.on_bad_image skip"
    )
