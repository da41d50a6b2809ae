"""The two checkpoints of a run: the best by validation top-1, and the last."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest.mock import patch

from jsonargparse.typing import PositiveFloat, PositiveInt
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from resnet_pl.callbacks.exact_resume import ExactResume
from resnet_pl.utils import Diverged


class _Checkpoint(ModelCheckpoint):
    @cached_property
    def state_key(self) -> str:
        """See Lightning's Callback; Lightning asks for it a dozen times a step, and makes it anew each time."""
        return super().state_key


class BestCheckpoint(_Checkpoint):
    """Keeps the net with the best validation top-1 as best.ckpt; nothing where no images are held out.

    Of equals it keeps the later: on few validation images several epochs share the best score, and under a falling
    learning rate the later is the better net.

    Args:
        folder: where the checkpoint goes.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(
            dirpath=folder, filename="best", monitor="val/top1", mode="max", enable_version_counter=False
        )  # fmt: skip

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """See Lightning's Callback."""
        if "val" not in getattr(trainer.datamodule, "splits", {"val": None}):
            self.save_top_k = 0
        super().setup(trainer, pl_module, stage)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Has the last step validated too, though it be in the middle of an epoch: the best may be the last."""
        if 0 < trainer.max_steps <= trainer.global_step:
            trainer.should_stop = True
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """See Lightning's ModelCheckpoint."""
        equal = current is not None and self.best_model_score is not None and current >= self.best_model_score
        return bool(equal) or super().check_monitor_top_k(trainer, current)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remembers the best score wherever the run folder has been moved to, as long as its best.ckpt came along."""
        best, score = Path(self.dirpath) / "best.ckpt", state_dict["best_model_score"]
        if best.is_file() and score is not None:
            place = str(best)
            state_dict = {
                **state_dict,
                "dirpath": self.dirpath,
                "best_model_path": place,
                "kth_best_model_path": place,
                "best_k_models": {place: score},
            }
        super().load_state_dict(state_dict)


class LastCheckpoint(_Checkpoint):
    """Keeps the state after each epoch, at an error, and as often in between as asked, as last.ckpt.

    Lightning's own `save_last` writes only when the best one changes too, so that a run would go on from an old epoch.

    Args:
        folder: where the checkpoint goes.
        every_n_epochs: epochs from one to the next; an error and the run's end write it anyway.
        every_n_steps: steps since it was last written, after which it is also in the middle of an epoch.
        every_minutes: minutes since it was last written, after which it is also in the middle of an epoch.
    """

    def __init__(
        self,
        folder: Path,
        every_n_epochs: PositiveInt = 1,
        every_n_steps: PositiveInt | None = None,
        every_minutes: PositiveFloat | None = None,
    ) -> None:
        # Always at the end of an epoch: by default only where every epoch is validated, once.
        super().__init__(dirpath=folder, filename="last", enable_version_counter=False, save_on_train_epoch_end=True)
        self.epochs = every_n_epochs
        self.every_n_steps, self.every_seconds = every_n_steps or math.inf, (every_minutes or math.inf) * 60
        self._saved_at, self._saved_step = 0.0, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on a state is worth keeping; an error before must not replace the file that is being resumed."""
        self.save_on_exception = True
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step
        super().on_train_start(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Writes the state before this batch where that is due: the last one's rows are written, its validation made.

        The end of an epoch writes anyway.
        """
        due = trainer.global_step - self._saved_step >= self.every_n_steps
        if math.isfinite(self.every_seconds):
            due |= trainer.strategy.broadcast(time.monotonic() - self._saved_at >= self.every_seconds)
        if due and trainer.global_step > self._saved_step:
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_train_batch_end(self, *args: Any) -> None:
        """Nothing: see above."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the state where its turn has come."""
        ends = trainer.should_stop or trainer.global_step == trainer.max_steps
        if ends or (done := trainer.current_epoch + 1) == trainer.max_epochs or done % self.epochs == 0:
            super().on_train_epoch_end(trainer, pl_module)

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keeps the state, but not one that has gone wrong or was broken off within a step of the optimiser."""
        resume = next(callback for callback in trainer.callbacks if isinstance(callback, ExactResume))
        with _ending(trainer, together=isinstance(exception, SIGTERMException)):
            if not isinstance(exception, Diverged) and not resume.stepping:
                super().on_exception(trainer, pl_module, exception)


@contextmanager
def _ending(trainer: Trainer, together: bool) -> Iterator[None]:
    """Inside the block an error in one process waits for no other, for they know nothing of it and never come."""
    children = getattr(trainer.strategy.launcher, "procs", None) or []
    mine = children[:]
    # Lightning looks at these now and then, and kills this process too once one of them has gone.
    children.clear()
    try:
        with nullcontext() if together else patch.object(trainer.strategy, "barrier"):
            yield
    finally:
        for child in () if together else mine:
            child.kill()
