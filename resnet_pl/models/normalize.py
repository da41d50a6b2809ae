"""Normalization of the images in front of a backbone."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

# For annotations and `isinstance`: the common base class is private to torch.
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm


class Normalize(nn.Module):
    """Scales images to [0, 1] and normalizes them; mean and standard deviation are buffers, saved in checkpoints."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, 1, 1))
        self.register_buffer("std", torch.ones(1, 1, 1))
        self.register_load_state_dict_pre_hook(_resize_buffers)

    def set(self, mean: Tensor, std: Tensor) -> None:
        """Sets the statistics, of images in [0, 1]: one value per channel `(C, 1, 1)`, or images `(C, H, W)`."""
        self.mean, self.std = mean.to(self.mean), std.to(self.std)

    def forward(self, images: Tensor) -> Tensor:
        """Maps `(N, C, H, W)` images, uint8 or float in [0, 1], to normalized floats of the model's precision."""
        if images.dtype == torch.uint8:
            images = images.float() / 255
        mean, std = (_resize(statistic, images.shape[-2:]) for statistic in (self.mean, self.std))
        return ((images - mean) / std).to(self.mean.dtype)


def _resize_buffers(module: Normalize, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
    """Gives the buffers the shapes of the state dict before it is loaded: per channel or per pixel."""
    for name in ("mean", "std"):
        if (value := state_dict.get(prefix + name)) is not None:
            # In the precision of the module: the other weights are converted to it too.
            own = getattr(module, name)
            setattr(module, name, own.new_empty(value.shape))


def _resize(statistic: Tensor, size: torch.Size) -> Tensor:
    """Resizes a per-pixel statistic to images of another size, as in multi-scale evaluation."""
    if statistic.shape[-2:] in ((1, 1), size):
        return statistic
    return interpolate(statistic[None], size=size, mode="bilinear")[0]
