"""How strongly the layers of a net respond (§4.2, Fig. 7)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def response_stds(net: nn.Module, batches: Iterable[Tensor], forward: Callable[[Tensor], object]) -> dict[str, float]:
    """Standard deviation of each 3×3 layer's response: its BatchNorm's output, before a nonlinearity or an addition.

    Args:
        net: any net, in evaluation mode.
        batches: images, as `forward` takes them; how they are cut into batches makes no difference.
        forward: runs the net.

    Returns:
        The deviation over all images, positions and channels of each 3×3 convolution whose output goes straight into
        a BatchNorm, under the convolution's name, in the order of execution.
    """
    sums: dict[str, Tensor] = {}

    def mark(name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        output.convolution = name

    def add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Adds what comes of a marked tensor now, for a ReLU or an addition in place changes it."""
        if name := getattr(inputs[0], "convolution", None):
            values = output.double()
            new = torch.stack([values.new_tensor(values.numel()), values.sum(), values.square().sum()])
            sums[name] = sums.get(name, 0) + new

    handles = []
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            handles.append(module.register_forward_hook(partial(mark, name)))
        elif isinstance(module, _BatchNorm):
            handles.append(module.register_forward_hook(add))
    try:
        for images in batches:
            forward(images)
    finally:
        for handle in handles:
            handle.remove()
    return {name: _std(*total.tolist()) for name, total in sums.items()}


def _std(count: float, first: float, second: float) -> float:
    # Rounding can leave a constant layer just below nought; the comparison keeps what is not a number.
    variance = second / count - (first / count) ** 2
    return 0.0 if variance < 0 else variance**0.5
