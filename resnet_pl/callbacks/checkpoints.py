"""The two checkpoints of a run: best.ckpt, by a validation metric, and last.ckpt."""

from __future__ import annotations

import math
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from typing_extensions import override

from resnet_pl._compat import begin_next_epoch
from resnet_pl.callbacks.access import is_logging_step, is_multi_label, is_optimizer_step
from resnet_pl.checkpoint import read, update_metadata
from resnet_pl.run_dir import MAP, TOP1, score_sign
from resnet_pl.types import PositiveFloat, PositiveInt
from resnet_pl.utils import UserError, rank_zero_print

Mode = Literal["auto", "max", "min"]


class BestCheckpoint(Checkpoint):
    """Saves best.ckpt after every validation whose metric is at least as good as the best so far.

    Of two equal scores the later model is saved: under a decaying learning rate it tends to be the better one. Without
    validation nothing is saved, and a score that is NaN is never the best.

    Args:
        folder: folder of the checkpoint.
        monitor: log key of the metric.
        mode: whether a larger or a smaller metric is better; see `score_sign` for `auto`.

    Attributes:
        path: file of the checkpoint.
        score: best score so far; None before the first validation.
        best_model_path: the file, for `ckpt_path="best"` of Lightning's Trainer; empty before the first validation.
    """

    def __init__(self, folder: Path, monitor: str = TOP1, mode: Mode = "auto") -> None:
        self.path, self.monitor, self.sign = Path(folder) / "best.ckpt", monitor, score_sign(monitor, mode)
        self.score: float | None = None
        self.best_model_path = ""
        self._noted = False

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Top-1 is not defined for images with several classes.
        if self.monitor == TOP1 and is_multi_label(trainer, pl_module):
            self.monitor = MAP

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Makes Lightning validate after the last step even if `max_steps` ends the run within an epoch."""
        if 0 < trainer.max_steps <= trainer.global_step:
            trainer.should_stop = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the checkpoint if this validation is the best so far."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        if self.monitor not in trainer.callback_metrics:
            self._report_missing([name for name in trainer.callback_metrics if not name.startswith("train/")])
            return
        # A module that logs without `sync_dist` has another value in each process, and all must save together.
        score = float(trainer.strategy.broadcast(float(trainer.callback_metrics[self.monitor])))
        if math.isnan(score):
            return
        if self.score is None or self.sign * score >= self.sign * self.score:
            self.score = score
            trainer.save_checkpoint(self.path)
            self.best_model_path = str(self.path)

    def _report_missing(self, logged: list[str]) -> None:
        fix = f"choose one of {', '.join(logged)} with --checkpoint.monitor" if logged else "log it in validation_step"
        if self.monitor != TOP1:
            raise UserError(f"checkpoint.monitor: {self.monitor} is not logged in the validation\n{fix}")
        if not self._noted:
            rank_zero_print(f"note: best.ckpt is not written, because {TOP1} is not logged; {fix}")
        self._noted = True

    def state_dict(self) -> dict[str, Any]:
        """Returns the best score and its metric."""
        return {"score": self.score, "monitor": self.monitor}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the score of best.ckpt in the folder if its metric is the same; else starts again."""
        # Not the score in `state_dict`: the validation that chose best.ckpt can be later than last.ckpt.
        best: dict[str, Any] = {}
        if self.path.is_file():
            with suppress(UserError):
                best = (read(self.path).get("callbacks") or {}).get(self.state_key, {})
        self.score = best.get("score") if best.get("monitor", TOP1) == self.monitor else None
        self.best_model_path = "" if self.score is None else str(self.path)


class LastCheckpoint(Checkpoint):
    """Saves last.ckpt after every epoch and, within an epoch, every N steps or minutes.

    The checkpoint is saved only between two optimizer steps. An exception saves nothing: the run resumes from the
    previous checkpoint and repeats the steps after it bit for bit.

    Args:
        folder: folder of the checkpoint.
        every_n_epochs: number of epochs between two checkpoints; the end of the run is always saved.
        every_n_steps: number of optimizer steps after which a checkpoint is also saved within an epoch.
        every_minutes: minutes after which a checkpoint is also saved within an epoch; null disables it.
    """

    def __init__(
        self,
        folder: Path,
        every_n_epochs: PositiveInt = 1,
        every_n_steps: PositiveInt | None = None,
        every_minutes: PositiveFloat | None = 10,
    ) -> None:
        self.path, self.every_n_epochs = Path(folder) / "last.ckpt", every_n_epochs
        # The state at the end of a run within an epoch: it becomes last.ckpt after the validation that ends the run.
        self.final = self.path.with_name(".last.ckpt.final")
        self.every_n_steps, self.every_seconds = every_n_steps or math.inf, 60 * (every_minutes or math.inf)
        self.saved_step, self.saved_at = 0, 0.0
        self.stops_later = False  # whether another callback wants to stop the run before the next optimizer step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts counting steps and minutes, also in a resumed run."""
        self.saved_step, self.saved_at = trainer.global_step, time.monotonic()
        begin_next_epoch(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves if steps or minutes are due."""
        if is_optimizer_step(trainer, batch_idx):
            trainer.should_stop, self.stops_later = trainer.should_stop or self.stops_later, False
        elif trainer.should_stop:
            # The gradients that are accumulated so far would be lost.
            trainer.should_stop, self.stops_later = False, True
        if ends_within_epoch(trainer):
            trainer.save_checkpoint(self.final)
        elif between_steps(trainer, batch_idx) and self._due(trainer):
            self.save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves a checkpoint that was due before a validation within an epoch, so that it contains the result."""
        if trainer.state.fn != "fit" or trainer.sanity_checking or trainer.is_last_batch:
            return
        if ends_within_epoch(trainer) and validation_is_due(trainer, trainer.fit_loop.batch_idx):
            trainer.save_checkpoint(self.final)
        elif saves_after_validation(trainer) and self._due(trainer):
            self.save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves if epochs, steps or minutes are due, and at the end of the run."""
        epochs = trainer.current_epoch + 1
        ends = trainer.should_stop or epochs == trainer.max_epochs or trainer.global_step == trainer.max_steps
        if ends or epochs % self.every_n_epochs == 0 or self._due(trainer):
            self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Saves now; all processes must call this together."""
        if not ends_within_epoch(trainer):
            trainer.save_checkpoint(self.path)
        elif trainer.is_global_zero:
            # The thresholds fit the weights only since the validation; training does not depend on them.
            if (thresholds := getattr(trainer.lightning_module, "thresholds", None)) is not None:
                update_metadata(self.final, "thresholds", thresholds.tolist())
            self.final.replace(self.path)
        self.saved_step, self.saved_at = trainer.global_step, time.monotonic()

    def _due(self, trainer: Trainer) -> bool:
        """Whether `every_n_steps` or `every_minutes` have passed.

        With several processes, rank 0 decides about the minutes, at logging steps only.
        """
        if trainer.global_step - self.saved_step >= self.every_n_steps:
            return True
        if math.isinf(self.every_seconds) or trainer.global_step == self.saved_step:
            return False
        if trainer.world_size > 1 and not is_logging_step(trainer):
            return False
        return trainer.strategy.broadcast(time.monotonic() - self.saved_at >= self.every_seconds)


def checkpoint_callbacks(
    folder: Path,
    monitor: str = TOP1,
    mode: Mode = "auto",
    every_n_epochs: PositiveInt = 1,
    every_n_steps: PositiveInt | None = None,
    every_minutes: PositiveFloat | None = 10,
) -> list[Checkpoint]:
    """Returns the callbacks that write best.ckpt and last.ckpt.

    Args:
        folder: folder of the checkpoints.
        monitor: log key of the validation metric that chooses best.ckpt, such as val/loss, val/f1_macro or
            val/balanced_accuracy. Of images with several classes, val/map in place of val/top1.
        mode: whether a larger (max) or a smaller (min) value is better; auto is min for names with loss or error.
        every_n_epochs: number of epochs between two writes of last.ckpt; the end of the run is always saved.
        every_n_steps: number of optimizer steps after which last.ckpt is also written within an epoch.
        every_minutes: minutes after which last.ckpt is also written within an epoch; null disables it.
    """
    last = LastCheckpoint(folder, every_n_epochs, every_n_steps, every_minutes)
    return [BestCheckpoint(folder, monitor, mode), last]


def monitored(trainer: Trainer) -> tuple[str, int]:
    """Returns the log key of the metric that chooses best.ckpt, and 1 if a larger value is better, else -1."""
    callbacks = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, BestCheckpoint)]
    return (callbacks[0].monitor, callbacks[0].sign) if callbacks else (TOP1, 1)


def between_steps(trainer: Trainer, batch_idx: int) -> bool:
    """Whether a checkpoint saved at the end of this training batch resumes exactly.

    False while gradients are accumulated; before a validation, whose result would be missing (the checkpoint is saved
    after it); and after the last batch of an epoch or of the run, which have their own checkpoint.
    """
    if trainer.is_last_batch or ends_within_epoch(trainer):
        return False
    return is_optimizer_step(trainer, batch_idx) and not validation_follows(trainer, batch_idx)


def saves_after_validation(trainer: Trainer) -> bool:
    """Whether a checkpoint saved at the end of this validation resumes exactly: within an epoch, between two steps."""
    if trainer.state.fn != "fit" or trainer.sanity_checking or trainer.is_last_batch or ends_within_epoch(trainer):
        return False
    return is_optimizer_step(trainer, trainer.fit_loop.batch_idx)


def ends_within_epoch(trainer: Trainer) -> bool:
    """Whether the run ends within an epoch, because of `max_steps` or of a callback such as `Timer`.

    The run is validated there, and last.ckpt holds the state from before that validation, with its thresholds: a run
    that is resumed with a larger limit equals one that never stopped.
    """
    ends = trainer.global_step == trainer.max_steps or (trainer.should_stop and _may_stop(trainer))
    return ends and not trainer.is_last_batch


def _may_stop(trainer: Trainer) -> bool:
    """Whether `min_epochs` and `min_steps` allow Lightning to stop."""
    return trainer.current_epoch >= (trainer.min_epochs or 0) and trainer.global_step >= (trainer.min_steps or 0)


def validation_follows(trainer: Trainer, batch_idx: int) -> bool:
    """Whether Lightning validates after this training batch."""
    return validation_is_due(trainer, batch_idx) or (trainer.should_stop and _validated_epoch(trainer))


def validation_is_due(trainer: Trainer, batch_idx: int) -> bool:
    """Whether Lightning validates after this training batch, unless only because the run ends there."""
    if not _validated_epoch(trainer) or trainer.val_check_batch is None:  # None: `val_check_interval` is a duration
        return False
    batches = batch_idx + 1 if trainer.check_val_every_n_epoch else trainer.fit_loop.total_batch_idx + 1
    return batches % trainer.val_check_batch == 0


def _validated_epoch(trainer: Trainer) -> bool:
    every_n_epochs = trainer.check_val_every_n_epoch
    return trainer.enable_validation and (not every_n_epochs or (trainer.current_epoch + 1) % every_n_epochs == 0)
