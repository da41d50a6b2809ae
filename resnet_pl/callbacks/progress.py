"""Terminal output of a training: a progress bar while an epoch runs, and one line for each finished epoch."""

from __future__ import annotations

import sys
import time
from importlib.util import find_spec
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from rich import get_console
from typing_extensions import override

from resnet_pl.callbacks.access import optional, total_steps
from resnet_pl.callbacks.checkpoints import monitored
from resnet_pl.callbacks.resources import format_time
from resnet_pl.utils import rank_zero_print

MIN_REDRAW_SECONDS = 0.5

# Log keys in a line of `EpochSummary`, with the text before the number, its format and the text after it.
QUALITY = (
    ("train/loss", "loss ", ".3f", ""),
    ("val/loss", "val loss ", ".3f", ""),
    ("val/top1", "val top-1 ", ".2%", ""),
)
SPEED = (
    ("lr", "lr ", ".3g", ""),
    ("throughput/images_per_second", "", ",.0f", " images/s"),
)

KNOWN_KEYS = {key for key, *_ in (*QUALITY, *SPEED)}


def shows_progress() -> bool:
    """Whether a progress bar can be drawn: in a terminal, or in a notebook that has the widgets that rich needs."""
    return sys.stdout.isatty() or (get_console().is_jupyter and find_spec("ipywidgets") is not None)


class ProgressBar(RichProgressBar):
    """Lightning's Rich progress bar, with epochs numbered from 1 and without the version number.

    It is redrawn at most twice a second, because redrawing takes some milliseconds, and erased when the run ends:
    `EpochSummary` prints the results.
    """

    def __init__(self) -> None:
        super().__init__(refresh_rate=10)
        self._next_draw = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shows the bar at once: Lightning does not call `on_train_epoch_start` when it resumes within an epoch."""
        super().on_train_start(trainer, pl_module)
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Adds the bar of the epoch, or resets that of the epoch before."""
        if self.progress is None:
            return
        # As wide as the description of the validation bar, so that the two are aligned.
        description = f"Epoch {epoch_number(trainer)}".ljust(len(self.validation_description))
        total = self.total_train_batches
        if self.train_progress_bar_id is None:
            self.train_progress_bar_id = self.progress.add_task(description, total=total)
        else:
            self.progress.reset(self.train_progress_bar_id, total=total, description=description, visible=True)
        self.refresh()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Redraws the bar if `MIN_REDRAW_SECONDS` have passed, and after the last batch."""
        if time.monotonic() >= self._next_draw or batch_idx + 1 == self.total_train_batches:
            self._next_draw = time.monotonic() + MIN_REDRAW_SECONDS
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Returns the metrics next to the bar."""
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._erase_when_stopped()
        super().teardown(trainer, pl_module, stage)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._erase_when_stopped()
        super().on_exception(trainer, pl_module, exception)

    def _erase_when_stopped(self) -> None:
        if self.progress is not None:
            self.progress.live.transient = True


@optional
class EpochSummary(Callback):
    """Prints a line after each epoch: losses, validation top-1, learning rate, images per second and the time left.

    Epochs are numbered from 1. `loss` is `train/loss` at the end of the epoch; validation results are printed if a
    validation ran in the epoch. The time left assumes that the remaining steps take as long as those of this session.
    """

    def __init__(self) -> None:
        self._start_time, self._start_step = 0.0, 0
        self._finished = ""  # number of the epoch whose line is not printed yet
        self._validated = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the timer."""
        self._start_time, self._start_step = time.monotonic(), trainer.global_step

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes that this epoch has validation results."""
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes that an epoch is complete: callbacks that run later log metrics of this epoch."""
        self._finished = epoch_number(trainer)

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._print(trainer)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._print(trainer)

    def _print(self, trainer: Trainer) -> None:
        if not self._finished:
            return
        metrics, step = trainer.callback_metrics, trainer.global_step
        # The module's own choice, and the metric that chooses best.ckpt.
        shown = {key for key in (*trainer.progress_bar_metrics, monitored(trainer)[0]) if key not in KNOWN_KEYS}
        parts = [
            f"{before}{float(metrics[key]):{form}}{after}"
            for key, before, form, after in (*QUALITY, *((key, f"{key} ", ".4g", "") for key in sorted(shown)), *SPEED)
            if key in metrics and (self._validated or not key.startswith("val/"))
        ]
        total = total_steps(trainer)
        if total is not None:
            seconds = (time.monotonic() - self._start_time) / max(1, step - self._start_step) * max(0, total - step)
            parts.append(f"{format_time(seconds)} left")
        steps = f", step {step:,}/{total:,}" if total == trainer.max_steps else ""
        rank_zero_print(f"epoch {self._finished}{steps}: {', '.join(parts)}")
        self._finished, self._validated = "", False


def epoch_number(trainer: Trainer) -> str:
    """Returns the number of the current epoch from 1, "3/24", or "3" if `max_epochs` does not limit the run."""
    number, limited = trainer.current_epoch + 1, trainer.max_epochs not in (None, -1)
    return f"{number}/{trainer.max_epochs}" if limited and total_steps(trainer) != trainer.max_steps else f"{number}"
