"""Augmentation: which part of a photo the net sees, and what happens to whole batches on the device.

A *crop* chooses a box in one photo, in a worker. A *batch transform* changes a whole batch at once, on whatever device
it is, and draws its random numbers from (seed, epoch, image): the same image gets the same treatment whatever the batch
it lands in, the number of workers or processes, or the step from which a run was resumed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as TF

if TYPE_CHECKING:
    from resnet_pl.data.base import ImageDataModule

# RGB statistics of ImageNet, images in [0, 1]; the ones that torchvision's weights were trained with.
IMAGENET_MEAN = [0.485, 0.456, 0.406]
IMAGENET_STD = [0.229, 0.224, 0.225]
# Principal components of ImageNet's RGB pixels in [0, 1] (AlexNet's, as published with Torch's ImageNet example).
ALEXNET_EIGENVALUES = [0.2175, 0.0188, 0.0045]
ALEXNET_EIGENVECTORS = [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]


# ------------------------------------------------------------------------------------ random draws
_MASK = (1 << 64) - 1


def _signed(number: int) -> int:
    """The same 64 bits as torch's int64."""
    number &= _MASK
    return number - (1 << 64) if number >> 63 else number


def _mix(x: Tensor) -> Tensor:
    """splitmix64's finaliser on int64: every bit of the result depends on every bit of the input."""
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * _signed(0x94D049BB133111EB)
    return x ^ ((x >> 31) & ((1 << 33) - 1))


class Draws:
    """Random numbers for the images of one batch, a pure function of (seed, epoch, image).

    Args:
        seed: the run's seed.
        epoch: epoch, from 0.
        number: position of the batch in its epoch, for what is drawn once a batch.
        indices: `(N,)` position of each image in its data set; its device is where the numbers are made.
    """

    def __init__(self, seed: int, epoch: int, number: int, indices: Tensor) -> None:
        base = int(_mix(_mix(torch.tensor(_signed(seed))) + epoch))
        self._keys = _mix(indices + base)
        self._count = 0
        self._for_batch = (seed & _MASK, epoch, number)

    def uniform(self) -> Tensor:
        """`(N,)` float32 in [0, 1)."""
        self._count += 1
        return ((_mix(self._keys + self._count) >> 40) & 0xFFFFFF).float() / (1 << 24)

    def integers(self, high: int) -> Tensor:
        """`(N,)` int64, uniform over 0 … high - 1."""
        return (self.uniform() * high).long().clamp_(max=high - 1)

    def normal(self) -> Tensor:
        """`(N,)` float32, standard normal."""
        radius = torch.sqrt(-2 * torch.log1p(-self.uniform()))
        return radius * torch.cos(2 * math.pi * self.uniform())

    def batch_generator(self) -> np.random.Generator:
        """A generator on the host for what is drawn once a batch, such as MixUp's coefficient."""
        self._count += 1
        return np.random.default_rng([*self._for_batch, self._count])


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
        top, left, height, width = self.box(image.shape[-2], image.shape[-1], size)
        return TF.resized_crop(image, top, left, height, width, [size, size], antialias=True)


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

    def box(self, height: int, width: int, size: int) -> Box:
        """See `Crop.box`."""
        from torchvision.transforms import RandomResizedCrop as Torchvision

        return Torchvision.get_params(torch.empty(1, height, width), list(self.area), list(self.ratio))


class CentreCrop(Crop):
    """Evaluation's view: shorter side resized to size × 256 / 224, then the centre square; used in training too, it
    switches random cropping off."""

    def __call__(self, image: Tensor, size: int) -> Tensor:
        """`(3, H, W)` uint8 to `(3, size, size)` uint8, resized before it is cut, as published accuracies are."""
        image = TF.resize(image, [round(size * 256 / 224)], antialias=True)
        return TF.center_crop(image, [size, size])


# ------------------------------------------------------------------------------------ batches
class BatchTransform:
    """Changes a training batch on its device. Subclass it and name the subclass in YAML."""

    def fit(self, data: ImageDataModule) -> None:
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


class RandomFlip(BatchTransform):
    """Mirrors half of the images left to right.

    Args:
        probability: share of images mirrored.
    """

    def __init__(self, probability: float = 0.5) -> None:
        self.probability = probability

    def __call__(self, images: Tensor, labels: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """See `BatchTransform`."""
        flipped = (draws.uniform() < self.probability)[:, None, None, None]
        return torch.where(flipped, images.flip(-1), images), labels


class PadCrop(BatchTransform):
    """The paper's CIFAR augmentation (§4.2): pad every side, then crop at random to the original size.

    The padding is zero *after* the mean is subtracted, as in the paper; images here still carry their mean, so it is
    taken off before padding and put back after the crop.

    Args:
        padding: pixels added on each side.
    """

    def __init__(self, padding: int = 4) -> None:
        if padding < 0:
            raise ValueError(f"PadCrop: padding is {padding}, it must be 0 or more")
        self.padding = padding
        self.mean = torch.zeros(1, 1, 1)

    def fit(self, data: ImageDataModule) -> None:
        """Takes the mean that is subtracted from the images."""
        self.mean = data.normalization()[0]

    def __call__(self, images: Tensor, labels: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """See `BatchTransform`."""
        if self.mean.device != images.device:
            self.mean = self.mean.to(images.device)
        n, _, height, width = images.shape
        padded = F.pad(images - self.mean, [self.padding] * 4)
        span = 2 * self.padding + 1
        rows = draws.integers(span)[:, None] + torch.arange(height, device=images.device)
        columns = draws.integers(span)[:, None] + torch.arange(width, device=images.device)
        picked = torch.arange(n, device=images.device)[:, None, None]
        # Advanced indexing puts the indexed axes first: (N, H, W, C), which is channels_last already.
        cropped = padded[picked, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        return cropped + self.mean, labels


class PCAColor(BatchTransform):
    """Colour augmentation along the principal components of RGB (AlexNet §4.1, used by the paper §3.4).

    Args:
        sigma: standard deviation of the Gaussian that scales each component.
        fitted: whether the components come from the training split instead of ImageNet.
    """

    def __init__(self, sigma: float = 0.1, fitted: bool = False) -> None:
        self.sigma, self.fitted = sigma, fitted
        self.components = torch.tensor(ALEXNET_EIGENVECTORS) * torch.tensor(ALEXNET_EIGENVALUES)

    def fit(self, data: ImageDataModule) -> None:
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


class _Mixing(BatchTransform):
    """What MixUp and CutMix share: soft labels, and the neighbour in the (already shuffled) batch as partner.

    Args:
        alpha: parameter of the Beta distribution from which the mixing coefficient is drawn.
        probability: share of batches that are mixed.
    """

    def __init__(self, alpha: float = 1.0, probability: float = 1.0) -> None:
        if alpha <= 0:
            raise ValueError(f"{type(self).__name__}: alpha is {alpha}, it must be above 0")
        self.alpha, self.probability = alpha, probability
        self.num_classes = 0

    def fit(self, data: ImageDataModule) -> None:
        """Takes the number of classes."""
        self.num_classes = len(data.classes)

    def __call__(self, images: Tensor, labels: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """See `BatchTransform`."""
        if labels.ndim == 1:
            labels = F.one_hot(labels, self.num_classes).to(images.dtype)
        rng = draws.batch_generator()
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
