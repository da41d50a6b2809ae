"""Seeds the random numbers of an epoch for data that does not seed them itself."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from resnet_pl.data.rng import seed_generators
from resnet_pl.utils import rank_zero_print


class EpochSeed(Callback):
    """Makes the order of a shuffled DataLoader, its transforms and dropout a function of the seed and the epoch.

    A run that is resumed at the end of an epoch then equals one that was not interrupted. Within an epoch a DataLoader
    cannot be resumed: it starts from its beginning. `ImageDataModule` does not need this callback.

    Args:
        seed: the training seed.
    """

    def __init__(self, seed: int) -> None:
        self.seed, self.epoch = seed, 0
        self._seeded = False

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epoch = state_dict["epoch"]

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning creates the first iterator of a run, which draws the seed of the workers, before the first epoch.
        seed_generators(self.seed, self.epoch, trainer.global_rank)
        self._seeded = True

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        batches = trainer.global_step * trainer.accumulate_grad_batches
        if math.isfinite(trainer.num_training_batches) and batches % trainer.num_training_batches:
            rank_zero_print("note: resuming within an epoch: this data loader starts its epoch from the beginning")

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.epoch = trainer.current_epoch
        if not self._seeded:
            seed_generators(self.seed, self.epoch, trainer.global_rank)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.epoch, self._seeded = trainer.current_epoch + 1, False
