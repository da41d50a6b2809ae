"""The two checkpoints of a run: the best by a validation metric, and the last."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from resnet_pl._compat import begin_next_epoch
from resnet_pl.callbacks.train_log import stepped
from resnet_pl.types import PositiveFloat, PositiveInt


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
        # The state at `max_steps` within an epoch: it becomes last.ckpt after the validation that ends the run.
        self.final = self.path.with_name(".last.ckpt.final")
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
        if ends_within_epoch(trainer):
            trainer.save_checkpoint(self.final)
        elif between_steps(trainer, batch_idx) and self._due(trainer):
            self.save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves what was due before a validation within an epoch, together with its result."""
        if trainer.state.fn != "fit" or trainer.sanity_checking or trainer.is_last_batch:
            return
        if ends_within_epoch(trainer) and validation_is_due(trainer, trainer.fit_loop.batch_idx):
            trainer.save_checkpoint(self.final)
        elif saves_after_validation(trainer) and self._due(trainer):
            self.save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the epoch."""
        done = trainer.current_epoch + 1
        ends = trainer.should_stop or done == trainer.max_epochs or trainer.global_step == trainer.max_steps
        if ends or done % self.every_n_epochs == 0 or self._due(trainer):
            self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Saves now; all processes call this together."""
        if not ends_within_epoch(trainer):
            trainer.save_checkpoint(self.path)
        elif trainer.is_global_zero:
            self.final.replace(self.path)
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


def between_steps(trainer: Trainer, batch_idx: int) -> bool:
    """Whether a state saved at the end of this training batch resumes exactly.

    Not among accumulated batches. Not before a validation either, whose result would be lost: it is saved after it. And
    not at the last batch of an epoch or of the run: their end saves.
    """
    if trainer.is_last_batch or ends_within_epoch(trainer):
        return False
    return stepped(trainer, batch_idx) and not validation_follows(trainer, batch_idx)


def saves_after_validation(trainer: Trainer) -> bool:
    """Whether a state saved at the end of this validation resumes exactly: within an epoch, and between two steps."""
    if trainer.state.fn != "fit" or trainer.sanity_checking or trainer.is_last_batch or ends_within_epoch(trainer):
        return False
    return stepped(trainer, trainer.fit_loop.batch_idx)


def ends_within_epoch(trainer: Trainer) -> bool:
    """Whether `max_steps` ends the run before the epoch is over.

    The run is validated there. A longer run continues within the epoch, and knows nothing of a validation that was not
    due.
    """
    return trainer.global_step == trainer.max_steps and not trainer.is_last_batch


def validation_follows(trainer: Trainer, batch_idx: int) -> bool:
    """Whether Lightning validates after this training batch."""
    return validation_is_due(trainer, batch_idx) or (trainer.should_stop and _validated_epoch(trainer))


def validation_is_due(trainer: Trainer, batch_idx: int) -> bool:
    """Whether Lightning validates after this training batch even if the run does not end there."""
    if not _validated_epoch(trainer) or trainer.val_check_batch is None:  # None: by time
        return False
    done = batch_idx + 1 if trainer.check_val_every_n_epoch else trainer.fit_loop.total_batch_idx + 1
    return done % trainer.val_check_batch == 0


def _validated_epoch(trainer: Trainer) -> bool:
    every_n_epochs = trainer.check_val_every_n_epoch
    return trainer.enable_validation and (not every_n_epochs or (trainer.current_epoch + 1) % every_n_epochs == 0)
