"""Photos in files, as one split of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from resnet_pl.data.images import BadImage, read_image
from resnet_pl.data.loaders import keyed_rng
from resnet_pl.data.transforms import CentreCrop, Crop
from resnet_pl.data.views import Views


class Photos(torch.utils.data.Dataset):
    """Photos of one split, read when asked for.

    Args:
        root: folder that the names start from.
        names: path of each photo relative to `root`.
        labels: class index of each photo, -1 where it is not known.
        image_size: side of the net's input, pixels.
        crop: chooses the net's view; evaluation's centre crop by default.
        transforms: further transforms of the cropped uint8 image, in order.
        seed: the run's seed, from which crops and transforms draw.
    """

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
        self.image_size, self.crop, self.transforms, self.seed = image_size, crop or CentreCrop(), transforms, seed

    def __len__(self) -> int:
        return len(self.names)

    def picture(self, index: int) -> Tensor:
        """`(3, H, W)` uint8, the whole photo as a person looks at it."""
        return read_image(self.root / self.names[index])

    def through(self, views: Views) -> Photos:
        """These photos, each as a list of views instead of one."""
        photos = copy(self)
        photos.crop, photos.transforms = views, ()
        return photos

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int, int] | BadImage:
        """Returns the `(3, S, S)` uint8 view, label and index of a photo in an epoch, or what is wrong with its file.

        Args:
            key: (epoch, index). The view is a pure function of the seed and these two.
        """
        epoch, index = key
        try:
            image = self.picture(index)
        except BadImage as bad:
            return bad
        with keyed_rng(self.seed, epoch, index):
            image = self.crop(image, self.image_size)
            for transform in self.transforms:
                image = transform(image)
        return image, self.labels[index], index
