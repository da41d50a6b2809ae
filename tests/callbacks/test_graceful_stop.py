"""Where a run stops after a signal, and what it saves."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException

from resnet_pl.callbacks import GracefulStop, LastCheckpoint
from tests.test_classifier import MemoryLogger
from tests.tiny import Tiny, classifier, trainer


class Send(Callback):
    """Sends signals to this process in a hook, after a number of steps."""

    def __init__(self, hook: str, step: int, *numbers: int) -> None:
        self.step, self.numbers = step, numbers
        setattr(self, hook, self._send)

    def _send(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == self.step:
            numbers, self.numbers = self.numbers, ()
            for number in numbers:
                signal.raise_signal(number)


def stopped_at(folder: Path, *callbacks: Callback, **kwargs: Any) -> int:
    """Returns the step of last.ckpt of a run that a signal ends; it would have two epochs of four steps."""
    run = trainer(callbacks=[*callbacks, GracefulStop(folder)], max_epochs=2, enable_checkpointing=True, **kwargs)
    with pytest.raises(SystemExit):
        run.fit(classifier(), datamodule=Tiny())
    path = folder / "last.ckpt"
    return torch.load(path, weights_only=True)["global_step"] if path.exists() else 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("hook", "step", "expected"),
    [
        ("on_train_batch_start", 1, 2),
        ("on_before_backward", 1, 2),
        ("on_before_optimizer_step", 1, 2),
        ("on_train_batch_end", 2, 2),
        ("on_validation_batch_start", 4, 4),
        ("on_train_epoch_end", 4, 4),
    ],
)
def test_the_run_stops_after_the_current_step(hook: str, step: int, expected: int, number: int, tmp_path: Path) -> None:
    before = signal.getsignal(number)
    assert stopped_at(tmp_path, Send(hook, step, number)) == expected
    assert signal.getsignal(number) == before


def test_accumulation_is_completed_first(tmp_path: Path) -> None:
    assert stopped_at(tmp_path, Send("on_before_backward", 0, signal.SIGTERM), accumulate_grad_batches=2) == 1


def test_a_validation_within_the_epoch_is_completed_first(tmp_path: Path) -> None:
    class StepRecorder(Callback):
        validated = 0

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            self.validated = trainer.global_step

    recorder = StepRecorder()
    stop = Send("on_before_backward", 1, signal.SIGTERM)
    assert stopped_at(tmp_path, stop, recorder, val_check_interval=2) == 2
    assert recorder.validated == 2


def test_a_second_ctrl_c_stops_immediately_and_saves_nothing(tmp_path: Path) -> None:
    assert stopped_at(tmp_path, Send("on_before_backward", 1, signal.SIGINT, signal.SIGINT)) == 0


def test_a_run_whose_last_step_is_the_current_one_ends_normally(tmp_path: Path) -> None:
    stop = GracefulStop(tmp_path)
    callbacks = [Send("on_before_backward", 3, signal.SIGTERM), LastCheckpoint(tmp_path), stop]
    run = trainer(callbacks=callbacks, enable_checkpointing=True)
    run.fit(classifier(), datamodule=Tiny())
    assert run.global_step == 4 and torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 4


def test_metrics_of_the_last_step_are_logged(tmp_path: Path) -> None:
    class Own(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            pl_module.log("own", float(trainer.global_step))

    logger = MemoryLogger()
    callbacks = [Own(), Send("on_before_backward", 1, signal.SIGTERM), GracefulStop(tmp_path)]
    run = trainer(callbacks=callbacks, logger=logger, log_every_n_steps=1, enable_checkpointing=True)
    with pytest.raises(SIGTERMException):
        run.fit(classifier(), datamodule=Tiny())
    assert logger.values("own") == {0: 1.0, 1: 2.0}
