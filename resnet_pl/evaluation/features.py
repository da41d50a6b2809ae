"""Features of any network: its last feature map, and the inputs of its classifier head."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from resnet_pl.models.heads import find_classifier
from resnet_pl.utils import UserError, similar

if TYPE_CHECKING:
    from resnet_pl.classifier import ImageClassifier

MAX_EXTRA_TOKENS = 8  # of a transformer, before those of its patches: class token, distillation token, registers


class Grid(NamedTuple):
    """The spatial grid in the output of a layer.

    Attributes:
        layout: axes of the output: `NCHW`; `NHWC`, as in Swin transformers; `NTC`, the tokens of a transformer.
        channels: number of channels, C.
        height: number of rows, h.
        width: number of columns, w.
        extra: number of tokens before those of the grid.
    """

    layout: str
    channels: int
    height: int
    width: int
    extra: int = 0

    def to_map(self, output: Tensor) -> Tensor:
        """Converts an output of the layer to a feature map `(N, C, h, w)`."""
        if self.layout == "NTC":
            return output[:, self.extra :].transpose(1, 2).unflatten(2, (self.height, self.width))
        return output if self.layout == "NCHW" else output.permute(0, 3, 1, 2)


def find_grid(output: Any, images: Tensor, head_inputs: int) -> Grid | None:
    """Returns the grid in the output of a layer; None if it has none, or only one cell.

    A grid has the aspect ratio of the images. This excludes intermediate results of attention, such as queries
    `(N, heads, T, d)`.

    Args:
        output: what the layer returns.
        images: `(N, C, H, W)`.
        head_inputs: number of inputs of the classifier head; if two layouts are possible, the channels are these.
    """
    if not isinstance(output, Tensor) or len(output) != len(images) or output.ndim not in (3, 4):
        return None
    first, second, third = output.shape[1], output.shape[2], output.shape[-1]
    if output.ndim == 4:
        grids = [Grid("NCHW", first, second, third), Grid("NHWC", third, first, second)]
    else:
        sizes = [(first - extra, extra) for extra in range(MAX_EXTRA_TOKENS)]
        grids = [
            Grid("NTC", third, rows, tokens // rows, extra)
            for tokens, extra in sizes
            for rows in range(1, tokens + 1)
            if tokens % rows == 0
        ]
    fitting = [grid for grid in grids if _fits(grid, *images.shape[-2:])]
    return min(fitting, key=lambda grid: grid.channels != head_inputs, default=None)


def _fits(grid: Grid, height: int, width: int) -> bool:
    """Whether both sides of the images, divided by the same stride and rounded up or down, are those of the grid."""
    inside = grid.height <= height and grid.width <= width and grid.height * grid.width > 1
    return inside and abs(grid.height * width - grid.width * height) < max(height, width)


def find_feature_map(model: ImageClassifier, image: Tensor, name: str | None = None) -> tuple[str, Grid]:
    """Returns the name of the last layer of the backbone that has a feature map, and its grid.

    This is the last layer whose output has a grid, with the inputs of the classifier head as channels. A network with
    several layers in its head, such as VGG, has no such layer: of those, it is the last one with a grid. The logits
    must depend on the grid: in the last block of a transformer, only the class token is used.

    Args:
        model: the model, in evaluation mode.
        image: a batch of one image, `(1, C, H, W)` float, which does not require a gradient.
        name: a layer to use in place of the last one.

    Raises:
        UserError: the network has no feature map, or not in the layer of this name.
    """
    head_inputs = find_classifier(model.backbone)[1].weight.shape[1]
    outputs: dict[str, tuple[Tensor, Grid]] = {}  # in the order of execution

    def keep(name: str, module: Any, args: Any, output: Any) -> None:
        outputs.pop(name, None)
        if (grid := find_grid(output, image, head_inputs)) is not None:
            outputs[name] = output, grid

    layers = {name: layer for name, layer in model.backbone.named_modules() if name}
    handles = [layer.register_forward_hook(partial(keep, name)) for name, layer in layers.items()]
    try:
        score = model(image.requires_grad_()).square().sum()
    finally:
        for handle in handles:
            handle.remove()
    tensors = [output for output, _ in outputs.values()]
    gradients = torch.autograd.grad(score, tensors, allow_unused=True) if tensors else []
    found = {
        each: grid
        for (each, (_, grid)), gradient in zip(outputs.items(), gradients, strict=True)
        if gradient is not None and grid.to_map(gradient).any()
    }
    if name is not None:
        if name in found:
            return name, found[name]
        near = similar(name, found, 3) or list(found)[-3:]
        what = "has no feature map" if name in layers else "is not a layer of the network"
        raise UserError(f"heat maps: {name} {what}" + (f"\nuse one of {', '.join(near)}" if near else ""))
    last = [item for item in found.items() if item[1].channels == head_inputs]
    last = last or [item for item in found.items() if item[1].layout == "NCHW"]
    if not last:
        raise UserError(
            f"heat maps: {type(model.backbone).__name__} has no feature map\n"
            "they show where in a map of features the evidence is; use a network with convolutions or patches"
        )
    return last[-1]


@contextmanager
def collect_features(model: ImageClassifier) -> Iterator[list[Tensor]]:
    """Yields a list to which each forward pass inside the block adds its features: the inputs of the classifier head.

    They are `(N, C)` float32 on the CPU. The inputs of a convolutional head are averaged over the positions.
    """
    features: list[Tensor] = []

    def add(head: Any, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].detach().float()
        features.append((values.mean((2, 3)) if isinstance(head, nn.Conv2d) else values).cpu())

    handle = find_classifier(model.backbone)[1].register_forward_pre_hook(add)
    try:
        yield features
    finally:
        handle.remove()
