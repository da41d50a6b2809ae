"""Crops: which box of a photo becomes the net's input. They run in the worker processes."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as TF

# Top, left, height and width in pixels.
Box = tuple[int, int, int, int]


class Crop:
    """Chooses the box of a photo that becomes the net's square input. Subclass it and name the subclass in YAML.

    Attributes:
        draws_from_torch_only: whether the crop draws from torch's global generator and no other. Seeding Python's and
            numpy's generators, too, takes a hundredth of the time of a photo. A subclass has to declare this itself.
    """

    draws_from_torch_only: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Not inherited: a subclass of one of our crops may draw from any generator.
        cls.draws_from_torch_only = vars(cls).get("draws_from_torch_only", False)

    def get_params(self, height: int, width: int, size: int) -> Box:
        """Returns (top, left, height, width) in the photo's own pixels, drawn with torch's global generator.

        Args:
            height: the photo's height, pixels.
            width: the photo's width, pixels.
            size: side of the net's input, pixels.
        """
        raise NotImplementedError

    def __call__(self, image: Tensor, size: int) -> Tensor:
        """`(3, H, W)` uint8 to `(3, size, size)` uint8: the box is cut first and then resized, which costs less."""
        top, left, height, width = box = self.get_params(image.shape[-2], image.shape[-1], size)
        if min(top, left) < 0 or top + height > image.shape[-2] or left + width > image.shape[-1]:
            raise ValueError(f"{type(self).__name__}.get_params: {box} leaves a photo of {tuple(image.shape[-2:])}")
        view = image[None, :, top : top + height, left : left + width]
        # Resizing is a third faster in channels_last, the layout that decoders produce, than plane by plane.
        view = view.contiguous(memory_format=torch.channels_last)
        # torchvision's resize ends in this call; its checks before it take 3 % of the time of a photo.
        return F.interpolate(view, [size, size], mode="bilinear", antialias=True)[0]


def _integer(low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, ()))


class ScaleCrop(Crop):
    """The paper's scale augmentation (§3.4): shorter side resized to a random length, then a random square crop.

    Args:
        min_side: least length of the shorter side for a crop of 224 pixels, in proportion at other sizes.
        max_side: greatest length of the shorter side for a crop of 224 pixels.
    """

    draws_from_torch_only = True

    def __init__(self, min_side: int = 256, max_side: int = 480) -> None:
        if not 224 <= min_side <= max_side:
            raise ValueError(
                f"ScaleCrop: min_side {min_side} and max_side {max_side} must be 224 or more, and in order"
            )
        self.min_side, self.max_side = min_side, max_side

    def get_params(self, height: int, width: int, size: int) -> Box:
        """See `Crop.get_params`."""
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

    draws_from_torch_only = True

    def __init__(
        self, min_area: float = 0.08, max_area: float = 1.0, min_ratio: float = 3 / 4, max_ratio: float = 4 / 3
    ) -> None:
        if not 0 < min_area <= max_area <= 1 or not 0 < min_ratio <= max_ratio:
            raise ValueError(f"RandomResizedCrop: areas {min_area} to {max_area}, ratios {min_ratio} to {max_ratio}")
        self.area, self.ratio = (min_area, max_area), (min_ratio, max_ratio)
        self.log_ratio = torch.tensor(self.ratio).log().tolist()

    def get_params(self, height: int, width: int, size: int) -> Box:
        """See `Crop.get_params`; the draws are torchvision's, whose own `make_params` is much slower."""
        for _ in range(10):
            area = height * width * torch.empty(1).uniform_(*self.area).item()
            ratio = torch.empty(1).uniform_(*self.log_ratio).exp_().item()
            wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < wide <= width and 0 < high <= height:
                return _integer(0, height - high), _integer(0, width - wide), high, wide
        # The largest box in the middle.
        wide, high = min(width, round(height * self.ratio[1])), min(height, round(width / self.ratio[0]))
        return (height - high) // 2, (width - wide) // 2, high, wide


class ResizeCenterCrop(Crop):
    """Evaluation's view: shorter side resized to size × 256 / 224, then the centre square; used in training too, it
    switches random cropping off."""

    draws_from_torch_only = True

    def __call__(self, image: Tensor, size: int) -> Tensor:
        """`(3, H, W)` uint8 to `(3, size, size)` uint8, resized before it is cut, as published accuracies are."""
        image = TF.resize(limit_aspect_ratio(image), [round(size * 256 / 224)], antialias=True)
        return TF.center_crop(image, [size, size])


def limit_aspect_ratio(images: Tensor, ratio: int = 16) -> Tensor:
    """Cuts `(…, H, W)` to at most `ratio` shorter sides: resizing a line of 10,000 pixels would take a gigabyte."""
    height, width = images.shape[-2:]
    longest = ratio * min(height, width)
    if max(height, width) <= longest:
        return images
    return TF.center_crop(images, [min(height, longest), min(width, longest)])
