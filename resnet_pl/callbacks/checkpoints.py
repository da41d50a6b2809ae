"""The two checkpoints of a run: the best by a validation metric, and the last."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any, Literal

from jsonargparse.typing import PositiveFloat, PositiveInt
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from resnet_pl.callbacks.train_log import stepped


class BestCheckpoint(Checkpoint):
    """Saves best.ckpt whenever a validation metric is at least as good as before; nothing without validation.

    Of equal scores the later is kept: under a falling learning rate it is the better network.

    Args:
        folder: where the checkpoint goes.
        monitor: the metric.
        mode: whether the metric should be large or small.
    """

    def __init__(self, folder: Path, monitor: str = "val/top1", mode: Literal["max", "min"] = "max") -> None:
        self.path, self.monitor, self.sign = Path(folder) / "best.ckpt", monitor, 1 if mode == "max" else -1
        self.score: float | None = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Has the last step validated even if `max_steps` ends the run within an epoch: it may be the best."""
        if 0 < trainer.max_steps <= trainer.global_step:
            trainer.should_stop = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves if this validation is the best so far."""
        if trainer.state.fn != "fit" or trainer.sanity_checking or self.monitor not in trainer.callback_metrics:
            return
        score = float(trainer.callback_metrics[self.monitor])
        if self.score is None or self.sign * score >= self.sign * self.score:
            self.score = score
            trainer.save_checkpoint(self.path)

    def state_dict(self) -> dict[str, Any]:
        """The best score."""
        return {"score": self.score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the best score, if its checkpoint is in this run's folder."""
        self.score = state_dict["score"] if self.path.is_file() else None


class LastCheckpoint(Checkpoint):
    """Saves last.ckpt at the end of an epoch, and within it every so many steps or minutes.

    It is saved only between two optimizer steps. An exception saves nothing: the run resumes from the file before, and
    repeats what came after it bit for bit.

    Args:
        folder: where the checkpoint goes.
        every_n_epochs: epochs from one to the next; the end of the run is always saved.
        every_n_steps: optimizer steps after which it is also saved within an epoch.
        every_minutes: minutes after which it is also saved within an epoch; null for never.
    """

    def __init__(
        self,
        folder: Path,
        every_n_epochs: PositiveInt = 1,
        every_n_steps: PositiveInt | None = None,
        every_minutes: PositiveFloat | None = 10,
    ) -> None:
        self.path, self.every_n_epochs = Path(folder) / "last.ckpt", every_n_epochs
        self.every_n_steps, self.every_seconds = every_n_steps or math.inf, 60 * (every_minutes or math.inf)
        self.saved_step, self.saved_at = 0, 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Counts from here."""
        self.saved_step, self.saved_at = trainer.global_step, time.monotonic()
        begin_next_epoch(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves where it is due."""
        if between_steps(trainer, batch_idx) and (self._due(trainer) or trainer.global_step == trainer.max_steps):
            self.save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves what was due before a validation within an epoch, together with its result."""
        if saves_after_validation(trainer) and trainer.global_step != trainer.max_steps and self._due(trainer):
            self.save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the epoch."""
        if not trainer.is_last_batch and self.saved_step == trainer.global_step == trainer.max_steps:
            return  # `max_steps` ended the run within the epoch: a longer run continues there
        done = trainer.current_epoch + 1
        ends = trainer.should_stop or done == trainer.max_epochs or trainer.global_step == trainer.max_steps
        if ends or done % self.every_n_epochs == 0 or self._due(trainer):
            self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Saves now; all processes call this together."""
        trainer.save_checkpoint(self.path)
        self.saved_step, self.saved_at = trainer.global_step, time.monotonic()

    def _due(self, trainer: Trainer) -> bool:
        """Whether steps or minutes are over. Several processes agree on the minutes, at logging steps only."""
        if trainer.global_step - self.saved_step >= self.every_n_steps:
            return True
        if math.isinf(self.every_seconds) or trainer.global_step == self.saved_step:
            return False
        if trainer.world_size > 1 and trainer.global_step % trainer.log_every_n_steps:
            return False
        return trainer.strategy.broadcast(time.monotonic() - self.saved_at >= self.every_seconds)


def begin_next_epoch(trainer: Trainer) -> None:
    """Makes a run that resumes from the end of an epoch begin with the next one.

    With `max_steps` Lightning would repeat that end, and leave out an epoch's images.
    """
    loop, epochs = trainer.fit_loop, trainer.fit_loop.epoch_progress
    if epochs.current.completed < epochs.current.processed == epochs.current.ready:
        epochs.increment_completed()
        loop.reset_restart_stage()
        loop.epoch_loop.restarting = False


def between_steps(trainer: Trainer, batch_idx: int) -> bool:
    """Whether a state saved at the end of this training batch resumes exactly.

    Not among accumulated batches. Not before a validation either, whose result would be lost: it is saved after it. And
    not at the last batch of an epoch: the epoch's end saves.
    """
    if trainer.is_last_batch or not stepped(trainer, batch_idx):
        return False
    if trainer.global_step == trainer.max_steps:
        # The validation that ends the run is no part of a longer one.
        return True
    return not validation_follows(trainer, batch_idx)


def saves_after_validation(trainer: Trainer) -> bool:
    """Whether a state saved at the end of this validation resumes exactly: within an epoch, and between two steps."""
    within = trainer.state.fn == "fit" and not trainer.sanity_checking and not trainer.is_last_batch
    return within and stepped(trainer, trainer.fit_loop.batch_idx)


def validation_follows(trainer: Trainer, batch_idx: int) -> bool:
    """Whether Lightning validates after this training batch."""
    every_n_epochs = trainer.check_val_every_n_epoch
    if not trainer.enable_validation or (every_n_epochs and (trainer.current_epoch + 1) % every_n_epochs):
        return False
    if trainer.should_stop or trainer.val_check_batch is None:  # None: by time
        return bool(trainer.should_stop)
    done = batch_idx + 1 if every_n_epochs else trainer.fit_loop.total_batch_idx + 1
    return done % trainer.val_check_batch == 0
