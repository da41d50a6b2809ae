"""All callbacks of Lightning, given by name on the command line: each one works, or is refused before training."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import callbacks

from resnet_pl.checkpoint import METADATA_KEY
from resnet_pl.cli.main import main
from tests.cli.commands import SMALL, failed, refused, rows, run

RUN = Path("runs/digits/version_0")
TINY = [
    *[*SMALL, "--trainer.limit_train_batches", "3", "--trainer.limit_val_batches", "1"],
    *["--trainer.log_every_n_steps", "1", "--model.schedule.warmup", "0"],
]

# The arguments of each callback, without the prefix `--trainer.callbacks.`.
WORKS: dict[str, list[str]] = {
    "BatchSizeFinder": ["max_trials", "1", "steps_per_trial", "1"],
    "Callback": [],  # does nothing
    "Checkpoint": [],  # does nothing
    "EMAWeightAveraging": ["decay", "0.5"],
    "EarlyStopping": ["monitor", "val/loss", "stopping_threshold", "100"],
    "LambdaCallback": ["on_train_end", f"{__name__}.note_end"],
    "LearningRateFinder": ["num_training_steps", "15", "early_stop_threshold", "null"],
    "LearningRateMonitor": [],
    "ModelCheckpoint": ["monitor", "val/loss", "filename", "mine"],
    "ModelPruning": ["pruning_fn", "l1_unstructured"],
    "ModelSummary": [],
    "OnExceptionCheckpoint": ["dirpath", "exceptions"],
    "ProgressBar": [],  # does nothing
    "RichModelSummary": [],
    "RichProgressBar": [],
    "SpikeDetection": ["atol", "0", "rtol", "0.0001"],
    "StochasticWeightAveraging": ["swa_lrs", "0.01", "swa_epoch_start", "1"],
    "TQDMProgressBar": [],
    "ThroughputMonitor": ["batch_size_fn", f"{__name__}.size"],
    "Timer": ["duration", "{milliseconds: 1}"],
    "WeightAveraging": [],
}
# Arguments, and words of the message.
REFUSED: dict[str, tuple[list[str], list[str]]] = {
    "BackboneFinetuning": ([], ["BackboneFinetuning", "callbacks+=Freeze"]),
    "BaseFinetuning": ([], ["BaseFinetuning", "callbacks+=Freeze"]),
    "BasePredictionWriter": ([], ["BasePredictionWriter", "predictions.csv"]),
    "GradientAccumulationScheduler": (["scheduling", "{0: 1, 1: 3}"], ["--trainer.accumulate_grad_batches"]),
}
# Needs a package that is not installed with this project.
HAS_PSUTIL = importlib.util.find_spec("psutil") is not None
if HAS_PSUTIL:
    WORKS["DeviceStatsMonitor"] = []
else:
    REFUSED["DeviceStatsMonitor"] = [], ["pip install 'psutil'"]


def note_end(*_: Any) -> None:
    Path("end").touch()


def size(batch: Any) -> int:
    return len(batch.labels)


def options(*names: str) -> list[str]:
    """The command line with these callbacks."""
    line = list(TINY)
    for name in names:
        words = WORKS[name] if name in WORKS else REFUSED[name][0]
        # Another class of this project has this name.
        path = "lightning.pytorch.callbacks.ProgressBar" if name == "ProgressBar" else name
        line.append(f"--trainer.callbacks+={path}")
        pairs = zip(words[::2], words[1::2], strict=True)
        line += [word for key, value in pairs for word in (f"--trainer.callbacks.{key}", value)]
    return line


def last() -> dict[str, Any]:
    return torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)


def resume_until(epoch: int) -> None:
    """Resumes the run with the callbacks of its configuration."""
    run("fit", "--ckpt_path", "last", "--trainer.max_epochs", epoch)
    assert last()["epoch"] == epoch - 1


def test_the_tables_list_all_callbacks_of_lightning() -> None:
    assert WORKS.keys() | REFUSED.keys() == set(callbacks.__all__) and not WORKS.keys() & REFUSED.keys()


@pytest.mark.parametrize("name", REFUSED)
def test_a_callback_is_refused_before_training(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "fit", *options(name))
    assert all(word in message for word in REFUSED[name][1]), message
    assert not list(Path().rglob("version_*"))


def test_callbacks_that_report_and_save(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["Callback", "Checkpoint", "LambdaCallback", "LearningRateMonitor", "ModelCheckpoint", "ModelSummary"]
    names += ["ThroughputMonitor", "ProgressBar", *(["DeviceStatsMonitor"] if HAS_PSUTIL else [])]
    run("fit", *options(*names))
    assert "Trainable params" in capsys.readouterr().out
    assert Path("end").exists() and torch.load(RUN / "checkpoints/mine.ckpt", weights_only=True)[METADATA_KEY]
    logged = {key for row in rows(RUN) for key, value in row.items() if value}
    assert {"lr-SGD", "train/samples", "validate/samples"} <= logged
    assert not HAS_PSUTIL or any(key.startswith("DeviceStatsMonitor") for key in logged)
    resume_until(3)
    assert sum(bool(row["lr-SGD"]) for row in rows(RUN)) == 9


def test_early_stopping_gives_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    run("fit", *options("EarlyStopping", "RichModelSummary", "RichProgressBar"), "--trainer.max_epochs", 5)
    out = capsys.readouterr().out
    assert last()["epoch"] == 0 and "Stopping threshold reached: val/loss" in out
    assert out.count("Trainable params") == 1 and out.count("3/3") == 1  # one summary, one bar


def test_a_larger_patience_takes_effect_in_a_resumed_run(capsys: pytest.CaptureFixture[str]) -> None:
    # The loss must grow, so that the run stops soon.
    stop = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor", "val/loss"]
    stop += ["--trainer.callbacks.mode", "max", "--trainer.callbacks.min_delta", 100, "--trainer.max_epochs", 6]
    run("fit", *TINY, *stop, "--trainer.callbacks.patience", 1)
    assert last()["epoch"] == 1
    # The callback of the same class and monitor replaces the one of the first command.
    run("fit", *TINY, *stop, "--trainer.callbacks.patience", 3, "--ckpt_path", "last")
    assert last()["epoch"] == 3


def test_a_timer_stops_within_an_epoch_and_the_run_resumes_exactly(capsys: pytest.CaptureFixture[str]) -> None:
    run("fit", *options("Timer"))
    out = capsys.readouterr().out
    assert "Time limit reached" in out and "max_epochs" not in out and last()["global_step"] == 1
    run("fit", "--ckpt_path", "last", "--trainer.callbacks.duration", "{hours: 1}")
    run("fit", *TINY, "--name", "whole")
    whole = torch.load("runs/whole/version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(weight, whole[key]) for key, weight in last()["state_dict"].items())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["EMAWeightAveraging", "WeightAveraging"])
def test_an_average_of_the_weights_is_saved(name: str) -> None:
    run("fit", *options(name, "TQDMProgressBar"))
    checkpoint = last()
    key = "backbone.conv1.weight"
    assert not torch.equal(checkpoint["state_dict"][key], checkpoint["current_model_state"][key])


@pytest.mark.slow  # also in test_own_optim.py
def test_stochastic_weight_averaging(capsys: pytest.CaptureFixture[str]) -> None:
    run("fit", *options("StochasticWeightAveraging"))
    assert "`SWALR`" in capsys.readouterr().out  # the schedule that it swaps in
    assert len({row["lr"] for row in rows(RUN) if row["lr"]}) == 3  # one learning rate in each epoch
    config = yaml.safe_load((RUN / "config.yaml").read_text())["trainer"]["callbacks"][0]
    assert config["init_args"]["device"] == "cpu"


def test_pruning() -> None:
    run("fit", *options("ModelPruning"), "--model.channels_last", "false", "--trainer.max_epochs", 1)
    weights = [weight for key, weight in last()["state_dict"].items() if key.endswith("conv1.weight")]
    assert sum(int((weight == 0).sum()) for weight in weights) > sum(weight.numel() for weight in weights) / 4
    config = yaml.safe_load((RUN / "config.yaml").read_text())["trainer"]["callbacks"][0]
    assert config["init_args"]["pruning_fn"] == "l1_unstructured"


@pytest.mark.slow  # also in test_own_optim.py
def test_the_finders_store_what_they_found(capsys: pytest.CaptureFixture[str]) -> None:
    names, enough = ("BatchSizeFinder", "LearningRateFinder"), ["--trainer.limit_train_batches", "15"]
    run("fit", *options(*names), *enough, "--data.batch_size", 16, "--trainer.max_epochs", 1)
    assert "batch size finder" in capsys.readouterr().out
    config = yaml.safe_load((RUN / "config.yaml").read_text())
    assert config["data"]["init_args"]["batch_size"] == 2 and not config["trainer"]["callbacks"]
    assert config["model"]["init_args"]["optimizer"]["init_args"]["lr"] != 0.1


def test_a_spike_ends_the_run_and_an_exception_is_saved(capsys: pytest.CaptureFixture[str]) -> None:
    message = failed(capsys, 2, "fit", *options("SpikeDetection", "OnExceptionCheckpoint"), "--model.optimizer.lr", 5)
    assert "spike detected" in message and "skip_batches.json" in message
    assert json.loads(Path("runs/skip_batches.json").read_text())
    assert torch.load("exceptions/on_exception.ckpt", weights_only=True)[METADATA_KEY]


@pytest.mark.slow
def test_a_run_with_spike_detection_cannot_be_resumed(capsys: pytest.CaptureFixture[str]) -> None:
    run("fit", *TINY, "--trainer.callbacks+=SpikeDetection")
    assert "SpikeDetection" in refused(capsys, "fit", "--ckpt_path", "last", "--trainer.max_epochs", 3)
    assert main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "3", "--trainer.callbacks", "[]"]) == 0
