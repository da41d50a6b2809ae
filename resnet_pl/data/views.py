"""Test-time augmentation: several views of each image, whose predicted probabilities are averaged."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from resnet_pl.data.crops import Crop, ResizeCenterCrop
from resnet_pl.data.resizing import Size, height_width, limit_aspect_ratio, resize_to_cover

# Shorter sides of the paper's multi-scale test (§3.4), for an input size of 224 pixels.
SCALES = (224, 256, 384, 480, 640)
# Returns the views of `(…, 3, H, W)` uint8 images for an input size in pixels.
Views = Callable[[Tensor, Any], list[Tensor]]


class View(NamedTuple):
    """The views of a batch that have the same size.

    Attributes:
        images: `(M, 3, H, W)` uint8.
        owners: `(M,)` int64, position in the batch of each view's image.
    """

    images: Tensor
    owners: Tensor


def five_crops(images: Tensor, size: Size) -> list[Tensor]:
    """Returns the four corner crops and the center crop, shorter side resized to size × 256 / 224 (AlexNet §4.1)."""
    return list(TF.five_crop(resize_to_cover(images, size), list(height_width(size))))


def single(images: Tensor, size: Size, crop: Crop | None = None) -> list[Tensor]:
    """Returns one view: the center crop of an image, or another `crop` of it; images in memory, `(N, 3, H, W)`, are
    returned unchanged."""
    return [images if images.ndim == 4 else (crop or ResizeCenterCrop())(images, size)]


class WithHorizontalFlip:
    """Adds the horizontal flip of each view.

    Args:
        views: function that returns the views.
    """

    def __init__(self, views: Views) -> None:
        self.views = views

    def __call__(self, images: Tensor, size: Size) -> list[Tensor]:
        """Returns the views, then their flips."""
        views = self.views(images, size)
        return [*views, *(view.flip(-1) for view in views)]


class MultiScale:
    """The entire image at several scales, for fully convolutional evaluation (§3.4).

    Args:
        scales: lengths of the shorter side, pixels; by default the paper's, in proportion to the input size.
    """

    def __init__(self, scales: Sequence[int] | None = None) -> None:
        self.scales = scales

    def scales_for(self, size: int) -> list[int]:
        """Returns the lengths of the shorter side for an input size of `size` pixels."""
        return list(self.scales or (round(scale * size / SCALES[0]) for scale in SCALES))

    def __call__(self, images: Tensor, size: int) -> list[Tensor]:
        """Returns the image at each scale."""
        return [TF.resize(limit_aspect_ratio(images), [scale], antialias=True) for scale in self.scales_for(size)]


def group_by_size(views: Sequence[Sequence[Tensor]]) -> list[View]:
    """Stacks the views of a batch by size; images of different shapes can have views of different sizes.

    Args:
        views: `(3, H, W)` views of each image.
    """
    groups: dict[torch.Size, tuple[list[Tensor], list[int]]] = defaultdict(lambda: ([], []))
    for owner, image_views in enumerate(views):
        for view in image_views:
            images, owners = groups[view.shape]
            images.append(view)
            owners.append(owner)
    return [View(torch.stack(images), torch.tensor(owners)) for images, owners in groups.values()]
