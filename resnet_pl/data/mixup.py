"""MixUp and CutMix: augmentation that mixes pairs of images and their labels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from resnet_pl.data.batch_transforms import BatchTransform, check_probability
from resnet_pl.data.rng import BatchRNG

if TYPE_CHECKING:
    from resnet_pl.data.base import ImageDataModule


class _Mixing(BatchTransform):
    """Base class of MixUp and CutMix; the partner of an image is its neighbor in the batch, which is shuffled.

    Args:
        alpha: parameter of the Beta distribution of the mixing coefficient.
        probability: fraction of the batches that is mixed.
    """

    def __init__(self, alpha: float = 1.0, probability: float = 1.0) -> None:
        if not alpha > 0:
            raise ValueError(f"{type(self).__name__}: alpha is {alpha}, it must be above 0")
        self.alpha, self.probability = alpha, check_probability(self, probability)
        self.num_classes = 0

    def fit(self, data: ImageDataModule) -> None:
        """Takes the number of classes."""
        self.num_classes = len(data.classes)

    def __call__(self, images: Tensor, labels: Tensor, rng: BatchRNG) -> tuple[Tensor, Tensor]:
        """Mixes the batch; labels become `(N, K)` class probabilities."""
        if labels.ndim == 1:
            labels = F.one_hot(labels, self.num_classes).to(images.dtype)
        generator = rng.batch_generator()
        if generator.random() >= self.probability:
            return images, labels
        images, lam = self.mix(images, images.roll(1, 0), float(generator.beta(self.alpha, self.alpha)), generator)
        return images, labels * lam + labels.roll(1, 0) * (1 - lam)

    def mix(self, images: Tensor, partners: Tensor, lam: float, rng: np.random.Generator) -> tuple[Tensor, float]:
        """Mixes each image with its partner.

        Args:
            images: `(N, C, H, W)`.
            partners: `(N, C, H, W)`.
            lam: mixing coefficient, the weight of `images` in [0, 1].
            rng: the batch's random generator.

        Returns:
            The mixed images and the actual weight of `images`.
        """
        raise NotImplementedError


class MixUp(_Mixing):
    """Blends pairs of images and their labels (Zhang et al., arXiv 1710.09412)."""

    @override
    def mix(self, images: Tensor, partners: Tensor, lam: float, rng: np.random.Generator) -> tuple[Tensor, float]:
        return images * lam + partners * (1 - lam), lam


class CutMix(_Mixing):
    """Pastes a box of one image into another and mixes their labels by area (Yun et al., arXiv 1905.04899)."""

    @override
    def mix(self, images: Tensor, partners: Tensor, lam: float, rng: np.random.Generator) -> tuple[Tensor, float]:
        height, width = images.shape[-2:]
        half_side = math.sqrt(1 - lam) / 2
        y, x = rng.random() * height, rng.random() * width
        top, bottom = (round(min(max(y + sign * half_side * height, 0), height)) for sign in (-1, 1))
        left, right = (round(min(max(x + sign * half_side * width, 0), width)) for sign in (-1, 1))
        images = images.clone()
        images[:, :, top:bottom, left:right] = partners[:, :, top:bottom, left:right]
        return images, 1 - (bottom - top) * (right - left) / (height * width)


class RandomChoice(BatchTransform):
    """Applies one of several batch transforms to each batch, such as MixUp or CutMix; each is equally likely.

    Args:
        transforms: the transforms to choose from.
    """

    def __init__(self, transforms: list[BatchTransform]) -> None:
        if not transforms:
            raise ValueError("RandomChoice: transforms is empty, it must name at least one")
        self.transforms = transforms

    @override
    def fit(self, data: ImageDataModule) -> None:
        for transform in self.transforms:
            transform.fit(data)

    @override
    def __call__(self, images: Tensor, labels: Tensor, rng: BatchRNG) -> tuple[Tensor, Tensor]:
        choice = rng.batch_generator().integers(len(self.transforms))
        return self.transforms[choice](images, labels, rng)
