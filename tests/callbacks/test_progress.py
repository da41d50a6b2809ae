"""What is printed while a run trains: the line of an epoch, and the progress bar of a terminal."""

import io
import re
from collections.abc import Iterator
from contextlib import redirect_stdout
from typing import Any

import pytest
import rich
import torch
from lightning.pytorch import Callback

from resnet_pl.callbacks import EpochSummary, ProgressBar, Throughput
from resnet_pl.optim import Schedule
from tests.tiny import Tiny, classifier, optimizer, trainer


def lines(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("epoch ")]


def fit(data: Any = None, resume: Any = None, **kwargs: Any) -> Any:
    settings = {"callbacks": [Throughput(), EpochSummary()], "max_epochs": 3}
    run = trainer(**settings | kwargs)
    module = classifier(optimizer=optimizer(lr=0.05), schedule=Schedule("constant"))
    run.fit(module, datamodule=data or Tiny(), ckpt_path=resume, weights_only=True)
    return run


# ------------------------------------------------------------------------------------ lines
def test_a_line_per_epoch(capsys):
    run = fit()
    found, metrics = lines(capsys.readouterr().out), run.callback_metrics
    assert [line.split(":")[0] for line in found] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    speed, left = r"[\d,]+ images/s", r"0:00:\d\d left"
    number = r"[\d.]+"
    pattern = rf"epoch ./3: loss {number}, val loss {number}, val top-1 {number}%, lr 0\.05, {speed}, {left}"
    assert all(re.fullmatch(pattern, line) for line in found)
    last = f"loss {metrics['train/loss']:.3f}, val loss {metrics['val/loss']:.3f}, val top-1 {metrics['val/top1']:.2%}"
    assert last in found[-1] and found[-1].endswith("0:00:00 left")


def test_a_run_limited_by_steps_and_without_validation(capsys):
    fit(Tiny(val_split=20), limit_val_batches=0, max_epochs=-1, max_steps=6)
    found = lines(capsys.readouterr().out)
    assert [line.split(":")[0] for line in found] == ["epoch 1, step 4/6", "epoch 2, step 6/6"]
    assert all("loss" in line and "val" not in line and "left" in line for line in found)


class Stop(Callback):
    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        trainer.should_stop = trainer.current_epoch == 1


def test_a_run_without_limit_has_no_time_left(capsys):
    fit(max_epochs=-1, callbacks=[EpochSummary(), Stop()])
    found = lines(capsys.readouterr().out)
    assert [line.split(":")[0] for line in found] == ["epoch 1", "epoch 2"]
    assert not any("left" in line for line in found)


def test_results_of_an_earlier_epoch_are_not_repeated(capsys):
    fit(max_epochs=4, check_val_every_n_epoch=2)
    assert ["val top-1" in line for line in lines(capsys.readouterr().out)] == [False, True, False, True]


def test_a_resumed_run_continues_the_numbers(tmp_path, capsys):
    fit(max_epochs=2).save_checkpoint(tmp_path / "a.ckpt")
    capsys.readouterr()
    fit(max_epochs=4, resume=tmp_path / "a.ckpt")
    assert [line.split(":")[0] for line in lines(capsys.readouterr().out)] == ["epoch 3/4", "epoch 4/4"]


# ------------------------------------------------------------------------------------ progress bar
class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    """A terminal of 200 columns, to be used as standard output."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    yield Terminal()
    rich.reconfigure()


def rendered(output: str) -> list[str]:
    """The lines that stay on the screen; understands what Rich uses: move up, erase a line, return."""
    screen, row = [""], 0
    for part in re.findall(r"\x1b\[[\d;?]*[a-zA-Z]|\r|\n|[^\x1b\r\n]+", output):
        if part == "\n":
            row += 1
            screen += [""] * (row + 1 - len(screen))
        elif part.endswith("A") and part.startswith("\x1b"):
            row -= int(part[2:-1] or 1)
        elif part == "\x1b[2K":
            screen[row] = ""
        elif not part.startswith(("\x1b", "\r")):
            screen[row] += part
    return [line.rstrip() for line in screen if line.strip()]


class Redraw(Callback):
    """Draws the bar in every validation batch: the validation is too short to be drawn by the refresh thread."""

    def on_validation_batch_end(self, trainer: Any, *args: Any) -> None:
        trainer.progress_bar_callback.refresh(hard=True)


def test_the_bar_leaves_one_line_per_epoch(terminal):
    callbacks = [EpochSummary(), ProgressBar(), Redraw()]
    with redirect_stdout(terminal):
        fit(callbacks=callbacks, enable_progress_bar=True, log_every_n_steps=1, max_epochs=2)
    output = terminal.getvalue()
    assert "Epoch 1/2" in output and "Epoch 2/2" in output and "Epoch 0" not in output and "4/4" in output
    assert "Validation" in output and "train/loss" in output and "v_num" not in output
    assert [line.split(":")[0] for line in rendered(output)] == ["epoch 1/2", "epoch 2/2"]


def test_the_bar_is_erased_after_an_error_and_shown_in_a_run_that_resumes_within_an_epoch(terminal, tmp_path):
    class Save(Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step == 6:
                trainer.save_checkpoint(tmp_path / "a.ckpt")
                raise ValueError("error")

    settings: dict[str, Any] = {"enable_progress_bar": True, "max_epochs": 2}
    with pytest.raises(ValueError, match="error"), redirect_stdout(terminal):
        fit(callbacks=[Save(), EpochSummary(), ProgressBar()], **settings)
    assert [line.split(":")[0] for line in rendered(terminal.getvalue())] == ["epoch 1/2"]
    with redirect_stdout(Terminal()) as resumed:
        fit(callbacks=[EpochSummary(), ProgressBar()], resume=tmp_path / "a.ckpt", **settings)
    assert "Epoch 2/2" in resumed.getvalue() and "Epoch 1/2" not in resumed.getvalue()
    assert [line.split(":")[0] for line in rendered(resumed.getvalue())] == ["epoch 2/2"]


def test_the_bar_of_an_evaluation_is_erased(terminal):
    module, data = classifier(), Tiny()
    trainer(limit_train_batches=1).fit(module, datamodule=data)
    run = trainer(callbacks=[ProgressBar()], enable_progress_bar=True)
    with redirect_stdout(terminal):
        run.test(module, datamodule=data, verbose=False)
    assert "Testing" in terminal.getvalue() and rendered(terminal.getvalue()) == []


class SyncRecorder(Callback):
    """Records in which steps a value of a tensor is read, which would synchronize a GPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reads: dict[int, set[str]] = {}
        self.step = 0
        for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "nonzero"):
            monkeypatch.setattr(torch.Tensor, name, self._recording(name))

    def _recording(self, name: str) -> Any:
        original = getattr(torch.Tensor, name)

        def recorded(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            # Logged values are float64 and on the CPU, whatever the training runs on.
            if tensor.dtype != torch.float64 or tensor.ndim:
                self.reads.setdefault(self.step, set()).add(name)
            return original(tensor, *args, **kwargs)

        return recorded

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.step = batch_idx + 1


def test_only_logging_steps_synchronize_with_the_device(terminal, monkeypatch):
    # The bar is drawn in every step.
    monkeypatch.setattr("resnet_pl.callbacks.progress.MIN_REDRAW_SECONDS", 0)
    recorder = SyncRecorder(monkeypatch)
    run = trainer(callbacks=[recorder, ProgressBar()], log_every_n_steps=4, enable_progress_bar=True)
    with redirect_stdout(terminal):
        run.fit(classifier(), datamodule=Tiny(count=160, val_split=20, test_split=20))
    assert run.num_training_batches == 12
    # The first step initializes, the last ends the epoch.
    assert {step for step in recorder.reads if 1 < step < 12} == {4, 8}
    assert "train/loss" in run.progress_bar_metrics
