"""Ends a run between two steps after Ctrl-C, SIGTERM or SLURM's requeue signal, and saves a checkpoint."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from resnet_pl.callbacks.checkpoints import between_steps, saves_after_validation


class GracefulStop(Checkpoint):
    """Saves last.ckpt after the current step and ends the run; a second Ctrl-C ends it immediately.

    Lightning alone would stop within a step at Ctrl-C, and save nothing at SIGTERM. Several processes agree by one
    asynchronous all-reduce per step. An evaluation ends immediately. The class is a `Checkpoint` so that Lightning
    calls it after all other callbacks.

    Args:
        folder: folder of last.ckpt.

    Attributes:
        path: file of the checkpoint.
        received: numbers of the signals received so far.
    """

    def __init__(self, folder: Path) -> None:
        self.path, self.received = Path(folder) / "last.ckpt", list[int]()
        self._agreed, self._saved = False, False
        self._group: Any = None
        self._pending: tuple[Any, Tensor] | None = None

    # ------------------------------------------------------------------------------------ training
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replaces Lightning's signal handlers; Lightning restores the original ones after the run."""
        self.received.clear()
        self._agreed = self._saved = False
        numbers = [signal.SIGINT, signal.SIGTERM]
        environment = getattr(trainer.strategy, "cluster_environment", None)
        if SLURMEnvironment.detect() and getattr(environment, "auto_requeue", True):
            numbers.append(getattr(environment, "requeue_signal", None) or signal.SIGUSR1)
        if threading.current_thread() is threading.main_thread():
            for number in numbers:
                signal.signal(number, self._receive)
        if trainer.world_size > 1:
            # On the CPU, also in training on GPUs: the flag is read without a device synchronization.
            self._group = torch.distributed.new_group(backend="gloo")

    def _receive(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT and signal.SIGINT in self.received:
            raise KeyboardInterrupt
        self.received.append(number)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Ends the run if the checkpoint is saved; otherwise starts the all-reduce of this step."""
        if self._saved:
            raise SIGTERMException
        if self._group is not None:
            flag = torch.tensor(float(bool(self.received)))
            self._pending = torch.distributed.all_reduce(flag, group=self._group, async_op=True), flag

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves the checkpoint if a process has received a signal."""
        if self._pending is not None:
            work, flag = self._pending
            work.wait()
            self._agreed, self._pending = bool(flag), None
        if self._stopping and between_steps(trainer, batch_idx):
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the checkpoint after a validation within an epoch."""
        if self._stopping and saves_after_validation(trainer):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the checkpoint after a complete epoch; if the run ends within the epoch, `LastCheckpoint` saves it."""
        if self._stopping and trainer.is_last_batch:
            self._save(trainer)

    @property
    def _stopping(self) -> bool:
        """Whether a process has received a signal, as agreed by all of them."""
        return self._agreed if self._group is not None else bool(self.received)

    def _save(self, trainer: Trainer) -> None:
        # The run ends at the start of the next step, when all metrics of this one are written.
        if not self._saved:
            trainer.save_checkpoint(self.path)
            self._saved = True

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Destroys the process group: its threads would abort a process that exits while they run."""
        if self._group is not None:
            torch.distributed.destroy_process_group(self._group)
            self._group = self._pending = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Destroys the process group after an error."""
        self.teardown(trainer, pl_module, "fit")

    # ------------------------------------------------------------------------------------ evaluation
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes SIGTERM end an evaluation immediately: Lightning would wait for a batch that may never come."""
        if trainer.state.fn != "fit" and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))

    on_validation_start = on_predict_start = on_test_start
