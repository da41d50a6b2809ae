"""Crops of images to the network's input size; they run in the worker processes."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as TF
from typing_extensions import override

from resnet_pl.data.decode import EncodedImage
from resnet_pl.data.jpeg import REDUCTIONS

# Top, left, height and width in pixels.
Box = tuple[int, int, int, int]


class Crop:
    """Base class of crops: chooses a box of the image and resizes it to a square. Name your own subclass in YAML.

    Attributes:
        draws_from_torch_only: whether the crop draws from torch's global generator and no other. Then the generators of
            Python and NumPy are not seeded, which saves 1 % of the loading time. Each subclass must set this itself.
    """

    draws_from_torch_only: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Not inherited: a subclass of a crop that sets it may draw from any generator.
        cls.draws_from_torch_only = vars(cls).get("draws_from_torch_only", False)

    def get_params(self, height: int, width: int, size: int) -> Box:
        """Returns the box (top, left, height, width) in pixels; random crops draw from torch's global generator.

        Args:
            height: height of the image, pixels.
            width: width of the image, pixels.
            size: height and width of the network's input, pixels.
        """
        raise NotImplementedError

    def __call__(self, image: Tensor, size: int) -> Tensor:
        """Crops `(3, H, W)` uint8 to the box, then resizes it to `(3, size, size)` uint8."""
        return self._resize(image, self._draw_box(image.shape[-2], image.shape[-1], size), size)

    @property
    def reads_only_its_box(self) -> bool:
        """Whether the crop is defined by `get_params` alone; False for a subclass with its own `__call__`."""
        return type(self).__call__ is Crop.__call__

    def read(self, encoded: EncodedImage, size: int) -> Tensor:
        """Decodes and crops a file; decodes a JPEG at a half, quarter or eighth if the box still has `size` pixels.

        The box is chosen in the full image, so that it is the same as without the reduction. A subclass with its own
        `__call__` gets the full image.

        Args:
            encoded: the file.
            size: height and width of the network's input, pixels.

        Returns:
            `(3, size, size)` uint8.
        """
        if encoded.jpeg_size is None or not self.reads_only_its_box:
            return self(encoded.decode(), size)
        box = self._draw_box(*encoded.jpeg_size, size)
        reduction = next((each for each in REDUCTIONS if min(box[2:]) >= each * size), 1)
        image = encoded.decode(reduction)
        # A file that only Pillow reads is decoded in full.
        return self._resize(image, box if image.shape[1:] == encoded.jpeg_size else reduce_box(box, reduction), size)

    def _draw_box(self, height: int, width: int, size: int) -> Box:
        """Returns the box; raises ValueError if it is outside the image."""
        top, left, box_height, box_width = box = self.get_params(height, width, size)
        if min(top, left) < 0 or top + box_height > height or left + box_width > width:
            raise ValueError(
                f"{type(self).__name__}.get_params: box {box} is outside an image of {(height, width)} pixels"
            )
        return box

    def _resize(self, image: Tensor, box: Box, size: int) -> Tensor:
        top, left, height, width = box
        cropped = image[None, :, top : top + height, left : left + width]
        # Decoders return channels_last; resizing it is a third faster than resizing contiguous channels.
        cropped = cropped.contiguous(memory_format=torch.channels_last)
        # The kernel of torchvision's resize, without its dispatch overhead (3 % of the loading time).
        return F.interpolate(cropped, [size, size], mode="bilinear", antialias=True)[0]


def reduce_box(box: Box, reduction: int) -> Box:
    """Returns a box of an image as a box of the image reduced by a factor; its edges are rounded to pixels."""
    top, left, height, width = box
    edges = [(2 * edge + reduction) // (2 * reduction) for edge in (top, left, top + height, left + width)]
    return edges[0], edges[1], edges[2] - edges[0], edges[3] - edges[1]


def _randint(low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, ()))


class ScaleCrop(Crop):
    """The paper's scale augmentation (§3.4): shorter side resized to a random length, then a random square crop.

    Args:
        min_side: minimum length of the shorter side for a crop of 224 pixels; scaled in proportion for other sizes.
        max_side: maximum length of the shorter side for a crop of 224 pixels.
    """

    draws_from_torch_only = True

    def __init__(self, min_side: int = 256, max_side: int = 480) -> None:
        if not 224 <= min_side <= max_side:
            raise ValueError(
                f"ScaleCrop: min_side {min_side} must be 224 or more, and max_side {max_side} not below min_side"
            )
        self.min_side, self.max_side = min_side, max_side

    @override
    def get_params(self, height: int, width: int, size: int) -> Box:
        short = min(height, width)
        side = max(1, round(short * 224 / _randint(self.min_side, self.max_side)))
        return _randint(0, height - side), _randint(0, width - side), side, side


class RandomResizedCrop(Crop):
    """Crop with random area and aspect ratio, as torchvision's RandomResizedCrop.

    Args:
        min_area: minimum fraction of the image's area.
        max_area: maximum fraction of the image's area.
        min_ratio: minimum width / height.
        max_ratio: maximum width / height.
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
        """Draws the same box as torchvision, whose `make_params` is much slower."""
        for _ in range(10):
            area = height * width * torch.empty(1).uniform_(*self.area).item()
            ratio = torch.empty(1).uniform_(*self.log_ratio).exp_().item()
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return _randint(0, height - h), _randint(0, width - w), h, w
        # The largest centered box.
        w, h = min(width, round(height * self.ratio[1])), min(height, round(width / self.ratio[0]))
        return (height - h) // 2, (width - w) // 2, h, w


class ResizeCenterCrop(Crop):
    """The evaluation crop: shorter side resized to size × 256 / 224, then the center square.

    As a training crop it disables random cropping.
    """

    draws_from_torch_only = True

    def __call__(self, image: Tensor, size: int) -> Tensor:
        """Resizes `(3, H, W)` uint8 first, then crops it to `(3, size, size)`, as for published accuracies."""
        image = TF.resize(limit_aspect_ratio(image), [round(size * 256 / 224)], antialias=True)
        return TF.center_crop(image, [size, size])


def limit_aspect_ratio(images: Tensor, ratio: int = 16) -> Tensor:
    """Center-crops `(…, H, W)` with an aspect ratio above `ratio`, which would need gigabytes to resize."""
    height, width = images.shape[-2:]
    longest = ratio * min(height, width)
    if max(height, width) <= longest:
        return images
    return TF.center_crop(images, [min(height, longest), min(width, longest)])
