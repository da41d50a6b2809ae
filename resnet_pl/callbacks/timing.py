"""Measurements within a training: the time of a batch, and the loss at each learning rate of a range test."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer
from typing_extensions import override

from resnet_pl.callbacks.access import batch_size, is_optimizer_step

# Batches that are not measured, because they compile, fill queues and choose algorithms, and batches that are.
SKIPPED, MEASURED = 3, 10
# Of a range test: weight of the earlier losses in the smoothed one, and its growth that counts as diverged.
SMOOTHING, DIVERGED = 0.8, 1.5


class BatchTimer(Callback):
    """Measures the time of a training batch, without validations and without what happens between two epochs.

    Args:
        skipped: first batches, which are not measured.
        measured: smallest number of measured batches.
        seconds: smallest time of the measurement.
        stops: whether the training then stops.

    Attributes:
        batch_seconds: time of a batch; None until the smallest number of them is measured.
        images: images in a batch.
        began: time when the first measured batch began.
    """

    def __init__(
        self, skipped: int = SKIPPED, measured: int = MEASURED, seconds: float = 0, stops: bool = False
    ) -> None:
        self.skipped, self.measured, self.seconds, self.stops = skipped, measured, seconds, stops
        self.batch_seconds: float | None = None
        self.images, self.began = 0, 0.0
        self._batches, self._start, self._pause, self._is_done = 0, 0.0, 0.0, False

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._pause = time.perf_counter()

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_last_batch:  # otherwise the end of the epoch follows
            self._resume()

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._pause = self._pause or time.perf_counter()

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._resume()

    def _resume(self) -> None:
        self._start += time.perf_counter() - self._pause if self._pause else 0
        self._pause = 0.0

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts the batch; a GPU is synchronized from the smallest number of measured batches on."""
        self._batches += 1
        count = self._batches - self.skipped
        if self._is_done or (count and count < self.measured):
            return
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        now = time.perf_counter()
        if count == 0:
            self._start = self.began = now
            return
        self.batch_seconds, self.images = (now - self._start) / count, batch_size(batch)
        if now - self._start >= self.seconds:
            self._is_done = True
            trainer.should_stop = trainer.should_stop or self.stops
            self.on_measured(trainer, pl_module, self.batch_seconds)

    @property
    def images_per_second(self) -> float:
        """Images per second of this process."""
        return self.images / self.batch_seconds if self.batch_seconds else math.nan

    def on_measured(self, trainer: Trainer, pl_module: LightningModule, batch_seconds: float) -> None:
        """Called once, when the measurement ends."""


class RangeTest(Callback):
    """Raises the learning rate from step to step and records the loss, until it diverges (arXiv:1506.01186, §3.3).

    The schedule of the run is not used. Parameter groups keep the ratios of their learning rates.

    Args:
        first: first learning rate.
        last: last one.
        steps: number of optimizer steps; the learning rate grows by a constant factor.

    Attributes:
        rates: learning rate of each step.
        losses: smoothed training loss after this step, on the next batch.
        configured: learning rate of the first parameter group without the schedule.
    """

    def __init__(self, first: float, last: float, steps: int) -> None:
        self.first, self.factor, self.steps = first, (last / first) ** (1 / (steps - 1)), steps
        self.rates: list[float] = []
        self.losses: list[float] = []
        self.configured = math.nan
        self._ratios: list[float] = []
        self._sum = self._weight = 0.0
        self._parts: list[float] = []  # losses of the accumulated batches

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        groups = [_base_rate(group) for group in trainer.optimizers[0].param_groups]
        self.configured, self._ratios = groups[0], [rate / groups[0] for rate in groups]

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        rate = self.first * self.factor ** len(self.rates)
        for group, ratio in zip(optimizer.param_groups, self._ratios, strict=True):
            group["lr"] = rate * ratio

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Records the loss, which the weights before this step have."""
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        self._parts.append(float(loss) * trainer.accumulate_grad_batches)
        if not is_optimizer_step(trainer, batch_idx):
            return
        current, self._parts = sum(self._parts) / len(self._parts), []
        self._sum, self._weight = SMOOTHING * self._sum + current, SMOOTHING * self._weight + 1
        if self.rates:
            self.losses.append(self._sum / self._weight)
        self.rates.append(self.first * self.factor ** len(self.rates))
        diverged = not math.isfinite(current) or (self.losses and self.losses[-1] > DIVERGED * self.losses[0])
        trainer.should_stop = bool(diverged) or len(self.rates) > self.steps


def _base_rate(group: dict[str, Any]) -> float:
    """The learning rate of a parameter group that the schedule multiplies; for OneCycleLR its largest one."""
    return next(float(group[name]) for name in ("max_lr", "initial_lr", "lr") if name in group)
