"""Test-time augmentation (TTA): class probabilities averaged over several views of each image."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from resnet_pl.data.views import View


def predict_with_tta(model: Callable[[Tensor], Tensor], images: Tensor | Sequence[View], count: int) -> Tensor:
    """Returns the class probabilities of a batch, averaged over the views of each image.

    Args:
        model: maps images `(N, 3, H, W)` to float32 probabilities `(N, K)`.
        images: one view of each image, `(N, 3, H, W)`, or several views.
        count: number of images in the batch, and the largest number of views per forward pass.

    Returns:
        `(count, K)` float32.
    """
    if isinstance(images, Tensor):
        return model(images)
    parts = [
        (model(views), owners)
        for group in images
        for views, owners in zip(group.images.split(count), group.owners.split(count), strict=True)
    ]
    total = parts[0][0].new_zeros(count, parts[0][0].shape[1])
    views_per_image = total.new_zeros(count)
    for part, owners in parts:
        total.index_add_(0, owners, part)
        views_per_image.index_add_(0, owners, torch.ones_like(part[:, 0]))
    return total / views_per_image[:, None]
