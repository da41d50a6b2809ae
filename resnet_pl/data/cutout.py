"""Augmentation that hides a part of every image."""

from __future__ import annotations

import torch
from torch import Tensor

from resnet_pl.data.draws import Draws
from resnet_pl.data.transforms import BatchTransform, TrainingData


class Cutout(BatchTransform):
    """Puts the mean into a square of every image (DeVries and Taylor, 2017); its centre may be anywhere.

    Args:
        size: side of the square, pixels; what lies outside the image is lost.
    """

    def __init__(self, size: int = 16) -> None:
        if size < 1:
            raise ValueError(f"Cutout: size is {size}, it must be 1 or more")
        self.size = size
        self.mean = torch.zeros(1, 1, 1)

    def fit(self, data: TrainingData) -> None:
        """Takes the mean, which is nothing to the net."""
        self.mean = data.normalization()[0]

    def __call__(self, images: Tensor, labels: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """See `BatchTransform`."""
        inside = []
        for length in images.shape[-2:]:
            first = draws.integers(length)[:, None] - self.size // 2
            place = torch.arange(length, device=images.device)
            inside.append((place >= first) & (place < first + self.size))
        hole = inside[0][:, None, :, None] & inside[1][:, None, None, :]
        return torch.where(hole, self.mean.to(images), images), labels
