"""BatchNorm statistics over the training set instead of a moving average, as the paper's released nets carry them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def average_statistics(net: nn.Module, batches: Iterable[Tensor], forward: Callable[[Tensor], object]) -> int:
    """Sets each BatchNorm's running mean and variance to those of its inputs over all batches, of all processes.

    Every layer sees what it saw in training: inputs normalised by the statistics of their batch.

    Args:
        net: its other layers, dropout among them, stay in evaluation mode.
        batches: images, as `forward` takes them.
        forward: runs the net.

    Returns:
        Images seen by all processes; 0 where the net has no BatchNorm with running statistics.
    """
    layers = [m for m in net.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not layers:
        return 0
    sums: dict[nn.Module, Tensor] = {}

    def add(layer: nn.Module, inputs: tuple[Tensor]) -> None:
        """Adds number, sum and sum of squares of a layer's inputs, channel by channel."""
        # Apple's GPUs have no float64.
        exact = torch.float32 if inputs[0].device.type == "mps" else torch.float64
        values = inputs[0].detach().to(exact).transpose(0, 1).flatten(1)
        counted = values.new_full((len(values),), values.shape[1])
        new = torch.stack([counted, values.sum(1), values.square().sum(1)])
        sums[layer] = sums[layer] + new if layer in sums else new

    handles = [layer.register_forward_pre_hook(add) for layer in layers]
    net.eval()
    seen = 0
    try:
        for layer in layers:
            layer.train()
        for images in batches:
            forward(images)
            seen += len(images)
    finally:
        for handle in handles:
            handle.remove()
        net.eval()
    for layer, total in sums.items():
        count, first, second = _over_processes(total)
        mean = first / count
        layer.running_mean.copy_(mean)
        # Unbiased, as torch's own running variance.
        layer.running_var.copy_((second / count - mean.square()).clamp_min(0) * count / (count - 1).clamp_min(1))
    return int(_over_processes(torch.tensor(float(seen), device=layers[0].running_mean.device)))


def _over_processes(total: Tensor) -> Tensor:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(total)
    return total
