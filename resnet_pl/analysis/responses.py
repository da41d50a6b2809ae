"""Measure the standard deviation of the response of each 3×3 layer (ResNet paper, Fig. 7).

The response is the output of BatchNorm, before the nonlinearity or the addition, in evaluation mode. The
results are saved as responses.csv and responses.png.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from jsonargparse import ArgumentParser, Namespace
from torch import Tensor, nn

from resnet_pl.analysis.evaluation_images import add_image_arguments, evaluation_images
from resnet_pl.analysis.layers import (
    LoadedRun,
    Measured,
    add_checkpoint_arguments,
    measure_models,
    plot_responses,
)
from resnet_pl.models.normalize import BatchNorm
from resnet_pl.utils import UserError


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options of `paper responses`."""
    add_checkpoint_arguments(parser)
    add_image_arguments(parser)


def run(settings: Namespace) -> None:
    """Runs the command."""
    measure_models(settings, "responses", _measure, plot_responses)


def _measure(loaded: LoadedRun, settings: Namespace) -> Measured:
    model, name, images = loaded.model, loaded.run.model, evaluation_images(loaded, settings)
    stds = response_stds(model.backbone, (batch for batch, _ in images.batches(name)), model)
    if not stds:
        raise UserError(
            f"{loaded.run.path}: {name} has no 3×3 convolution followed by BatchNorm\n"
            "give the checkpoint of a model with such layers, for example a ResNet"
        )
    return images.described, {"std": stds}


@torch.no_grad()
def response_stds(model: nn.Module, batches: Iterable[Tensor], forward: Callable[[Tensor], object]) -> dict[str, float]:
    """Returns the standard deviation of the response of each 3×3 layer: the output of the BatchNorm after it.

    Args:
        model: the model, in evaluation mode.
        batches: images, as `forward` takes them; the result does not depend on the batch size.
        forward: runs the model on a batch.

    Returns:
        The standard deviation over all images, positions and channels, by the name of the convolution, in order of
        execution. Only 3×3 convolutions whose output is the input of a BatchNorm are measured.
    """
    sums: dict[str, Tensor] = {}

    def mark(name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        output.convolution = name  # pyright: ignore[reportAttributeAccessIssue] - read by the next hook

    def add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Sums the values at once, because an in-place ReLU or addition may change them later."""
        if name := getattr(inputs[0], "convolution", None):
            values = output.double()
            new = torch.stack([values.new_tensor(values.numel()), values.sum(), values.square().sum()])
            sums[name] = sums.get(name, 0) + new

    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            handles.append(module.register_forward_hook(partial(mark, name)))
        elif isinstance(module, BatchNorm):
            handles.append(module.register_forward_hook(add))
    try:
        for images in batches:
            forward(images)
    finally:
        for handle in handles:
            handle.remove()
    return {name: _std(*total.tolist()) for name, total in sums.items()}


def _std(count: float, first: float, second: float) -> float:
    # Rounding can make the variance of a constant layer slightly negative; NaN is returned as NaN.
    variance = second / count - (first / count) ** 2
    return 0.0 if variance < 0 else variance**0.5
