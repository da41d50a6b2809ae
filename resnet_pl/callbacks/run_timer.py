"""Measures all parts of a run in a short training."""

from __future__ import annotations

import math
import time
from statistics import median
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from typing_extensions import override

from resnet_pl.callbacks.resources import describe_memory, run_seconds
from resnet_pl.callbacks.timing import SKIPPED, BatchTimer

# Smallest number of measured training batches.
MIN_BATCHES = 3


class RunTimer(BatchTimer):
    """Measures all parts of a run.

    Args:
        seconds: smallest time of the measurement.

    Attributes:
        epoch_batches: training batches of an epoch; infinite if it has no end.
        run_batches: those of the run.
        memory: the largest amount of memory that the process has used, as text.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(SKIPPED, MIN_BATCHES, seconds, stops=True)
        self._called = self._ended = time.perf_counter()
        self.epoch_batches = self.run_batches = self.val_check_batch = math.inf
        self.memory = ""
        self._times: list[float] = []  # of the start of a validation, and of the end of each batch
        self._validations: list[tuple[float, float]] = []  # a batch; all but the batches
        self._epoch_ends: list[float] = []

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.epoch_batches, self.run_batches = run_seconds(trainer, 1)
        self.val_check_batch = trainer.val_check_batch or math.inf

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_start(trainer, pl_module)
        self._times = [time.perf_counter()]

    @override
    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        self._times.append(time.perf_counter())

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        self._ended = time.perf_counter()
        first, *others = self._times[1:] or self._times
        each = (others[-1] - first) / len(others) if others else first - self._times[0]
        self._validations.append((each, self._ended - self._times[0] - each * len(self._times[1:])))

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        self._ended = max(self._ended, self._pause) if not self._validations else self._ended

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        if trainer.current_epoch:
            self._epoch_ends.append(time.perf_counter() - self._ended)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epoch_ends.append(time.perf_counter() - self._ended)
        self.memory = describe_memory(pl_module)  # later the module is on the CPU

    def parts(self, val_batches: int, every_n_epochs: int | None) -> dict[str, float]:
        """Returns the predicted seconds of the parts of the run: training, validation, checkpoints, start.

        Args:
            val_batches: batches of a validation.
            every_n_epochs: the Trainer's `check_val_every_n_epoch`.
        """
        assert self.batch_seconds is not None
        epochs = self.run_batches / self.epoch_batches
        validations = self.run_batches / self.val_check_batch / (every_n_epochs or 1)
        each, rest = map(median, zip(*self._validations or [(0.0, 0.0)], strict=True))
        # The first and the last epoch end with images for the loggers.
        end = min(self._epoch_ends)
        extra = (self._epoch_ends[0] - end) * min(2, epochs)
        return {
            "training": self.batch_seconds * self.run_batches,
            "validation": (each * val_batches + rest) * validations,
            "checkpoints and logs": end * epochs + extra,
            "start": self.began - self._called - self.skipped * self.batch_seconds,
        }
