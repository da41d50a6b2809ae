"""Ctrl-C, SIGTERM and SLURM's signal end a run between two steps, with everything saved."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from resnet_pl.callbacks.checkpoints import between_steps, saves_after_validation


class GracefulStop(Checkpoint):
    """Saves last.ckpt after the running step and ends the run; a second Ctrl-C ends it at once.

    Lightning would stop within a step at Ctrl-C, and save nothing at SIGTERM. Several processes agree in one
    asynchronous all-reduce a step. An evaluation is ended at once. It is a `Checkpoint` for Lightning to call it after
    all other callbacks.

    Args:
        folder: where last.ckpt goes.

    Attributes:
        received: the signals received so far.
    """

    def __init__(self, folder: Path) -> None:
        self.path, self.received = Path(folder) / "last.ckpt", list[int]()
        self._agreed, self._saved = False, False
        self._group: Any = None
        self._pending: tuple[Any, Tensor] | None = None

    # ------------------------------------------------------------------------------------ training
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replaces Lightning's signal handlers, which it puts back itself in the end."""
        self.received.clear()
        self._agreed = self._saved = False
        numbers = [signal.SIGINT, signal.SIGTERM]
        environment = getattr(trainer.strategy, "cluster_environment", None)
        if SLURMEnvironment.detect() and getattr(environment, "auto_requeue", True):
            numbers.append(getattr(environment, "requeue_signal", None) or signal.SIGUSR1)
        if threading.current_thread() is threading.main_thread():
            for number in numbers:
                signal.signal(number, self._note)
        if trainer.world_size > 1:
            # On the CPU, whatever the training runs on: nobody waits for a GPU to learn of a signal.
            self._group = torch.distributed.new_group(backend="gloo")

    def _note(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT and signal.SIGINT in self.received:
            raise KeyboardInterrupt
        self.received.append(number)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Ends the run if the step before was its last, or asks the other processes."""
        if self._saved:
            raise SIGTERMException
        if self._group is not None:
            flag = torch.tensor(float(bool(self.received)))
            self._pending = torch.distributed.all_reduce(flag, group=self._group, async_op=True), flag

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves, if a process has received a signal."""
        if self._pending is not None:
            work, flag = self._pending
            work.wait()
            self._agreed, self._pending = bool(flag), None
        if self._stopping and between_steps(trainer, batch_idx):
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves after a validation within an epoch."""
        if self._stopping and saves_after_validation(trainer):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves after an epoch; one that is broken off ends the run by itself."""
        if self._stopping and trainer.is_last_batch:
            self._save(trainer)

    @property
    def _stopping(self) -> bool:
        """Whether a process has received a signal, as far as all of them know."""
        return self._agreed if self._group is not None else bool(self.received)

    def _save(self, trainer: Trainer) -> None:
        # The run ends when the next step begins: by then everything that was logged in this one is written.
        if not self._saved:
            trainer.save_checkpoint(self.path)
            self._saved = True

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Ends the process group: its threads would abort a process that ends with them."""
        if self._group is not None:
            torch.distributed.destroy_process_group(self._group)
            self._group = self._pending = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Likewise."""
        self.teardown(trainer, pl_module, "fit")

    # ------------------------------------------------------------------------------------ evaluation
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes SIGTERM end an evaluation at once: Lightning would wait for a batch that may never come."""
        if trainer.state.fn != "fit" and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))

    on_validation_start = on_predict_start = on_test_start
