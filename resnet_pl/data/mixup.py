"""Augmentation that mixes the images of a batch, and their labels alike."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from resnet_pl.data.batch_transforms import BatchTransform, TrainingData, check_probability
from resnet_pl.data.rng import BatchRNG


class _Mixing(BatchTransform):
    """What MixUp and CutMix share: soft labels, and the neighbour in the (already shuffled) batch as partner.

    Args:
        alpha: parameter of the Beta distribution from which the mixing coefficient is drawn.
        probability: share of batches that are mixed.
    """

    def __init__(self, alpha: float = 1.0, probability: float = 1.0) -> None:
        if not alpha > 0:
            raise ValueError(f"{type(self).__name__}: alpha is {alpha}, it must be above 0")
        self.alpha, self.probability = alpha, check_probability(self, probability)
        self.num_classes = 0

    def fit(self, data: TrainingData) -> None:
        """Takes the number of classes."""
        self.num_classes = len(data.classes)

    def __call__(self, images: Tensor, labels: Tensor, rng: BatchRNG) -> tuple[Tensor, Tensor]:
        """See `BatchTransform`."""
        if labels.ndim == 1:
            labels = F.one_hot(labels, self.num_classes).to(images.dtype)
        rng = rng.batch_generator()
        if rng.random() >= self.probability:
            return images, labels
        images, share = self.mix(images, images.roll(1, 0), float(rng.beta(self.alpha, self.alpha)), rng)
        return images, labels * share + labels.roll(1, 0) * (1 - share)

    def mix(self, images: Tensor, others: Tensor, share: float, rng: np.random.Generator) -> tuple[Tensor, float]:
        """Returns the mixed images and the share that remains of the first ones."""
        raise NotImplementedError


class MixUp(_Mixing):
    """Blends every image with another and their labels alike (Zhang et al., 2018)."""

    def mix(self, images: Tensor, others: Tensor, share: float, rng: np.random.Generator) -> tuple[Tensor, float]:
        """See `_Mixing.mix`."""
        return images * share + others * (1 - share), share


class CutMix(_Mixing):
    """Pastes a box of another image into every image, labels by area (Yun et al., 2019)."""

    def mix(self, images: Tensor, others: Tensor, share: float, rng: np.random.Generator) -> tuple[Tensor, float]:
        """See `_Mixing.mix`."""
        height, width = images.shape[-2:]
        cut = math.sqrt(1 - share) / 2
        y, x = rng.random() * height, rng.random() * width
        top, bottom = (round(min(max(y + sign * cut * height, 0), height)) for sign in (-1, 1))
        left, right = (round(min(max(x + sign * cut * width, 0), width)) for sign in (-1, 1))
        images = images.clone()
        images[:, :, top:bottom, left:right] = others[:, :, top:bottom, left:right]
        return images, 1 - (bottom - top) * (right - left) / (height * width)
