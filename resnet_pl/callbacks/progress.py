"""What the terminal shows while a run trains: a progress bar, or a line after each epoch."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

from resnet_pl.utils import rank_zero_print


class ProgressBar(RichProgressBar):
    """Lightning's bar, without the version number, which the start report tells; drawn twice a second at most.

    Drawing takes some milliseconds in which nothing is trained.
    """

    def __init__(self) -> None:
        super().__init__(refresh_rate=10)
        self._due = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """See Lightning's RichProgressBar."""
        if time.monotonic() >= self._due or batch_idx + 1 == self.total_train_batches:
            self._due = time.monotonic() + 0.5
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, int | str | float]:
        """See Lightning's ProgressBar."""
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}


class EpochSummary(Callback):
    """A line after each epoch, where there is no terminal to show a bar."""

    def __init__(self) -> None:
        self._start, self._first, self._done = 0.0, 0, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See Lightning's Callback."""
        self._start, self._first = time.monotonic(), trainer.current_epoch

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See Lightning's Callback."""
        self._done = trainer.current_epoch + 1

    # The net logs an epoch's last figures after this callback's own turn at its end, so the line waits a moment.
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See Lightning's Callback."""
        self._tell(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See Lightning's Callback."""
        self._tell(trainer)

    def _tell(self, trainer: Trainer) -> None:
        done, self._done = self._done, 0
        if not done:
            return
        minutes = (time.monotonic() - self._start) / 60
        shown = [("train/loss", "loss", ".3f"), ("val/loss", "val loss", ".3f"), ("val/top1", "val top-1", ".2%")]
        metrics = trainer.callback_metrics
        told = [f"{text} {float(metrics[name]):{form}}" for name, text, form in shown if name in metrics]
        of = left = ""
        if trainer.max_epochs not in (None, -1):
            of = f"/{trainer.max_epochs}"
            left = f", {minutes / (done - self._first) * (trainer.max_epochs - done):.1f} min left"
        rank_zero_print(f"epoch {done}{of}: {', '.join(told)}, {minutes:.1f} min{left}")
