"""BatchNorm statistics measured anew before a test."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from resnet_pl.data import ImageDataModule
from resnet_pl.evaluation.precise_bn import average_statistics
from resnet_pl.utils import progress, tell


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
                seen = average_statistics(net, self._batches(trainer, net, data), net)
            tell(f"BatchNorm statistics averaged over {seen:,} training images")

    on_validation_start = on_test_start

    def _batches(self, trainer: Trainer, net: LightningModule, data: ImageDataModule) -> Iterator[Tensor]:
        loader = data.train_dataloader()
        each = loader.batch_size * trainer.world_size
        count = len(loader) if self.images == "all" else min(len(loader), -(-self.images // each))
        with progress("BatchNorm statistics", count) as advance:
            for batch in islice(loader, count):
                yield data.augment(trainer.strategy.batch_to_device(batch)).images
                advance(1)
