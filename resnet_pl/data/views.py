"""What a test looks at: one view of an image, or several whose scores are averaged."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from resnet_pl.data.crops import ResizeCenterCrop, limit_aspect_ratio

# Shorter sides of the paper's multi-scale test (§3.4), for a net of 224 pixels.
SCALES = (224, 256, 384, 480, 640)
# Cuts `(…, 3, H, W)` uint8 into views for a net of so many pixels.
Views = Callable[[Tensor, int], list[Tensor]]


class View(NamedTuple):
    """Views of one size.

    Attributes:
        images: `(M, 3, H, W)` uint8.
        owners: `(M,)` int64, position in the batch of the image that each is a view of.
    """

    images: Tensor
    owners: Tensor


def five_crops(images: Tensor, size: int) -> list[Tensor]:
    """The four corners and the centre, after the shorter side is resized to size × 256 / 224 (AlexNet's test)."""
    resized = TF.resize(limit_aspect_ratio(images), [round(size * 256 / 224)], antialias=True)
    return list(TF.five_crop(resized, [size, size]))


def single(images: Tensor, size: int) -> list[Tensor]:
    """Evaluation's usual view: the center crop of a photo; images in memory, `(N, 3, H, W)`, as they are."""
    return [images if images.ndim == 4 else ResizeCenterCrop()(images, size)]


class WithHorizontalFlip:
    """Views, and the mirror image of each.

    Args:
        views: makes the views.
    """

    def __init__(self, views: Views) -> None:
        self.views = views

    def __call__(self, images: Tensor, size: int) -> list[Tensor]:
        """See `Views`."""
        own = self.views(images, size)
        return [*own, *(view.flip(-1) for view in own)]


class MultiScale:
    """The whole image, its shorter side resized to several lengths, for a net that takes any size (§3.4).

    Args:
        scales: shorter sides, pixels; the paper's in proportion to the net's size if not given.
    """

    def __init__(self, scales: Sequence[int] | None = None) -> None:
        self.scales = scales

    def scales_for(self, size: int) -> list[int]:
        """The shorter sides for a net of so many pixels."""
        return list(self.scales or (round(scale * size / SCALES[0]) for scale in SCALES))

    def __call__(self, images: Tensor, size: int) -> list[Tensor]:
        """See `Views`."""
        return [TF.resize(limit_aspect_ratio(images), [scale], antialias=True) for scale in self.scales_for(size)]


def group_by_size(views: Sequence[Sequence[Tensor]]) -> list[View]:
    """Stacks the views of a batch by size; photos of other shapes have views of other sizes.

    Args:
        views: `(3, H, W)` views of each image.
    """
    groups: dict[torch.Size, tuple[list[Tensor], list[int]]] = defaultdict(lambda: ([], []))
    for owner, own in enumerate(views):
        for view in own:
            images, owners = groups[view.shape]
            images.append(view)
            owners.append(owner)
    return [View(torch.stack(images), torch.tensor(owners)) for images, owners in groups.values()]
