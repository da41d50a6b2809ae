"""What comes before a backbone: images to normalized floats."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

# For `isinstance`: their common base class is private to torch.
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class Normalize(nn.Module):
    """Turns images into what the backbone takes; mean and standard deviation are buffers, kept in the checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, 1, 1))
        self.register_buffer("std", torch.ones(1, 1, 1))
        self.register_load_state_dict_pre_hook(_take_shapes)

    def set(self, mean: Tensor, std: Tensor) -> None:
        """Takes `(C, 1, 1)` or `(C, H, W)` statistics of images in [0, 1]."""
        self.mean, self.std = mean.to(self.mean), std.to(self.std)

    def forward(self, images: Tensor) -> Tensor:
        """`(N, C, H, W)` uint8, or float in [0, 1], to normalized floats of the network's precision."""
        if images.dtype == torch.uint8:
            images = images.float() / 255
        mean, std = (_fitted(statistic, images.shape[-2:]) for statistic in (self.mean, self.std))
        return ((images - mean) / std).to(self.mean.dtype)


def _take_shapes(module: Normalize, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
    """Before a state is loaded: the statistics can be a value a channel or a whole mean image, as the state has it."""
    for name in ("mean", "std"):
        if (value := state_dict.get(prefix + name)) is not None:
            setattr(module, name, torch.empty_like(value, device=getattr(module, name).device))


def _fitted(statistic: Tensor, size: torch.Size) -> Tensor:
    """A statistic of each pixel stretched to images of another size, as a test at several scales has them."""
    if statistic.shape[-2:] in ((1, 1), size):
        return statistic
    return interpolate(statistic[None], size=size, mode="bilinear")[0]
