"""What takes effect, and what is refused, when a run goes on with other options."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from resnet_pl.cli import main
from resnet_pl.resume import changed_arguments
from resnet_pl.utils import UserError

PROJECT = Path(__file__).parent.parent
SMALL = [
    *["--config", str(PROJECT / "configs/digits.yaml"), "--model.backbone.depth", "8", "--trainer.logger", "false"],
    *["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1"],
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose normalisation layers and biases do not decay."""
    root = tmp_path_factory.mktemp("trained")
    spared = ["--model.decay_norm_and_bias", "false", "--trainer.default_root_dir", str(root / "runs")]
    assert main.main(["fit", *SMALL, *spared]) == 0
    return root / "runs"


@pytest.fixture
def runs(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(trained, tmp_path / "runs")).relative_to(tmp_path)


def groups(runs: Path) -> list[dict[str, Any]]:
    last = torch.load(runs / "digits/version_0/checkpoints/last.ckpt", weights_only=True)
    return last["optimizer_states"][0]["param_groups"]


def test_another_decay_and_momentum_take_effect(runs: Path) -> None:
    assert [(group["weight_decay"], group["momentum"]) for group in groups(runs)] == [(5e-4, 0.9), (0, 0.9)]
    other = ["--model.optimizer.weight_decay", "0.01", "--model.optimizer.momentum", "0.5"]
    assert main.main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "2", *other]) == 0
    assert [(group["weight_decay"], group["momentum"]) for group in groups(runs)] == [(0.01, 0.5), (0, 0.5)]
    assert main.main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "3"]) == 0
    assert [(group["weight_decay"], group["momentum"]) for group in groups(runs)] == [(0.01, 0.5), (0, 0.5)]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[("data.val_split", "0.2"), ("data.test_split", "100"), ("data.split_seed", "1")],
        *[("data.num_folds", "5"), ("data.fold", "1"), ("model.decay_norm_and_bias", "true")],
    ],
)
def test_what_cannot_change_is_refused_by_name(
    option: str, value: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*") if path.is_file()}
    assert main.main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "2", f"--{option}", value]) == 2
    error = capsys.readouterr().err
    assert f"error: {option}: the run was trained with" in error and "start a new run" in error
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*") if path.is_file()} == before


def test_the_same_options_again_are_no_change(runs: Path) -> None:
    same = ["--data.val_split", "180", "--data.split_seed", "0", "--model.optimizer.momentum", "0.9"]
    assert main.main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "2", *same]) == 0


def test_a_net_from_python_is_not_compared_and_other_data_keeps_its_own_split() -> None:
    def config(data: str, val_split: float, **optimizer: float) -> dict[str, Any]:
        return {
            "model": {"optimizer": {"class_path": "SGD", "init_args": optimizer}},
            "data": {"class_path": data, "init_args": {"val_split": val_split}},
        }

    now = config("A", 0.2, lr=1, momentum=0.5)
    assert changed_arguments({}, now) == changed_arguments(now, {}) == set()
    assert changed_arguments(config("B", 0.1, lr=2, momentum=0.9), now) == {"momentum"}
    with pytest.raises(UserError, match=r"data\.val_split: .* 0\.1, it cannot go on with 0\.2"):
        changed_arguments(config("A", 0.1, lr=1), now)


def test_a_warm_up_that_takes_too_long_ends_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    never = ["--model.schedule.warmup_error", "0", "--model.schedule.warmup_limit", "3", "--trainer.max_epochs", "3"]
    assert main.main(["fit", *SMALL, *never]) == 2
    error = capsys.readouterr().err
    assert "after 3 iterations of warm-up" in error and "--model.schedule.warmup_limit" in error
    last = torch.load("runs/digits/version_0/checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == last["lr_schedulers"][0]["last_epoch"] == 3
    assert len(last["lr_schedulers"][0]["errors"]) == 3


def test_a_file_in_the_middle_of_an_epoch_is_asked_for_on_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    saved = []
    monkeypatch.setattr(
        "lightning.pytorch.Trainer.save_checkpoint", lambda trainer, path, *args: saved.append(trainer.global_step)
    )
    often = [
        "--checkpoint.every_n_steps",
        "2",
        "--trainer.limit_train_batches",
        "7",
        "--trainer.limit_val_batches",
        "0",
    ]
    assert main.main(["fit", *SMALL, *often]) == 0
    assert saved == [2, 4, 6, 7]
    assert main.main(["fit", *SMALL, "--checkpoint.every_n_steps", "0"]) == 2
    assert "checkpoint.every_n_steps: 0 is out of range" in capsys.readouterr().err


def test_steps_after_the_checkpoint_are_not_shown_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    often = [word for word in SMALL if word not in ("--trainer.logger", "false")]
    often += ["--trainer.log_every_n_steps", "1", "--dashboard.images", "0", "--dashboard.graph", "false"]
    assert main.main(["fit", *often]) == 0
    run = Path("runs/digits/version_0")
    last = run / "checkpoints/last.ckpt"
    kept = last.read_bytes()
    for _ in range(2):
        # As if the process had been killed after some steps more.
        last.write_bytes(kept)
        assert main.main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "3"]) == 0
    with (run / "metrics.csv").open(newline="") as file:
        rows = [(int(row["step"]), float(row["train/loss"])) for row in csv.DictReader(file) if row["train/loss"]]
    shown = EventAccumulator(str(run)).Reload().Scalars("train/loss")
    assert [step for step, _ in rows] == [event.step for event in shown] == list(range(6))
    assert [loss for _, loss in rows] == pytest.approx([event.value for event in shown])
