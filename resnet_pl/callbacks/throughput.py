"""Training throughput, and whether data loading is the bottleneck."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from resnet_pl.callbacks.access import batch_size, get_datamodule, optional
from resnet_pl.utils import rank_zero_print

# Waiting time for data, in seconds and as a fraction of training time, above which a hint is printed.
MIN_WAIT_SECONDS, MIN_WAIT_FRACTION = 60, 1 / 3


@optional
class Throughput(Callback):
    """Logs `throughput/images_per_second` of all processes and `throughput/epoch_seconds` after every training epoch.

    Validation time is not included. At the end of the run a hint is printed if data loading was the bottleneck.
    """

    def __init__(self) -> None:
        self._images = 0
        self._training = 0.0
        self._start = self._end = self._validation = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the timer also in a run that resumes within an epoch, where `on_train_epoch_start` is not called."""
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the timer of the epoch."""
        self._images, self._start = 0, time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts the images of the batch; a GPU is synchronized at the last batch only."""
        self._images += batch_size(batch)
        if trainer.is_last_batch and pl_module.device.type == "cuda":
            # Kernels run asynchronously: without this the epoch would seem to end before they do.
            torch.cuda.synchronize(pl_module.device)
        self._end = time.perf_counter()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the timer of the validation."""
        self._validation = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Excludes the validation from the time of the epoch, of which it is a part in Lightning."""
        seconds = time.perf_counter() - self._validation
        self._start, self._end = self._start + seconds, self._end + seconds

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the throughput of the epoch."""
        seconds = max(self._end - self._start, 1e-9)
        self._training += seconds
        pl_module.log("throughput/epoch_seconds", seconds)
        pl_module.log("throughput/images_per_second", self._images * trainer.world_size / seconds)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints a hint if data loading was the bottleneck and a cache of decoded images is available but unused."""
        waited = getattr(trainer.train_dataloader, "wait_seconds", 0.0)
        cacheable = getattr(get_datamodule(trainer), "cache", True) is False
        if cacheable and waited > max(MIN_WAIT_SECONDS, MIN_WAIT_FRACTION * self._training):
            # An interrupted epoch has waiting time, but no training time.
            fraction = waited / max(self._training, waited)
            rank_zero_print(
                f"data loading took {fraction:.0%} of the time\n"
                "--data.cache true stores decoded images on disk, for all later epochs and runs"
            )
