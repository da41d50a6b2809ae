"""A signal at any batch, whatever ends there: the run that is resumed is bitwise the run that was never stopped."""

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


class Stop(Callback):
    """Sends SIGTERM to this process at the n-th call of a hook."""

    def __init__(self, hook: str, number: int) -> None:
        self.left = number
        setattr(self, hook, self.called)

    def called(self, *args: Any) -> None:
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGTERM)


def fit(folder: Path, *callbacks: Callback, every: int | None = None, **settings: Any) -> None:
    """Trains with four batches an epoch, from last.ckpt where it is there."""
    last = folder / "last.ckpt"
    start = torch.load(last, weights_only=True)["global_step"] if last.is_file() else 0
    module = classifier(optimizer=optimizer(lr=0.05, momentum=0.9), schedule=Schedule("cosine", "iterations", warmup=3))
    saving = [Throughput(), BestCheckpoint(folder), LastCheckpoint(folder, every_n_steps=every), GracefulStop(folder)]
    settings = {"log_every_n_steps": 3, "enable_checkpointing": True, "logger": MetricsCSV(folder, start), **settings}
    ckpt_path = last if last.is_file() else None
    trainer(callbacks=[*callbacks, *saving], **settings).fit(
        module, datamodule=Tiny(count=80), ckpt_path=ckpt_path, weights_only=True
    )


def ended(folder: Path) -> tuple[Any, ...]:
    """What a run has come to."""
    kept = ("state_dict", "optimizer_states", "lr_schedulers", "callbacks", "global_step")
    saved = [torch.load(path, weights_only=True) for path in sorted(folder.glob("*.ckpt"))]
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [{name: value for name, value in row.items() if "second" not in name} for row in csv.DictReader(file)]
    return [{key: checkpoint[key] for key in kept} for checkpoint in saved], rows


@pytest.mark.parametrize("every", [None, 1])
@pytest.mark.parametrize(
    "settings",
    [
        {"max_epochs": 3},
        {"max_epochs": 4, "check_val_every_n_epoch": 2},
        {"max_epochs": 2, "val_check_interval": 3, "accumulate_grad_batches": 2},
        STEPS,
        {**STEPS, "limit_val_batches": 0},
        {**STEPS, "val_check_interval": 3},
        {**STEPS, "val_check_interval": 3, "check_val_every_n_epoch": None},
        {**STEPS, "max_steps": 5, "accumulate_grad_batches": 3},
    ],
    ids=lambda settings: ",".join(f"{key}={value}" for key, value in settings.items()),
)
def test_stopped_anywhere(settings: dict[str, Any], every: int | None, tmp_path: Path) -> None:
    fit(tmp_path / "whole", every=every, **settings)
    whole, stops = ended(tmp_path / "whole"), 0
    for hook in ("on_train_batch_start", "on_validation_batch_start"):
        for number in range(1, 20):
            folder = tmp_path / f"{hook}{number}"
            stop = Stop(hook, number)
            try:
                fit(folder, stop, every=every, **settings)
            except SIGTERMException:
                stops += 1
                fit(folder, every=every, **settings)
            if stop.left > 0:
                break
            assert unlike(ended(folder), whole) is None, f"stopped at {hook} {number}"
    assert stops >= 7
