"""The summary that is printed before the first step."""

import re
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback

from resnet_pl.callbacks import Freeze, RunSummary
from resnet_pl.optim import Schedule
from tests.tiny import Tiny, classifier, optimizer, trainer

RUN = "runs/tiny/version_0"


@pytest.fixture(autouse=True)
def working_folder(tmp_path, monkeypatch):
    """The callback writes files below the working folder."""
    monkeypatch.chdir(tmp_path)


def summary(
    capsys: pytest.CaptureFixture, *callbacks: Any, data: Any = None, module: Any = None, **kwargs: Any
) -> dict[str, str]:
    run = trainer(callbacks=[*callbacks, RunSummary(Path(RUN))], limit_train_batches=3, **kwargs)
    run.fit(module or classifier(), datamodule=data or Tiny())
    lines = capsys.readouterr().out.splitlines()
    return {line[:10].strip(): line[10:] for line in lines if re.match(r"\w+ +\S", line)}


def test_all_lines(capsys):
    module = classifier(schedule=Schedule("cosine", warmup=1), optimizer=optimizer(lr=0.05))
    lines = summary(capsys, module=module, max_epochs=2)
    parameters = sum(p.numel() for p in module.parameters())
    assert lines.pop("device").startswith("1 × cpu, ")
    assert lines == {
        "run": RUN,
        "model": f"ResNet, {parameters:,} parameters",
        "data": "Tiny: 40 train + 20 val + 20 test images, 4 classes",
        "classes": "class 0, class 1, class 2, class 3",
        "batch": "10",
        "training": "SGD, learning rate 0.05, cosine after 1 epoch of warm-up, 2 epochs, 6 iterations",
    }


def test_the_factors_of_the_batch_size_and_the_scaled_learning_rate(capsys):
    module = classifier(base_batch_size=20, optimizer=optimizer(lr=0.1))
    lines = summary(capsys, module=module, accumulate_grad_batches=4)
    assert lines["batch"] == "40 = 10 images × 4 accumulated"
    assert "learning rate 0.2," in lines["training"]


def test_the_batch_size_of_the_paper(capsys):
    class Paper(Tiny):
        paper_batch_size = 20

    assert summary(capsys, data=Paper())["batch"] == "10 (paper: 20)"
    assert summary(capsys, data=Paper(), accumulate_grad_batches=2)["batch"] == "20 = 10 images × 2 accumulated"


class Stop(Callback):
    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        trainer.should_stop = True


def test_frozen_parameters_precision_and_a_run_without_limit(capsys):
    module = classifier(schedule=Schedule("constant"))
    lines = summary(capsys, Freeze(), Stop(), module=module, max_epochs=-1, precision="bf16-mixed")
    assert "260 of them trainable" in lines["model"]
    assert lines["training"].endswith("constant, no limit")
    assert lines["device"].endswith("precision bf16-mixed")


def test_the_step_of_a_resumed_run(capsys, tmp_path):
    run = trainer(limit_train_batches=3)
    run.fit(classifier(), datamodule=Tiny())
    run.save_checkpoint(tmp_path / "a.ckpt")
    resumed = trainer(limit_train_batches=3, max_epochs=2, callbacks=[RunSummary(Path(RUN))])
    resumed.fit(classifier(), datamodule=Tiny(), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert f"{RUN}, resuming from step 3\n" in capsys.readouterr().out
