"""Scores of a net: the softmax of its logits, averaged over the views of each image."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from resnet_pl.data.views import View


def predict_with_tta(net: Callable[[Tensor], Tensor], images: Tensor | Sequence[View], count: int) -> Tensor:
    """Class probabilities of a batch.

    Args:
        net: `(N, 3, H, W)` images to `(N, K)` logits.
        images: one view of each image, `(N, 3, H, W)`, or several.
        count: images in the batch; no more views than these are given to the net at once.

    Returns:
        `(count, K)` float32, each row's sum 1.
    """

    if isinstance(images, Tensor):
        return net(images).float().softmax(1)
    parts = [
        (net(views).float().softmax(1), owners)
        for group in images
        for views, owners in zip(group.images.split(count), group.owners.split(count), strict=True)
    ]
    total = parts[0][0].new_zeros(count, parts[0][0].shape[1])
    seen = total.new_zeros(count)
    for part, owners in parts:
        total.index_add_(0, owners, part)
        seen.index_add_(0, owners, torch.ones_like(part[:, 0]))
    return total / seen[:, None]
