"""Precise BatchNorm: statistics over the training set, not a moving average, as in the paper's released models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from typing_extensions import override

from resnet_pl.data import ImageDataModule
from resnet_pl.models.normalize import BatchNorm
from resnet_pl.utils import progress, rank_zero_print


class PreciseBN(Callback):
    """Recomputes BatchNorm statistics on augmented training images before an evaluation.

    Args:
        members: models and their data modules.
        images: number of training images, rounded up to full batches, or all.
    """

    def __init__(
        self, members: Sequence[tuple[LightningModule, ImageDataModule]], images: int | Literal["all"] = "all"
    ) -> None:
        self.members, self.images = members, images

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for model, data in self.members:
            data.setup("fit")
            with trainer.precision_plugin.forward_context():
                count = update_bn(model, self._batches(trainer, data), model)
            rank_zero_print(f"BatchNorm statistics recomputed on {count:,} training images")

    on_validation_start = on_test_start

    def _batches(self, trainer: Trainer, data: ImageDataModule) -> Iterator[Tensor]:
        loader = data.train_dataloader()
        count = len(loader)
        if isinstance(self.images, int):
            count = min(count, -(-self.images // (loader.batch_size * trainer.world_size)))
        with progress("BatchNorm statistics", count) as advance:
            for batch in islice(loader, count):
                images = data.augment(trainer.strategy.batch_to_device(batch)).images
                assert isinstance(images, Tensor)  # only evaluation has several views of an image
                yield images
                advance(1)


@torch.no_grad()
def update_bn(model: nn.Module, batches: Iterable[Tensor], forward: Callable[[Tensor], object]) -> int:
    """Sets the running statistics of each BatchNorm layer to the mean and variance of its inputs over all batches.

    The inputs of all processes are included. As in training, each layer normalizes with the statistics of the batch.

    Args:
        model: model to update; all layers except BatchNorm, such as dropout, are in evaluation mode.
        batches: images in the form that `forward` accepts.
        forward: runs the model.

    Returns:
        The number of images over all processes; 0 if the model has no BatchNorm layer with running statistics.
    """
    layers = [m for m in model.modules() if isinstance(m, BatchNorm) and m.track_running_stats]
    if not layers:
        return 0
    sums: dict[BatchNorm, Tensor] = {}

    def add(layer: BatchNorm, inputs: tuple[Tensor]) -> None:
        """Adds count, sum and sum of squares of a layer's inputs, per channel."""
        # Apple's GPUs have no float64.
        dtype = torch.float32 if inputs[0].device.type == "mps" else torch.float64
        values = inputs[0].detach().to(dtype).transpose(0, 1).flatten(1)
        counts = values.new_full((len(values),), values.shape[1])
        new = torch.stack([counts, values.sum(1), values.square().sum(1)])
        sums[layer] = sums[layer] + new if layer in sums else new

    handles = [layer.register_forward_pre_hook(add) for layer in layers]
    model.eval()
    image_count = 0
    try:
        for layer in layers:
            layer.train()
        for images in batches:
            forward(images)
            image_count += len(images)
    finally:
        for handle in handles:
            handle.remove()
        model.eval()
    for layer, total in sums.items():
        count, first, second = _all_reduce(total)
        mean = first / count
        assert layer.running_mean is not None and layer.running_var is not None  # `track_running_stats`
        layer.running_mean.copy_(mean)
        # Unbiased, like torch's running variance.
        layer.running_var.copy_((second / count - mean.square()).clamp_min(0) * count / (count - 1).clamp_min(1))
    device = next(iter(model.buffers())).device
    return int(_all_reduce(torch.tensor(float(image_count), device=device)))


def _all_reduce(total: Tensor) -> Tensor:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(total)
    return total
