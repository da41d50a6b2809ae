"""BatchNorm statistics over the training set instead of a moving average, as the paper's released nets carry them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from resnet_pl.data import ImageDataModule
from resnet_pl.models.normalize import BATCH_NORMS
from resnet_pl.utils import progress, rank_zero_print


class PreciseBN(Callback):
    """Averages the BatchNorm statistics of nets over their training images, augmented as in training, before a test.

    Args:
        members: nets and their data.
        images: how many training images, or all; whole batches are used.
    """

    def __init__(
        self, members: Sequence[tuple[LightningModule, ImageDataModule]], images: int | Literal["all"] = "all"
    ) -> None:
        self.members, self.images = members, images

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See Lightning's Callback."""
        for net, data in self.members:
            data.setup("fit")
            with trainer.precision_plugin.forward_context():
                seen = update_bn(net, self._batches(trainer, net, data), net)
            rank_zero_print(f"BatchNorm statistics averaged over {seen:,} training images")

    on_validation_start = on_test_start

    def _batches(self, trainer: Trainer, net: LightningModule, data: ImageDataModule) -> Iterator[Tensor]:
        loader = data.train_dataloader()
        each = loader.batch_size * trainer.world_size
        count = len(loader) if self.images == "all" else min(len(loader), -(-self.images // each))
        with progress("BatchNorm statistics", count) as advance:
            for batch in islice(loader, count):
                yield data.augment(trainer.strategy.batch_to_device(batch)).images
                advance(1)


@torch.no_grad()
def update_bn(net: nn.Module, batches: Iterable[Tensor], forward: Callable[[Tensor], object]) -> int:
    """Sets each BatchNorm's running mean and variance to those of its inputs over all batches, of all processes.

    Every layer sees what it saw in training: inputs normalised by the statistics of their batch.

    Args:
        net: its other layers, dropout among them, stay in evaluation mode.
        batches: images, as `forward` takes them.
        forward: runs the net.

    Returns:
        Images seen by all processes; 0 where the net has no BatchNorm with running statistics.
    """
    layers = [m for m in net.modules() if isinstance(m, BATCH_NORMS) and m.track_running_stats]
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
