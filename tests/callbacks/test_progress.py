"""What is told before the first step."""

import io
import re
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from resnet_pl.callbacks import Freeze, ProgressBar, RunSummary
from resnet_pl.optim import Schedule
from tests.tiny import Tiny, classifier, optimizer, trainer


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """The report writes splits.json below the working folder."""
    monkeypatch.chdir(tmp_path)


def report(capsys: pytest.CaptureFixture, *callbacks: Any, data: Any = None, module: Any = None, **kwargs: Any) -> dict:
    run = trainer(callbacks=[*callbacks, RunSummary(Path("runs/tiny/version_0"))], limit_train_batches=3, **kwargs)
    run.fit(module or classifier(), datamodule=data or Tiny())
    lines = capsys.readouterr().out.splitlines()
    return {line[:10].strip(): line[10:] for line in lines if re.match(r"\w+ +\S", line)}


def test_the_whole_report(capsys):
    module = classifier(schedule=Schedule("cosine", warmup=1), optimizer=optimizer(lr=0.05))
    told = report(capsys, module=module, max_epochs=2)
    parameters = sum(p.numel() for p in module.parameters())
    assert told.pop("device").startswith("1 × cpu, ")
    assert told == {
        "run": "runs/tiny/version_0",
        "net": f"ResNet, {parameters:,} parameters",
        "data": "Tiny: 40 train + 20 val + 20 test images, 4 classes",
        "batch": "10; the paper's is 256",
        "training": "SGD, learning rate 0.05, cosine after 1 epochs of warm-up, 2 epochs, 6 iterations",
    }


def test_the_batch_is_told_in_its_factors_and_the_scaled_rate(capsys):
    module = classifier(base_batch_size=20, optimizer=optimizer(lr=0.1))
    told = report(capsys, module=module, accumulate_grad_batches=4)
    assert told["batch"] == "40 (10 images × 4 accumulated); the paper's is 256"
    assert "learning rate 0.2," in told["training"]


def test_the_papers_own_batch_needs_no_word(capsys):
    class Paper(Tiny):
        paper_batch_size = 10

    assert report(capsys, data=Paper())["batch"] == "10"


class Stop(Callback):
    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        trainer.should_stop = True


def test_frozen_parameters_precision_and_an_open_end(capsys):
    module = classifier(schedule=Schedule("constant"))
    told = report(capsys, Freeze(), Stop(), module=module, max_epochs=-1, precision="bf16-mixed")
    assert told["net"].endswith("parameters, 260 of them trained")
    assert told["training"].endswith("constant, no set end")
    assert told["device"].endswith("precision bf16-mixed")


def test_a_run_that_goes_on_says_from_where(capsys, tmp_path):
    run = trainer(limit_train_batches=3)
    run.fit(classifier(), datamodule=Tiny())
    run.save_checkpoint(tmp_path / "a.ckpt")
    again = trainer(limit_train_batches=3, max_epochs=2, callbacks=[RunSummary(Path("runs/tiny/version_0"))])
    again.fit(classifier(), datamodule=Tiny(), ckpt_path=tmp_path / "a.ckpt")
    assert "runs/tiny/version_0, going on from step 3\n" in capsys.readouterr().out


def test_the_bar_shows_the_loss_and_not_the_version():
    bar, module = ProgressBar(), classifier()
    run = trainer(callbacks=[bar], enable_progress_bar=True, log_every_n_steps=1, limit_train_batches=1)
    run.fit(module, datamodule=Tiny())
    shown = bar.get_metrics(run, module)
    assert "v_num" not in shown
    assert {"train/loss", "val/top1"} <= shown.keys()


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


class Asked(Callback):
    """Which steps ask a tensor for its value."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: dict[int, set[str]] = {}
        self.step = 0
        for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "nonzero"):
            monkeypatch.setattr(torch.Tensor, name, self._noting(name))

    def _noting(self, name: str) -> Any:
        ask = getattr(torch.Tensor, name)

        def noted(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            # Values that have been logged are float64 and on the CPU, whatever the training runs on.
            if tensor.dtype == torch.float64 and tensor.ndim == 0:
                return ask(tensor, *args, **kwargs)
            self.asked.setdefault(self.step, set()).add(name)
            return ask(tensor, *args, **kwargs)

        return noted

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.step = batch_idx + 1


class Always(ProgressBar):
    """Drawn in every step."""

    _due = property(lambda self: 0.0, lambda self, due: None)


def test_no_step_but_the_logging_ones_asks_the_device(monkeypatch, tmp_path):
    asked = Asked(monkeypatch)
    run = trainer(callbacks=[asked, Always()], log_every_n_steps=4, enable_progress_bar=True)
    with redirect_stdout(Screen()):
        run.fit(classifier(), datamodule=Tiny(count=160, val_split=20, test_split=20))
    assert run.num_training_batches == 12
    # The first makes what it needs, the last ends the epoch.
    assert {step for step in asked.asked if 1 < step < 12} == {4, 8}
    assert "train/loss" in run.progress_bar_metrics
