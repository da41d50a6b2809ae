"""How fast training goes: images a second, seconds an epoch, and whether it waits for photos."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from resnet_pl.utils import rank_zero_print

# So long, and such a share of the time, that a word on it helps.
MIN_WAIT_SECONDS, MIN_WAIT_FRACTION = 60, 1 / 3


class Throughput(Callback):
    """Logs `images_per_second` of all processes and `epoch_seconds` after each training epoch, validation apart.

    In the end it says what would help, where the net has waited for photos much of the time.
    """

    def __init__(self) -> None:
        self._images = 0
        self._training = 0.0
        self._start = self._end = self._validation = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run that goes on in the middle of an epoch sees no start of that epoch."""
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See Lightning's Callback."""
        self._images, self._start = 0, time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """See Lightning's Callback."""
        self._images += len(batch.indices)
        if trainer.is_last_batch and pl_module.device.type == "cuda":
            # Until here it has only been told what to do.
            torch.cuda.synchronize(pl_module.device)
        self._end = time.perf_counter()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See Lightning's Callback."""
        self._validation = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Moves the epoch's times on by the validation's length: to Lightning it is part of the training epoch."""
        seconds = time.perf_counter() - self._validation
        self._start, self._end = self._start + seconds, self._end + seconds

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See Lightning's Callback."""
        seconds = max(self._end - self._start, 1e-9)
        self._training += seconds
        pl_module.log("throughput/epoch_seconds", seconds)
        pl_module.log("throughput/images_per_second", self._images * trainer.world_size / seconds)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See Lightning's Callback."""
        waited = getattr(trainer.train_dataloader, "wait_seconds", 0.0)
        # Data without such a cache, or in one already, has to wait.
        could = getattr(trainer.datamodule, "cache", True) is False
        if could and waited > max(MIN_WAIT_SECONDS, MIN_WAIT_FRACTION * self._training):
            # Of an epoch that was broken off there is the waiting alone.
            share = waited / max(self._training, waited)
            rank_zero_print(
                f"the net waited for photos in {share:.0%} of the time: --data.cache true decodes them once, "
                "for all later epochs and runs"
            )
