"""Augmentation of whole batches, on whatever device they are.

A batch transform draws its random numbers from (seed, epoch, image): the same image gets the same treatment whatever
the batch it is in, the number of workers or processes, or the step from which a run was resumed.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from resnet_pl.data.rng import BatchRNG
from resnet_pl.data.statistics import Statistics

# Principal components of ImageNet's RGB pixels in [0, 1] (AlexNet's, as published with Torch's ImageNet example).
ALEXNET_EIGENVALUES = [0.2175, 0.0188, 0.0045]
ALEXNET_EIGENVECTORS = [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]


class TrainingData(Protocol):
    """What a batch transform may know of the training split; every `ImageDataModule` is one."""

    classes: list[str]
    statistics: Statistics

    def normalization(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of images in [0, 1]."""


class BatchTransform:
    """Changes a training batch on its device. Subclass it and name the subclass in YAML."""

    def fit(self, data: TrainingData) -> None:
        """Called once before training, for what depends on the training split; the default needs nothing."""

    def __call__(self, images: Tensor, labels: Tensor, rng: BatchRNG) -> tuple[Tensor, Tensor]:
        """Transforms a batch.

        Args:
            images: `(N, C, H, W)` float in [0, 1], not normalised yet.
            labels: `(N,)` class indices, or `(N, K)` class probabilities.
            draws: the batch's random numbers.

        Returns:
            Images and labels in the same forms.
        """
        raise NotImplementedError


def check_probability(transform: BatchTransform, probability: float) -> float:
    """Returns the probability, or raises ValueError if it is not from 0 to 1."""
    if not 0 <= probability <= 1:
        raise ValueError(f"{type(transform).__name__}: probability is {probability}, it must be from 0 to 1")
    return probability


class RandomFlip(BatchTransform):
    """Mirrors half of the images left to right.

    Args:
        probability: share of images mirrored.
        alternate: whether each image is mirrored in every other epoch (Jordan, arXiv 2404.00498), not by chance: two
            epochs in a row then show every image both ways. The probability has no say in it.
    """

    def __init__(self, probability: float = 0.5, alternate: bool = False) -> None:
        self.probability, self.alternate = check_probability(self, probability), alternate

    def __call__(self, images: Tensor, labels: Tensor, rng: BatchRNG) -> tuple[Tensor, Tensor]:
        """See `BatchTransform`."""
        flipped = rng.alternating_mask() if self.alternate else rng.uniform() < self.probability
        return torch.where(flipped[:, None, None, None], images.flip(-1), images), labels


class MeanFillTransform(BatchTransform):
    """A transform that fills pixels with the mean, which the net sees as zero."""

    def __init__(self) -> None:
        self.mean = torch.zeros(1, 1, 1)

    def fit(self, data: TrainingData) -> None:
        """Takes the mean that is subtracted from the images."""
        self.mean = data.normalization()[0]

    def mean_to(self, device: torch.device) -> Tensor:
        """`(C, 1, 1)` or `(C, H, W)`; moved only once, because every transfer waits for the device."""
        if self.mean.device != device:
            self.mean = self.mean.to(device)
        return self.mean


class PadCrop(MeanFillTransform):
    """The paper's CIFAR augmentation (§4.2): pad every side, then crop at random to the original size.

    The padding is zero *after* the mean is subtracted, as in the paper; images here still carry their mean, so it is
    taken off before padding and put back after the crop.

    Args:
        padding: pixels added on each side.
        mode: `constant` pads with zero as the paper does, `reflect` with the image mirrored at its border.
    """

    def __init__(self, padding: int = 4, mode: Literal["constant", "reflect"] = "constant") -> None:
        if padding < 0:
            raise ValueError(f"PadCrop: padding is {padding}, it must be 0 or more")
        super().__init__()
        self.padding, self.mode = padding, mode

    def __call__(self, images: Tensor, labels: Tensor, rng: BatchRNG) -> tuple[Tensor, Tensor]:
        """See `BatchTransform`."""
        n, _, height, width = images.shape
        mean = self.mean_to(images.device)
        padded = F.pad(images - mean, [self.padding] * 4, mode=self.mode)
        span = 2 * self.padding + 1
        rows = rng.integers(span)[:, None] + torch.arange(height, device=images.device)
        columns = rng.integers(span)[:, None] + torch.arange(width, device=images.device)
        picked = torch.arange(n, device=images.device)[:, None, None]
        # Advanced indexing puts the indexed axes first: (N, H, W, C), which is channels_last already.
        cropped = padded[picked, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        return cropped + mean, labels


class Cutout(MeanFillTransform):
    """Puts the mean into a square of every image (DeVries and Taylor, 2017); its centre may be anywhere.

    Args:
        size: side of the square, pixels; what lies outside the image is lost.
    """

    def __init__(self, size: int = 16) -> None:
        if size < 1:
            raise ValueError(f"Cutout: size is {size}, it must be 1 or more")
        super().__init__()
        self.size = size

    def __call__(self, images: Tensor, labels: Tensor, rng: BatchRNG) -> tuple[Tensor, Tensor]:
        """See `BatchTransform`."""
        inside = []
        for length in images.shape[-2:]:
            first = rng.integers(length)[:, None] - self.size // 2
            place = torch.arange(length, device=images.device)
            inside.append((place >= first) & (place < first + self.size))
        hole = inside[0][:, None, :, None] & inside[1][:, None, None, :]
        return torch.where(hole, self.mean_to(images.device), images), labels


class PCAColor(BatchTransform):
    """Colour augmentation along the principal components of RGB (AlexNet §4.1, used by the paper §3.4).

    Args:
        sigma: standard deviation of the Gaussian that scales each component.
        fitted: whether the components come from the training split instead of ImageNet.
    """

    def __init__(self, sigma: float = 0.1, fitted: bool = False) -> None:
        if not sigma >= 0:
            raise ValueError(f"PCAColor: sigma is {sigma}, it must be 0 or more")
        self.sigma, self.fitted = sigma, fitted
        self.components = torch.tensor(ALEXNET_EIGENVECTORS) * torch.tensor(ALEXNET_EIGENVALUES)

    def fit(self, data: TrainingData) -> None:
        """Takes the components from the training split's pixels, if asked to."""
        if self.fitted:
            values, vectors = torch.linalg.eigh(data.statistics.covariance)
            self.components = (vectors * values).float()

    def __call__(self, images: Tensor, labels: Tensor, rng: BatchRNG) -> tuple[Tensor, Tensor]:
        """See `BatchTransform`."""
        if self.components.device != images.device:
            self.components = self.components.to(images.device)
        amounts = torch.stack([rng.normal() for _ in range(3)], dim=1) * self.sigma
        return images + (amounts @ self.components.T)[:, :, None, None], labels
