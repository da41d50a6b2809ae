"""Augmentation that hides a part of every image."""

from __future__ import annotations

import torch
from torch import Tensor

from resnet_pl.data.rng import Draws
from resnet_pl.data.transforms import MeanFilled


class Cutout(MeanFilled):
    """Puts the mean into a square of every image (DeVries and Taylor, 2017); its centre may be anywhere.

    Args:
        size: side of the square, pixels; what lies outside the image is lost.
    """

    def __init__(self, size: int = 16) -> None:
        if size < 1:
            raise ValueError(f"Cutout: size is {size}, it must be 1 or more")
        super().__init__()
        self.size = size

    def __call__(self, images: Tensor, labels: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """See `BatchTransform`."""
        inside = []
        for length in images.shape[-2:]:
            first = draws.integers(length)[:, None] - self.size // 2
            place = torch.arange(length, device=images.device)
            inside.append((place >= first) & (place < first + self.size))
        hole = inside[0][:, None, :, None] & inside[1][:, None, None, :]
        return torch.where(hole, self.mean_on(images.device), images), labels
