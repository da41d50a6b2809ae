"""Where a run stops after a signal, and what it leaves."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException

from resnet_pl.callbacks import GracefulStop, LastCheckpoint
from tests.tiny import Tiny, classifier, trainer


class Send(Callback):
    """Sends signals to this process at a hook, when so many steps are made."""

    def __init__(self, hook: str, step: int, *numbers: int) -> None:
        self.step, self.numbers = step, numbers
        setattr(self, hook, self._send)

    def _send(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == self.step:
            numbers, self.numbers = self.numbers, ()
            for number in numbers:
                signal.raise_signal(number)


def stopped_at(folder: Path, *callbacks: Callback, **kwargs: Any) -> int:
    """The step of last.ckpt after a run of two epochs of four steps that a signal ends."""
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
def test_it_stops_after_the_running_step(hook: str, step: int, expected: int, number: int, tmp_path: Path) -> None:
    before = signal.getsignal(number)
    assert stopped_at(tmp_path, Send(hook, step, number)) == expected
    assert signal.getsignal(number) == before


def test_accumulated_batches_end_first(tmp_path: Path) -> None:
    assert stopped_at(tmp_path, Send("on_before_backward", 0, signal.SIGTERM), accumulate_grad_batches=2) == 1


def test_a_validation_within_the_epoch_is_made_first(tmp_path: Path) -> None:
    class Seen(Callback):
        validated = 0

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            self.validated = trainer.global_step

    seen = Seen()
    stop = Send("on_before_backward", 1, signal.SIGTERM)
    assert stopped_at(tmp_path, stop, seen, val_check_interval=2) == 2
    assert seen.validated == 2


def test_a_second_ctrl_c_stops_at_once_and_saves_nothing(tmp_path: Path) -> None:
    assert stopped_at(tmp_path, Send("on_before_backward", 1, signal.SIGINT, signal.SIGINT)) == 0


def test_a_run_that_ends_with_that_step_ends_well(tmp_path: Path) -> None:
    stop = GracefulStop(tmp_path)
    callbacks = [Send("on_before_backward", 3, signal.SIGTERM), LastCheckpoint(tmp_path), stop]
    run = trainer(callbacks=callbacks, enable_checkpointing=True)
    run.fit(classifier(), datamodule=Tiny())
    assert run.global_step == 4 and torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 4


def test_what_a_step_logs_is_written_before_the_run_ends(tmp_path: Path) -> None:
    class Own(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            pl_module.log("own", float(trainer.global_step))

    from tests.test_classifier import Kept

    kept = Kept()
    callbacks = [Own(), Send("on_before_backward", 1, signal.SIGTERM), GracefulStop(tmp_path)]
    run = trainer(callbacks=callbacks, logger=kept, log_every_n_steps=1, enable_checkpointing=True)
    with pytest.raises(SIGTERMException):
        run.fit(classifier(), datamodule=Tiny())
    assert kept.values("own") == {0: 1.0, 1: 2.0}
