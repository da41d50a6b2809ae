"""Measure the standard deviation of the response of each 3×3 layer (ResNet paper, Fig. 7).

The response is the output of BatchNorm, before the nonlinearity or the addition, in evaluation mode. The
results are saved as responses.csv and responses.png.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from torch import Tensor, nn

from resnet_pl.analysis.layers import LoadedRun, Measured, add_checkpoint_arguments, measure_models, plot_responses
from resnet_pl.data import ImageDataModule
from resnet_pl.data.dataset import ImageFileDataset
from resnet_pl.data.samplers import ShardedEpochSampler
from resnet_pl.models.normalize import BatchNorm
from resnet_pl.types import PositiveInt
from resnet_pl.utils import UserError, progress, rank_zero_print


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options of `paper responses`."""
    add_checkpoint_arguments(parser)
    split = "split to measure on; default: val if there is one, else test"
    parser.add_argument("--split", choices=["train", "val", "test"], help=split)
    number = "number of images, evenly spread over the split; default: all"
    parser.add_argument("--images", type=PositiveInt | None, default=None, help=number)


def run(settings: Namespace) -> None:
    """Runs the command."""
    measure_models(settings, "responses", _measure, plot_responses)


def _measure(loaded: LoadedRun, settings: Namespace) -> Measured:
    data, model, name = loaded.data, loaded.model, loaded.run.model
    split = settings.split or ("val" if "val" in data.splits else "test")
    images = data.split(split)
    count = min(settings.images or len(images), len(images))
    subset = "" if count == len(images) else f"{count:,} of "
    measured_on = f"{subset}{len(images):,} images, {data.describe_split(split)}"
    rank_zero_print(f"{name}: {measured_on}; {loaded.run.path}")
    batches = (batch.to(model.device) for batch in _evenly(data, images, count, name))
    stds = response_stds(model.backbone, batches, model)
    if not stds:
        raise UserError(
            f"{loaded.run.path}: {name} has no 3×3 convolution followed by BatchNorm\n"
            "give the checkpoint of a model with such layers, for example a ResNet"
        )
    return measured_on, {"std": stds}


def _evenly(data: ImageDataModule, images: Any, count: int, name: str) -> Iterator[Tensor]:
    """Yields batches of `count` images with evaluation transforms, evenly spread: files may be sorted by class."""
    if isinstance(images, ImageFileDataset):
        images = images.for_evaluation(data.eval_crop)
    loader = data.loader(images, ShardedEpochSampler(len(images)), data.eval_batch_size)
    chosen = torch.arange(count) * len(images) // count
    with progress(name, count) as advance:
        for batch, _, indices in loader.read(chosen.split(data.eval_batch_size), epoch=0):
            if len(indices):
                assert isinstance(batch, Tensor)  # lists of views occur only with test-time augmentation
                yield batch
                advance(len(batch))


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
