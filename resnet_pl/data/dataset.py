"""Photos in files, as one split of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from copy import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from resnet_pl.data.cache import DecodedImageCache, short_hash, stat_key
from resnet_pl.data.crops import Crop, ResizeCenterCrop
from resnet_pl.data.decode import BadImage, read_image
from resnet_pl.data.rng import seeded_rng
from resnet_pl.data.views import Views


class ImageFileDataset(torch.utils.data.Dataset):
    """Photos of one split, read when asked for.

    Args:
        root: folder that the names start from.
        names: path of each photo relative to `root`.
        labels: class index of each photo, -1 where it is not known.
        image_size: side of the net's input, pixels.
        crop: chooses the net's view; evaluation's centre crop by default.
        transforms: further transforms of the cropped uint8 image, in order.
        seed: the run's seed, from which crops and transforms draw.

    Attributes:
        cache: the same photos decoded, which views are then cut from.
    """

    cache: DecodedImageCache | None = None

    def __init__(
        self,
        root: Path,
        names: Sequence[str],
        labels: Sequence[int],
        image_size: int,
        crop: Crop | None = None,
        transforms: Sequence[nn.Module] = (),
        seed: int = 0,
    ) -> None:
        self.root, self.names, self.labels = root, list(names), list(labels)
        self.image_size, self.crop, self.transforms, self.seed = (
            image_size,
            crop or ResizeCenterCrop(),
            transforms,
            seed,
        )

    def __len__(self) -> int:
        return len(self.names)

    def digest(self) -> str:
        """Tells these photos from others: by names, labels and sizes of the files, for contents take long to read."""
        states = [stat_key(self.root / name) for name in self.names]
        return short_hash(self.names, self.labels, [state and state[0] for state in states])

    def load_full_image(self, index: int) -> Tensor:
        """`(3, H, W)` uint8, the whole photo as a person looks at it; grey where it has vanished since it was read."""
        with suppress(BadImage):
            return read_image(self.root / self.names[index])
        return torch.full((3, self.image_size, self.image_size), 128, dtype=torch.uint8)

    def with_views(self, views: Views) -> ImageFileDataset:
        """These photos, each as a list of views instead of one."""
        photos = copy(self)
        photos.crop, photos.transforms, photos.cache = views, (), None
        return photos

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int, int] | BadImage:
        """Returns the `(3, S, S)` uint8 view, label and index of a photo in an epoch, or what is wrong with its file.

        Args:
            key: (epoch, index). The view is a pure function of the seed and these two.
        """
        epoch, index = key
        image = self.cache[index] if self.cache else None
        try:
            image = read_image(self.root / self.names[index]) if image is None else image
        except BadImage as bad:
            return bad
        # A function, or views, may draw from any generator.
        torch_only = not self.transforms and getattr(self.crop, "draws_from_torch_only", False)
        with seeded_rng(self.seed, epoch, index, torch_only=torch_only):
            image = self.crop(image, self.image_size)
            for transform in self.transforms:
                image = transform(image)
        return image, self.labels[index], index
