"""A signal or an error at any batch, whatever ends there: the resumed run is bitwise the run that was never stopped."""

from __future__ import annotations

import csv
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException

from resnet_pl.callbacks import BestCheckpoint, GracefulStop, LastCheckpoint, MetricsCSV, Throughput
from resnet_pl.optim import Schedule
from tests.faults.kills import unlike
from tests.tiny import Tiny, classifier, optimizer, trainer

STEPS = {"max_epochs": -1, "max_steps": 10}


class Fault(RuntimeError):
    """Ends a training within a step."""


class Stop(Callback):
    """Sends SIGTERM to this process at the n-th call of a hook, or raises an error."""

    def __init__(self, how: str, hook: str, number: int) -> None:
        self.how, self.left = how, number
        setattr(self, hook, self.called)

    def called(self, *args: Any) -> None:
        self.left -= 1
        if self.left == 0:
            if self.how == "error":
                raise Fault
            signal.raise_signal(signal.SIGTERM)


def fit(
    folder: Path,
    *callbacks: Callback,
    every: int | None = None,
    schedule: Schedule = Schedule("cosine", "iterations", warmup=3),  # noqa: B008 - never changed
    **settings: Any,
) -> None:
    """Trains with four batches an epoch, from last.ckpt where it is there."""
    last = folder / "last.ckpt"
    start = torch.load(last, weights_only=True)["global_step"] if last.is_file() else 0
    module = classifier(optimizer=optimizer(lr=0.05, momentum=0.9), schedule=schedule)
    saving = [Throughput(), BestCheckpoint(folder), LastCheckpoint(folder, every_n_steps=every), GracefulStop(folder)]
    settings = {"log_every_n_steps": 3, "enable_checkpointing": True, "logger": MetricsCSV(folder, start), **settings}
    ckpt_path = last if last.is_file() else None
    trainer(callbacks=[*callbacks, *saving], **settings).fit(
        module, datamodule=Tiny(count=80), ckpt_path=ckpt_path, weights_only=True
    )


def ended(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """What a run has come to."""
    kept = ("state_dict", "optimizer_states", "lr_schedulers", "callbacks", "global_step")
    saved = [torch.load(path, weights_only=True) for path in sorted(folder.glob("*.ckpt"))]
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [{name: value for name, value in row.items() if "second" not in name} for row in csv.DictReader(file)]
    return [{key: checkpoint[key] for key in kept} for checkpoint in saved], rows


# Epochs that are validated at their ends are in tests/callbacks/test_exact_resume.py.
TIMES: dict[str, dict[str, Any]] = {
    "epochs, accumulated, validated within": {"max_epochs": 2, "val_check_interval": 3, "accumulate_grad_batches": 2},
    "steps": STEPS,
    "steps, not validated": {**STEPS, "limit_val_batches": 0},
    "steps, validated within epochs": {**STEPS, "val_check_interval": 3},
    "steps, validated across epochs": {**STEPS, "val_check_interval": 3, "check_val_every_n_epoch": None, "every": 1},
    "steps, accumulated": {"max_epochs": -1, "max_steps": 5, "accumulate_grad_batches": 3, "every": 1},
}


# The others come to the same places in other ways.
RARE = ("epochs, validated each second", "steps, not validated", "steps, accumulated")


@pytest.mark.parametrize("how", ["SIGTERM", pytest.param("error", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "times", [pytest.param(name, marks=[pytest.mark.slow] if name in RARE else []) for name in TIMES]
)
def test_stopped_anywhere(times: str, how: str, tmp_path: Path) -> None:
    settings = TIMES[times]
    fit(tmp_path / "whole", **settings)
    whole, stops = ended(tmp_path / "whole"), 0
    for hook in ("on_train_batch_start", "on_validation_batch_start"):
        for number in range(1, 20):
            folder = tmp_path / f"{hook}{number}"
            stop = Stop(how, hook, number)
            try:
                fit(folder, stop, **settings)
            except (SIGTERMException, Fault):
                stops += 1
                fit(folder, **settings)
            if stop.left > 0:
                break
            assert unlike(ended(folder), whole) is None, f"stopped at {hook} {number}"
    assert stops >= 7


# Within an epoch of four batches; after three it is validated anyway.
@pytest.mark.parametrize("end", [1, 2, 3, 5, 7, 9])
def test_a_run_that_is_made_longer(end: int, tmp_path: Path) -> None:
    settings = {**STEPS, "val_check_interval": 3, "schedule": Schedule("plateau", patience=1)}
    fit(tmp_path / "whole", **settings)
    fit(tmp_path / "longer", **settings | {"max_steps": end})
    fit(tmp_path / "longer", **settings)
    (whole, whole_rows), (longer, rows) = ended(tmp_path / "whole"), ended(tmp_path / "longer")
    compared = ["state_dict", "optimizer_states", "lr_schedulers"] + (["callbacks"] if end % 4 == 3 else [])
    assert unlike(*({key: saved[-1][key] for key in compared} for saved in (longer, whole))) is None
    # The end of the shorter run has rows of its own.
    assert [row for row in rows if row in whole_rows] == whole_rows
