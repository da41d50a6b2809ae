"""After a signal or an error at any batch, the resumed run is bitwise equal to an uninterrupted one."""

from __future__ import annotations

import csv
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import nn

from resnet_pl.callbacks import BestCheckpoint, GracefulStop, LastCheckpoint, MetricsCSV, Throughput
from resnet_pl.optim import Schedule
from tests.faults.kills import first_difference
from tests.tiny import Tiny, classifier, optimizer, trainer

STEPS = {"max_epochs": -1, "max_steps": 10}


class InjectedError(RuntimeError):
    """The error that `Stop` raises."""


class Stop(Callback):
    """Sends SIGTERM to this process in a certain call of a hook, or raises an error.

    Args:
        how: SIGTERM or error.
        hook: name of the hook.
        number: which call of the hook, from 1.
    """

    def __init__(self, how: str, hook: str, number: int) -> None:
        self.how, self.remaining = how, number
        setattr(self, hook, self.on_call)

    def on_call(self, *args: Any) -> None:
        self.remaining -= 1
        if self.remaining == 0:
            if self.how == "error":
                raise InjectedError
            signal.raise_signal(signal.SIGTERM)


def fit(
    folder: Path,
    *callbacks: Callback,
    every: int | None = None,
    schedule: Schedule = Schedule("cosine", "iterations", warmup=3),  # noqa: B008 - immutable
    **settings: Any,
) -> None:
    """Trains with four batches per epoch; resumes from last.ckpt if it exists."""
    torch.manual_seed(0)  # of the weights
    last = folder / "last.ckpt"
    start = torch.load(last, weights_only=True)["global_step"] if last.is_file() else 0
    network = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(0.1), nn.Linear(36, 4))
    module = classifier(backbone=network, optimizer=optimizer(lr=0.05, momentum=0.9), schedule=schedule)
    saving = [Throughput(), BestCheckpoint(folder), LastCheckpoint(folder, every_n_steps=every), GracefulStop(folder)]
    settings = {"log_every_n_steps": 3, "enable_checkpointing": True, "logger": MetricsCSV(folder, start), **settings}
    ckpt_path = last if last.is_file() else None
    trainer(callbacks=[*callbacks, *saving], **settings).fit(
        module, datamodule=Tiny(count=80), ckpt_path=ckpt_path, weights_only=True
    )


def outcome(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """The states of the checkpoints of a run, and the rows of its metrics.csv without times."""
    keys = ("state_dict", "optimizer_states", "lr_schedulers", "callbacks", "global_step")
    saved = [torch.load(path, weights_only=True) for path in sorted(folder.glob("*.ckpt"))]
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [{name: value for name, value in row.items() if "second" not in name} for row in csv.DictReader(file)]
    return [{key: checkpoint[key] for key in keys} for checkpoint in saved], rows


# Validation at the end of each epoch is tested in tests/callbacks.
SETTINGS: dict[str, dict[str, Any]] = {
    "epochs, gradient accumulation, validation within": {
        "max_epochs": 2,
        "val_check_interval": 3,
        "accumulate_grad_batches": 2,
    },
    "steps": STEPS,
    "steps, no validation": {**STEPS, "limit_val_batches": 0},
    "steps, validation within epochs": {**STEPS, "val_check_interval": 3},
    "steps, validation across epochs": {**STEPS, "val_check_interval": 3, "check_val_every_n_epoch": None, "every": 1},
    "steps, gradient accumulation": {"max_epochs": -1, "max_steps": 5, "accumulate_grad_batches": 3, "every": 1},
}

# Slow tests: the other settings cover the same code.
RARE = ("steps", "steps, no validation", "steps, validation across epochs", "steps, gradient accumulation")


@pytest.mark.parametrize("how", ["SIGTERM", pytest.param("error", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in RARE else []) for name in SETTINGS]
)
def test_stopped_anywhere(name: str, how: str, tmp_path: Path) -> None:
    settings = SETTINGS[name]
    fit(tmp_path / "uninterrupted", **settings)
    uninterrupted, stops = outcome(tmp_path / "uninterrupted"), 0
    for hook in ("on_train_batch_start", "on_validation_batch_start"):
        for number in range(1, 20, 1 if how == "error" else 2):
            folder = tmp_path / f"{hook}{number}"
            stop = Stop(how, hook, number)
            try:
                fit(folder, stop, **settings)
            except (SIGTERMException, InjectedError):
                stops += 1
                fit(folder, **settings)
            if stop.remaining > 0:
                break
            assert first_difference(outcome(folder), uninterrupted) is None, f"stopped at {hook} {number}"
    assert stops >= 4


# Steps, with four batches per epoch and a validation after three of them.
@pytest.mark.parametrize("end", [1, 2, 3, 5, 7, 9])
def test_a_run_resumed_with_more_steps(end: int, tmp_path: Path) -> None:
    settings = {**STEPS, "val_check_interval": 3, "schedule": Schedule("plateau", patience=1)}
    fit(tmp_path / "uninterrupted", **settings)
    fit(tmp_path / "extended", **settings | {"max_steps": end})
    fit(tmp_path / "extended", **settings)
    (expected, expected_rows), (extended, rows) = (outcome(tmp_path / name) for name in ("uninterrupted", "extended"))
    compared = ["state_dict", "optimizer_states", "lr_schedulers"] + (["callbacks"] if end % 4 == 3 else [])
    assert first_difference(*({key: saved[-1][key] for key in compared} for saved in (extended, expected))) is None
    # The end of the first, shorter run has additional rows.
    assert [row for row in rows if row in expected_rows] == expected_rows
