"""Pixel statistics of the training images, for normalization and color augmentation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from resnet_pl.data.decode import options_for
from resnet_pl.data.resizing import Size, height_width
from resnet_pl.utils import UserError

Mean = list[float] | Literal["pixel", "channel"]
Std = list[float] | Literal["channel"] | None


@dataclass
class Statistics:
    """Statistics of images in [0, 1].

    Attributes:
        mean_image: `(C, H, W)` mean per pixel.
        covariance: `(C, C)` covariance of the channels over all pixels.
    """

    mean_image: Tensor
    covariance: Tensor

    @property
    def mean(self) -> Tensor:
        """`(C, 1, 1)` mean per channel."""
        return self.mean_image.mean((1, 2), keepdim=True)

    @property
    def std(self) -> Tensor:
        """`(C, 1, 1)` standard deviation per channel over all pixels."""
        # At least one gray level: for constant images it would be 0, and normalization divides by it.
        return self.covariance.diag().clamp(min=1 / 255**2).sqrt()[:, None, None]

    @classmethod
    def of(cls, batches: Iterator[Tensor]) -> Statistics:
        """Computes the statistics of batches of `(N, C, H, W)` uint8 images of one size, in float64."""
        count, total, products = 0, torch.zeros(()), torch.zeros(())
        for batch in batches:
            pixels = batch.double() / 255
            count += len(batch)
            total = total + pixels.sum(0)
            products = products + torch.einsum("nchw,ndhw->cd", pixels, pixels)
        mean_image = total / count
        mean = mean_image.mean((1, 2))
        covariance = products / (count * mean_image[0].numel()) - torch.outer(mean, mean)
        return cls(mean_image.float(), covariance.float())


def check_input(image_size: Size, mean: Mean, std: Std, channels: int = 3) -> Size:
    """Returns the size, as one number for a square.

    Raises:
        ValueError: a size or a standard deviation is too small.
        UserError: the mean or the standard deviation has another number of values than there are channels.
    """
    for name, values in {"mean": mean, "std": std}.items():
        if isinstance(values, list) and len(values) != channels:
            needed = "three values: red, green and blue" if channels == 3 else f"{channels}, or `channel` to measure it"
            fix = "remove the option for the default" if channels == 3 else options_for(channels)
            raise UserError(f"data.{name} is {values}, it needs {needed}\n{fix}")
    if isinstance(std, list) and not min(std) > 0:
        raise ValueError(f"std is {std}, each value must be above 0")
    return check_size(image_size, "image_size")


def check_size(size: Size, name: str) -> Size:
    """Returns the size, as one number for a square; raises ValueError with the name of the argument if it is small."""
    rows, columns = height_width(size)
    if min(rows, columns) < 8:
        raise ValueError(f"{name} is {size}, it must be 8 or more")
    return rows if rows == columns else (rows, columns)


def normalization(mean: Mean, std: Std, measure: Callable[[], Statistics]) -> tuple[Tensor, Tensor]:
    """Returns mean and standard deviation, each `(C, 1, 1)` or `(C, H, W)`; calls `measure` only if needed."""
    # Lightning creates tensors of `configure_model` on the GPU; the images are on the CPU.
    with torch.device("cpu"):
        if mean == "pixel":
            subtracted = measure().mean_image
        else:
            subtracted = measure().mean if mean == "channel" else torch.tensor(mean)[:, None, None]
        if std is None:
            return subtracted, torch.ones(1, 1, 1)
        return subtracted, measure().std if std == "channel" else torch.tensor(std)[:, None, None]
