"""A module of the user's own works with fit, resume, test, predict, compare and sweep."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn
from torch.utils.data import DataLoader

from resnet_pl import ImageClassifier, load_model, load_run
from resnet_pl.cli.main import main
from resnet_pl.models import cifar_resnet
from tests import own

DIGITS = str(Path(__file__).parent.parent / "configs/digits.yaml")
SMALL = [
    "--config",
    DIGITS,
    "--model.backbone.depth",
    "8",
    "--data.image_size",
    "8",
    "--trainer.limit_train_batches",
    "3",
]
FOLDER = DIGITS.replace("digits", "folder")
NETWORK = ["--model.backbone", "cifar_resnet", "--model.backbone.depth", "8"]
PLAIN = ["--model", "tests.own.PlainModule", "--data", "tests.own.PlainData"]


class Names(own.PlainModule):
    """Arguments with the names of this project's own ones, and other meanings."""

    def __init__(self, backbone: str = "resnet18", schedule: str | None = None, metrics: str = "") -> None:
        super().__init__()
        self.save_hyperparameters()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class NamesData(own.PlainData):
    """The same for data."""

    def __init__(self, path: str = "", cache: str | None = None, decode: str = "cpu") -> None:
        super().__init__()


def state(path: str) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def columns(path: str) -> list[str]:
    with Path(path).open(newline="") as file:
        return next(csv.reader(file))


def test_a_plain_module_and_plain_data(capsys: pytest.CaptureFixture[str]) -> None:
    options = [*PLAIN, "--checkpoint.monitor", "val_acc", "--trainer.log_every_n_steps", "2"]
    assert main(["fit", *options, "--name", "a", "--trainer.max_epochs", "1", "--model.width", "6"]) == 0
    assert main(["fit", "--ckpt_path", "runs/a/version_0", "--trainer.max_epochs", "2"]) == 0
    assert main(["fit", *options, "--name", "b", "--trainer.max_epochs", "2", "--model.width", "6"]) == 0
    resumed, complete = (state(f"runs/{name}/version_0/checkpoints/last.ckpt") for name in "ab")
    assert all(torch.equal(resumed[key], complete[key]) for key in complete)
    assert {"train_loss", "val_acc"} <= {*columns("runs/a/version_0/metrics.csv")}

    for name in "ab":
        assert main(["test", "--ckpt_path", f"runs/{name}/version_0"]) == 0
        results = json.loads(Path(f"runs/{name}/version_0/results.json").read_text())
        assert 0.3 < results["metrics"]["test_acc"] <= 1
        assert results["top1"] is None and results["split"] == "test"
    assert main(["predict", "--ckpt_path", "runs/a/version_0"]) == 0
    outputs = torch.load("runs/a/version_0/predictions.pt")
    assert [output.shape for output in outputs] == [(10, 3)] * 6

    capsys.readouterr()
    assert main(["compare", "runs"]) == 0
    assert f"{results['metrics']['test_acc']:.4f}" in capsys.readouterr().out


def test_arguments_keep_the_names_and_values_of_the_user(capsys: pytest.CaptureFixture[str]) -> None:
    model = [f"--model={__name__}.Names", "--model.backbone", "resnet50", "--model.schedule", "cosine"]
    data = ["--data", f"{__name__}.NamesData", "--data.path", "x/y", "--data.cache", "null", "--data.decode", "fast"]
    assert main(["fit", *model, *data, "--trainer.max_epochs", "1", "--checkpoint.monitor", "val_acc"]) == 0
    run = Path("runs/resnet/version_0")
    stored = torch.load(run / "checkpoints/best.ckpt", weights_only=True)
    assert stored["hyper_parameters"]["backbone"] == "resnet50" and stored["hyper_parameters"]["schedule"] == "cosine"
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["data"]["init_args"] == {"path": "x/y", "cache": None, "decode": "fast"}
    assert main(["test", "--ckpt_path", "best"]) == 0
    assert main(["fit", "--config", str(run / "config.yaml"), "--trainer.fast_dev_run", "true"]) == 0


@pytest.mark.slow  # the page docs/extend.md has the same
def test_a_subclass_with_one_overridden_method() -> None:
    options = [*SMALL, "--model", "tests.own.Distilled", "--model.teacher_weight", "0.25"]
    assert main(["fit", *options, "--name", "distilled", "--trainer.max_epochs", "1"]) == 0
    assert main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "2"]) == 0
    assert main(["test", "--ckpt_path", "best"]) == 0
    assert main(["predict", "--ckpt_path", "best"]) == 0
    run = Path("runs/distilled/version_0")
    names = columns(str(run / "metrics.csv"))
    assert {"train/loss", "val/top1"} <= {*names} and "train/top1" not in names
    assert json.loads((run / "results.json").read_text())["images"] == 360
    assert len((run / "predictions.csv").read_text().splitlines()) == 361


def test_own_optimizers_and_what_is_logged_in_the_test(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *SMALL, "--model", "tests.own.LogsInTest", "--trainer.max_epochs", "2"]) == 0
    assert "Adam, learning rate 0.01, StepLR, 2 epochs" in capsys.readouterr().out
    assert main(["test", "--ckpt_path", "best"]) == 0
    assert "answer" in capsys.readouterr().out
    assert json.loads(Path("runs/digits/version_0/results.json").read_text())["metrics"] == {"answer": 42.0}


def test_a_module_without_arguments_and_without_an_optimizer() -> None:
    options = ["--model", "tests.own.NoArguments", "--data", "tests.own.PlainData"]
    assert main(["fit", *options, "--trainer.max_epochs", "1"]) == 0
    assert main(["test", "--ckpt_path", "last"]) == 0


def test_a_resume_with_another_argument_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *PLAIN, "--trainer.max_epochs", "1"]) == 0
    resume = ["fit", "--ckpt_path", "last", "--trainer.max_epochs", "2"]
    assert main([*resume, "--model.lr", "0.5"]) == 2
    assert "model.lr: the run was trained with 0.1" in capsys.readouterr().err


@pytest.mark.slow
def test_a_sweep_of_a_plain_module() -> None:
    options = ["--", *PLAIN, "--checkpoint.monitor", "val_acc", "--trainer.max_epochs", "1"]
    assert main(["sweep", "--grid", "model.width=4,16", *options]) == 0
    table = Path("runs/sweep/comparison.md").read_text()
    assert "best val_acc" in table and "test val_acc" in table


def test_a_module_loads_another_run_in_its_constructor(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        main(["fit", "--data", "tests.own.PlainData", *NETWORK, "--name", "teacher", "--trainer.max_epochs", "1"]) == 0
    )
    # Options may come before their class.
    options = ["--model.teacher_run", "runs/teacher/version_0", "--model", "tests.own.LoadsTeacher"]
    with monkeypatch.context() as patched:
        loaded: list[Any] = []
        patched.setattr(own, "load_run", lambda path: loaded.append(load_run(path)) or loaded[-1])
        assert main(["fit", *SMALL, *options, "--trainer.max_epochs", "1"]) == 0
    ((teacher, _),) = loaded
    assert teacher.hparams["num_classes"] == 3 and teacher.hparams["label_smoothing"] == 0


def test_a_callback_that_needs_a_backbone_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *PLAIN, "--trainer.callbacks+=Freeze", "--trainer.max_epochs", "1"]) == 2
    assert "backbone" in capsys.readouterr().err


class FixedNetwork(ImageClassifier):
    """Builds its network itself, and passes on no argument."""

    def __init__(self, depth: int = 8) -> None:
        super().__init__(cifar_resnet(depth))


class FixedArgument(ImageClassifier):
    """Fixes an argument, and passes on the others."""

    def __init__(self, backbone: nn.Module, **kwargs: Any) -> None:
        super().__init__(backbone, channels_last=False, **kwargs)


def test_subclasses_that_fix_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data", "Digits", "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2"]
    for cls, network in (("FixedNetwork", []), ("FixedArgument", NETWORK)):
        assert main(["fit", "--model", f"{__name__}.{cls}", *network, *data, "--name", cls]) == 0
        path = f"runs/{cls}/version_0/checkpoints/last.ckpt"
        model = load_model(path)
        assert model.predict([torch.zeros(3, 16, 16, dtype=torch.uint8)])[0].class_name in model.class_names
        assert main(["test", "--ckpt_path", path]) == 0


class DictData(LightningDataModule):
    """Batches that are dictionaries."""

    def train_dataloader(self) -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(0)
        rows = [{"x": torch.rand(4, generator=generator), "y": torch.tensor(i % 3)} for i in range(12)]
        return DataLoader(rows, batch_size=4)

    val_dataloader = test_dataloader = train_dataloader


class DictModule(LightningModule):
    """Takes them in all steps."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, torch.Tensor]:
        logits = self.layer(batch["x"])
        return {"loss": nn.functional.cross_entropy(logits, batch["y"]), "logits": logits}

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, torch.Tensor]:
        self.log("val/loss", self.training_step(batch, batch_idx)["loss"])
        return {"probabilities": self.layer(batch["x"]).softmax(1), "labels": batch["y"]}

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_batches_of_another_kind() -> None:
    options = ["--model", f"{__name__}.DictModule", "--data", f"{__name__}.DictData", "--trainer.max_epochs", "1"]
    assert main(["fit", *options, "--checkpoint.monitor", "val/loss"]) == 0
    assert main(["test", "--ckpt_path", "best"]) == 0
