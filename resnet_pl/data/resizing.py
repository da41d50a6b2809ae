"""Resizing and cropping as in the evaluation, for uint8 images; also for float images while a network is exported."""

from __future__ import annotations

from collections.abc import Sequence
from operator import floordiv
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as TF

# Size of the network's input in pixels: the side of a square, or height and width.
Size = int | tuple[int, int]


# An integer, which is a `torch.SymInt` while a crop is exported.
Length = Any


def height_width(size: Size) -> tuple[int, int]:
    """Returns height and width of a size."""
    return (size, size) if isinstance(size, int) else size


def resize_to_cover(images: Tensor, size: Size) -> Tensor:
    """Resizes `(…, H, W)` to the smallest size that contains the network's input enlarged by 256 / 224."""
    images = limit_aspect_ratio(images)
    rows, columns = (rounded(side * 256, 224) for side in height_width(size))
    height, width = images.shape[-2:]
    # The length of the other side is rounded, for a square it is rounded down, as torchvision's Resize does.
    divide = floordiv if rows == columns else rounded
    covered = [
        torch.sym_max(rows, divide(height * columns, width)),
        torch.sym_max(columns, divide(width * rows, height)),
    ]
    # torchvision's function compares height and width, which cannot be exported.
    return interpolate(images, covered) if images.is_floating_point() else TF.resize(images, covered, antialias=True)


def interpolate(images: Tensor, size: Sequence[Length]) -> Tensor:
    """Resizes `(N, C, H, W)` with antialiasing; floats, which are exported, are rounded as uint8 images are.

    For uint8 torch resizes the width first, and rounds to whole numbers before it resizes the height.
    """
    if not images.is_floating_point():
        return F.interpolate(images, list(size), mode="bilinear", antialias=True)
    rows, columns = size
    for shape in ((images.shape[-2], columns), (rows, columns)):
        images = (F.interpolate(images, shape, mode="bilinear", antialias=True) + 0.5).floor()
    return images


def limit_aspect_ratio(images: Tensor, ratio: int = 16) -> Tensor:
    """Center-crops `(…, H, W)` with an aspect ratio above `ratio`, which would need gigabytes to resize."""
    height, width = images.shape[-2:]
    longest = ratio * torch.sym_min(height, width)
    if isinstance(longest, int) and max(height, width) <= longest:  # not while it is exported, for any size
        return images
    return center_crop(images, torch.sym_min(height, longest), torch.sym_min(width, longest))


def center_crop(images: Tensor, height: Length, width: Length) -> Tensor:
    """Returns the center of `(…, H, W)`; an odd margin is divided as in torchvision's CenterCrop."""
    vertical, horizontal = images.shape[-2] - height, images.shape[-1] - width
    top, left = rounded(vertical, 2), rounded(horizontal, 2)
    # Padding by a negative number of pixels crops. Slices could not be exported for images of any size.
    return F.pad(images, [-left, left - horizontal, -top, top - vertical])


def rounded(numerator: Length, denominator: Length) -> Length:
    """Returns a fraction rounded to an integer, a half to the even one as Python's `round` does.

    It has no branch, so that it can be exported for images of any size.
    """
    doubled, divisor = 2 * numerator + denominator, 2 * denominator
    half_up, is_half = doubled // divisor, 1 - torch.sym_min(1, doubled % divisor)
    return half_up - is_half * (half_up % 2)
