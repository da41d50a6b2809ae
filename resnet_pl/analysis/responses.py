"""Standard deviation of each 3×3 layer's response (Fig. 7), in evaluation mode, as responses.csv and responses.png."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
from jsonargparse import ArgumentParser, Namespace
from torch import Tensor, nn

from resnet_pl.analysis.layers import LoadedRun, Measured, add_checkpoint_arguments, measure_models, responses_picture
from resnet_pl.data import ImageDataModule
from resnet_pl.data.dataset import ImageFileDataset
from resnet_pl.data.loader import ShardedEpochSampler
from resnet_pl.models.normalize import BATCH_NORMS
from resnet_pl.types import PositiveInt
from resnet_pl.utils import UserError, progress, rank_zero_print


def add_arguments(parser: ArgumentParser) -> None:
    """The command's options."""
    add_checkpoint_arguments(parser)
    split = "images to run; val where there is one, else test, if not given"
    parser.add_argument("--split", choices=["train", "val", "test"], help=split)
    number = "how many of them, evenly spread over the split; all if not given"
    parser.add_argument("--images", type=PositiveInt | None, default=None, help=number)


def run(settings: Namespace) -> None:
    """Measures one net after another."""
    measure_models(settings, "responses", _measure, responses_picture)


def _measure(net: LoadedRun, settings: Namespace) -> Measured:
    data, model, name = net.data, net.model, net.run.net
    split = settings.split or ("val" if "val" in data.splits else "test")
    images = data.split(split)
    count = min(settings.images or len(images), len(images))
    share = "" if count == len(images) else f"{count:,} of "
    measured_on = f"{share}{len(images):,} images, {data.describe_split(split)}"
    rank_zero_print(f"{name}: {measured_on}; {net.run.path}")
    batches = (batch.to(model.device) for batch in _evenly(data, images, count, name))
    stds = response_stds(model.backbone, batches, model)
    if not stds:
        raise UserError(
            f"{net.run.path}: {name} has no 3×3 convolution with BatchNorm right after it\n"
            "Fig. 7 is about such layers; give a net that has them"
        )
    return measured_on, {"std": stds}


def _evenly(data: ImageDataModule, images: object, count: int, name: str) -> Iterator[Tensor]:
    """Batches of evaluation's view of `count` images, evenly spread, for photos may lie sorted by class."""
    if isinstance(images, ImageFileDataset):
        images = ImageFileDataset(images.root, images.names, images.labels, data.image_size)
    loader = data.loader(images, ShardedEpochSampler(len(images)), data.eval_batch_size)
    chosen = torch.arange(count) * len(images) // count
    with progress(name, count) as advance:
        for batch, _, indices in loader.read(chosen.split(data.eval_batch_size), epoch=0):
            if len(indices):
                yield batch
                advance(len(batch))


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
        elif isinstance(module, BATCH_NORMS):
            handles.append(module.register_forward_hook(add))
    try:
        for images in batches:
            forward(images)
    finally:
        for handle in handles:
            handle.remove()
    return {name: _std(*total.tolist()) for name, total in sums.items()}


def _std(count: float, first: float, second: float) -> float:
    # Rounding can leave a constant layer just below zero; the comparison keeps what is not a number.
    variance = second / count - (first / count) ** 2
    return 0.0 if variance < 0 else variance**0.5
