"""Augmentation of training batches, on their device.

The random numbers of a batch transform are a function of (seed, epoch, image). They depend neither on the batch that an
image is in, nor on the number of workers and processes, nor on the step from which a run was resumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from resnet_pl.data.decode import options_for
from resnet_pl.data.rng import BatchRNG
from resnet_pl.utils import UserError

if TYPE_CHECKING:
    from resnet_pl.data.base import ImageDataModule

# Principal components of ImageNet's RGB pixels in [0, 1], as published with Torch's ImageNet example.
ALEXNET_EIGENVALUES = [0.2175, 0.0188, 0.0045]
ALEXNET_EIGENVECTORS = [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]


class BatchTransform:
    """Base class of augmentations of training batches. Name your own subclass in YAML."""

    def fit(self, data: ImageDataModule) -> None:
        """Takes what the transform needs of the training data; called once before training. Does nothing by default."""

    def __call__(self, images: Tensor, labels: Tensor, rng: BatchRNG) -> tuple[Tensor, Tensor]:
        """Transforms a batch.

        Args:
            images: `(N, C, H, W)` float, not normalized yet; in [0, 1], unless an earlier transform such as `PCAColor`
                leaves this range.
            labels: `(N,)` class indices, or `(N, K)` class probabilities.
            rng: the batch's random numbers.

        Returns:
            Images and labels in the same formats.
        """
        raise NotImplementedError


def check_transforms(transforms: Sequence[object], batch_transforms: Sequence[object]) -> None:
    """Raises UserError for a transform of batches among those of single images, and the other way round."""
    for transform in transforms:
        if isinstance(transform, BatchTransform):
            name = type(transform).__name__
            raise UserError(f"data.transforms: {name} transforms batches\nmove it to data.batch_transforms")
    for transform in batch_transforms:
        if isinstance(transform, nn.Module) and not isinstance(transform, BatchTransform):
            name = type(transform).__name__
            raise UserError(f"data.batch_transforms: {name} transforms single images\nmove it to data.transforms")


def apply_transforms(image: Tensor, transforms: Sequence[nn.Module]) -> Tensor:
    """Applies transforms to a single image and checks each result.

    Args:
        image: `(C, H, W)` uint8.
        transforms: modules that take and return such an image; the last ones may return float in [0, 1].

    Raises:
        UserError: a transform changes the shape of the image, or the last result is not uint8 or float in [0, 1].
    """
    name, shape = "", image.shape
    for transform in transforms:
        name, image = type(transform).__name__, transform(image)
        if not isinstance(image, Tensor) or image.shape != shape:
            found = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
            raise UserError(
                f"data.transforms: {name} makes {found} of an image {tuple(shape)}\n"
                "remove it: data.image_size and data.crop set the size, and the network takes tensors with its channels"
            )
    check_range(image, f"data.transforms: after {name} the images are")
    return image


def check_range(images: Tensor, what: str) -> None:
    """Raises UserError, with a message that starts with `what`, if images are not uint8 or float in [0, 1]."""
    if images.dtype == torch.uint8:
        return
    name = str(images.dtype).removeprefix("torch.")
    if not images.is_floating_point():
        raise UserError(f"{what} {name}, not uint8 or float in [0, 1]\nremove the conversion")
    low, high = (float(value) for value in images.aminmax())
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # NaN too
        raise UserError(
            f"{what} {name} from {low:.3g} to {high:.3g}, not uint8 or float in [0, 1]\n"
            "remove the normalization, which the model does itself; ToDtype to a float type needs scale=True"
        )


def check_finite(images: Tensor, transform: object) -> None:
    """Raises UserError if a batch transform has made images that are NaN or infinite."""
    if not images.isfinite().all():
        raise UserError(
            f"data.batch_transforms: {type(transform).__name__} makes NaN or infinite pixels\n"
            "its input can be a little below 0 or above 1, for example after PCAColor: use images.clamp(0, 1)"
        )


def check_probability(transform: BatchTransform, probability: float) -> float:
    """Returns the probability; raises ValueError if it is not between 0 and 1."""
    if not 0 <= probability <= 1:
        raise ValueError(f"{type(transform).__name__}: probability is {probability}, it must be between 0 and 1")
    return probability


class RandomFlip(BatchTransform):
    """Flips images horizontally.

    Args:
        probability: fraction of the images that is flipped.
        alternate: whether each image is flipped in every second epoch instead of at random (Jordan, arXiv 2404.00498).
            Two consecutive epochs then show every image both ways. `probability` is not used.
    """

    def __init__(self, probability: float = 0.5, alternate: bool = False) -> None:
        self.probability, self.alternate = check_probability(self, probability), alternate

    @override
    def __call__(self, images: Tensor, labels: Tensor, rng: BatchRNG) -> tuple[Tensor, Tensor]:
        flipped = rng.alternating_mask() if self.alternate else rng.uniform() < self.probability
        return torch.where(flipped[:, None, None, None], images.flip(-1), images), labels


class MeanFillTransform(BatchTransform):
    """Base class of transforms that fill pixels with the mean, which is zero after normalization."""

    def __init__(self) -> None:
        self.mean = torch.zeros(1, 1, 1)

    def fit(self, data: ImageDataModule) -> None:
        """Takes the mean that normalization subtracts."""
        self.mean = data.normalization()[0]

    def mean_to(self, device: torch.device) -> Tensor:
        """Returns the mean, `(C, 1, 1)` or `(C, H, W)`; moves it only once, because a transfer waits for the device."""
        if self.mean.device != device:
            self.mean = self.mean.to(device)
        return self.mean


class PadCrop(MeanFillTransform):
    """The paper's CIFAR augmentation (§4.2): pads every side, then crops to the original size at a random position.

    As in the paper, the padding is zero after the mean is subtracted. The images are not normalized yet, so the padding
    is filled with the mean.

    Args:
        padding: pixels added on each side.
        mode: `constant` pads with the mean, as in the paper; `reflect` pads with the image reflected at its border.
    """

    def __init__(self, padding: int = 4, mode: Literal["constant", "reflect"] = "constant") -> None:
        if padding < 0:
            raise ValueError(f"PadCrop: padding is {padding}, it must be 0 or more")
        super().__init__()
        self.padding, self.mode = padding, mode

    @override
    def __call__(self, images: Tensor, labels: Tensor, rng: BatchRNG) -> tuple[Tensor, Tensor]:
        num_images, _, height, width = images.shape
        mean = self.mean_to(images.device)
        padded = F.pad(images - mean, [self.padding] * 4, mode=self.mode)
        span = 2 * self.padding + 1
        rows = rng.integers(span)[:, None] + torch.arange(height, device=images.device)
        columns = rng.integers(span)[:, None] + torch.arange(width, device=images.device)
        batch = torch.arange(num_images, device=images.device)[:, None, None]
        # Advanced indexing puts the indexed axes first. (N, H, W, C) is already channels_last.
        cropped = padded[batch, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        return cropped + mean, labels


class Cutout(MeanFillTransform):
    """Fills a random square of each image with the mean (DeVries and Taylor, arXiv 1708.04552).

    The square's center is uniformly distributed over the image, so a part of the square may lie outside.

    Args:
        size: side of the square, pixels.
    """

    def __init__(self, size: int = 16) -> None:
        if size < 1:
            raise ValueError(f"Cutout: size is {size}, it must be 1 or more")
        super().__init__()
        self.size = size

    @override
    def __call__(self, images: Tensor, labels: Tensor, rng: BatchRNG) -> tuple[Tensor, Tensor]:
        inside = []
        for length in images.shape[-2:]:
            first = rng.integers(length)[:, None] - self.size // 2
            position = torch.arange(length, device=images.device)
            inside.append((position >= first) & (position < first + self.size))
        square = inside[0][:, None, :, None] & inside[1][:, None, None, :]
        return torch.where(square, self.mean_to(images.device), images), labels


class PCAColor(BatchTransform):
    """PCA color augmentation: shifts colors along the principal components of RGB (AlexNet §4.1; the paper §3.4).

    Args:
        sigma: standard deviation of the Gaussian factor of each component.
        fitted: whether the components are those of the training split instead of ImageNet's.
    """

    def __init__(self, sigma: float = 0.1, fitted: bool = False) -> None:
        if not sigma >= 0:
            raise ValueError(f"PCAColor: sigma is {sigma}, it must be 0 or more")
        self.sigma, self.fitted = sigma, fitted
        self.components = torch.tensor(ALEXNET_EIGENVECTORS) * torch.tensor(ALEXNET_EIGENVALUES)

    def fit(self, data: ImageDataModule) -> None:
        """Computes the components of the training split, if `fitted`; raises UserError if they are not those of RGB."""
        if not self.fitted and (channels := data.pixel_format.channels) != 3:
            raise UserError(
                f"data.batch_transforms: PCAColor is for RGB images, these have {channels} channels\n"
                f"{options_for(channels)}"
            )
        if self.fitted:
            values, vectors = torch.linalg.eigh(data.statistics.covariance)
            self.components = (vectors * values).float()

    @override
    def __call__(self, images: Tensor, labels: Tensor, rng: BatchRNG) -> tuple[Tensor, Tensor]:
        if self.components.device != images.device:
            self.components = self.components.to(images.device)
        factors = torch.stack([rng.normal() for _ in range(self.components.shape[1])], dim=1) * self.sigma
        return images + (factors @ self.components.T)[:, :, None, None], labels
