"""Augmentation: which part of a photo the net sees, and what happens to whole batches on the device.

A *crop* chooses a box in one photo, in a worker. A *batch transform* changes a whole batch at once, on whatever device
it is, and draws its random numbers from (seed, epoch, image): the same image gets the same treatment whatever the batch
it lands in, the number of workers or processes, or the step from which a run was resumed.
"""

from __future__ import annotations

import math
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as TF

from resnet_pl.data.rng import Draws
from resnet_pl.data.statistics import Statistics

# RGB statistics of ImageNet, images in [0, 1]; the ones that torchvision's weights were trained with.
IMAGENET_MEAN = [0.485, 0.456, 0.406]
IMAGENET_STD = [0.229, 0.224, 0.225]
# Principal components of ImageNet's RGB pixels in [0, 1] (AlexNet's, as published with Torch's ImageNet example).
ALEXNET_EIGENVALUES = [0.2175, 0.0188, 0.0045]
ALEXNET_EIGENVECTORS = [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]


# ------------------------------------------------------------------------------------ crops
Box = tuple[int, int, int, int]


class Crop:
    """Chooses the box of a photo that becomes the net's square input. Subclass it and name the subclass in YAML."""

    def box(self, height: int, width: int, size: int) -> Box:
        """Returns (top, left, height, width) in the photo's own pixels, drawn with torch's global generator.

        Args:
            height: the photo's height, pixels.
            width: the photo's width, pixels.
            size: side of the net's input, pixels.
        """
        raise NotImplementedError

    def __call__(self, image: Tensor, size: int) -> Tensor:
        """`(3, H, W)` uint8 to `(3, size, size)` uint8: the box is cut first and then resized, which costs less."""
        top, left, height, width = box = self.box(image.shape[-2], image.shape[-1], size)
        if min(top, left) < 0 or top + height > image.shape[-2] or left + width > image.shape[-1]:
            raise ValueError(f"{type(self).__name__}.box: {box} leaves a photo of {tuple(image.shape[-2:])}")
        view = image[None, :, top : top + height, left : left + width]
        # A pixel's channels side by side, as decoders leave them, are resized a third faster than planes.
        view = view.contiguous(memory_format=torch.channels_last)
        if view.is_cuda:
            return TF.resize(view, [size, size], antialias=True)[0]
        # What torchvision's own ends in; what that asks before takes 3 % of all the time a photo takes.
        return F.interpolate(view, [size, size], mode="bilinear", antialias=True)[0]


def _integer(low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, ()))


class ScaleCrop(Crop):
    """The paper's scale augmentation (§3.4): shorter side resized to a random length, then a random square crop.

    Args:
        min_side: least length of the shorter side for a crop of 224 pixels, in proportion at other sizes.
        max_side: greatest length of the shorter side for a crop of 224 pixels.
    """

    def __init__(self, min_side: int = 256, max_side: int = 480) -> None:
        if not 224 <= min_side <= max_side:
            raise ValueError(
                f"ScaleCrop: min_side {min_side} and max_side {max_side} must be 224 or more, and in order"
            )
        self.min_side, self.max_side = min_side, max_side

    def box(self, height: int, width: int, size: int) -> Box:
        """See `Crop.box`."""
        short = min(height, width)
        side = max(1, round(short * 224 / _integer(self.min_side, self.max_side)))
        return _integer(0, height - side), _integer(0, width - side), side, side


class RandomResizedCrop(Crop):
    """Today's usual crop: random area and aspect ratio (torchvision's RandomResizedCrop).

    Args:
        min_area: least share of the photo's area.
        max_area: greatest share of the photo's area.
        min_ratio: least width / height.
        max_ratio: greatest width / height.
    """

    def __init__(
        self, min_area: float = 0.08, max_area: float = 1.0, min_ratio: float = 3 / 4, max_ratio: float = 4 / 3
    ) -> None:
        if not 0 < min_area <= max_area <= 1 or not 0 < min_ratio <= max_ratio:
            raise ValueError(f"RandomResizedCrop: areas {min_area} to {max_area}, ratios {min_ratio} to {max_ratio}")
        self.area, self.ratio = (min_area, max_area), (min_ratio, max_ratio)
        self.log_ratio = torch.tensor(self.ratio).log().tolist()

    def box(self, height: int, width: int, size: int) -> Box:
        """See `Crop.box`; torchvision's draws, which its own `get_params` takes much longer for."""
        for _ in range(10):
            area = height * width * torch.empty(1).uniform_(*self.area).item()
            ratio = torch.empty(1).uniform_(*self.log_ratio).exp_().item()
            wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < wide <= width and 0 < high <= height:
                return _integer(0, height - high), _integer(0, width - wide), high, wide
        # The largest box in the middle.
        wide, high = min(width, round(height * self.ratio[1])), min(height, round(width / self.ratio[0]))
        return (height - high) // 2, (width - wide) // 2, high, wide


class CentreCrop(Crop):
    """Evaluation's view: shorter side resized to size × 256 / 224, then the centre square; used in training too, it
    switches random cropping off."""

    def __call__(self, image: Tensor, size: int) -> Tensor:
        """`(3, H, W)` uint8 to `(3, size, size)` uint8, resized before it is cut, as published accuracies are."""
        image = TF.resize(no_line(image), [round(size * 256 / 224)], antialias=True)
        return TF.center_crop(image, [size, size])


def no_line(images: Tensor, ratio: int = 16) -> Tensor:
    """`(…, H, W)` cut to so many shorter sides: a line of 10,000 pixels would take a gigabyte when it is resized."""
    height, width = images.shape[-2:]
    longest = ratio * min(height, width)
    if max(height, width) <= longest:
        return images
    return TF.center_crop(images, [min(height, longest), min(width, longest)])


# ------------------------------------------------------------------------------------ batches
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

    def __call__(self, images: Tensor, labels: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Transforms a batch.

        Args:
            images: `(N, C, H, W)` float in [0, 1], not normalised yet.
            labels: `(N,)` class indices, or `(N, K)` class probabilities.
            draws: the batch's random numbers.

        Returns:
            Images and labels in the same forms.
        """
        raise NotImplementedError


def checked_share(transform: BatchTransform, probability: float) -> float:
    """Returns the probability, or raises ValueError where it is none."""
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
        self.probability, self.alternate = checked_share(self, probability), alternate

    def __call__(self, images: Tensor, labels: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """See `BatchTransform`."""
        flipped = draws.alternating() if self.alternate else draws.uniform() < self.probability
        return torch.where(flipped[:, None, None, None], images.flip(-1), images), labels


class MeanFilled(BatchTransform):
    """One that fills places with the mean, which is nothing to the net."""

    def __init__(self) -> None:
        self.mean = torch.zeros(1, 1, 1)

    def fit(self, data: TrainingData) -> None:
        """Takes the mean that is subtracted from the images."""
        self.mean = data.normalization()[0]

    def mean_on(self, device: torch.device) -> Tensor:
        """`(C, 1, 1)` or `(C, H, W)`; moved once, as every transfer waits for the device."""
        if self.mean.device != device:
            self.mean = self.mean.to(device)
        return self.mean


class PadCrop(MeanFilled):
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

    def __call__(self, images: Tensor, labels: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """See `BatchTransform`."""
        n, _, height, width = images.shape
        mean = self.mean_on(images.device)
        padded = F.pad(images - mean, [self.padding] * 4, mode=self.mode)
        span = 2 * self.padding + 1
        rows = draws.integers(span)[:, None] + torch.arange(height, device=images.device)
        columns = draws.integers(span)[:, None] + torch.arange(width, device=images.device)
        picked = torch.arange(n, device=images.device)[:, None, None]
        # Advanced indexing puts the indexed axes first: (N, H, W, C), which is channels_last already.
        cropped = padded[picked, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        return cropped + mean, labels


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

    def __call__(self, images: Tensor, labels: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """See `BatchTransform`."""
        if self.components.device != images.device:
            self.components = self.components.to(images.device)
        amounts = torch.stack([draws.normal() for _ in range(3)], dim=1) * self.sigma
        return images + (amounts @ self.components.T)[:, :, None, None], labels
