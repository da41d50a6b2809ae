"""Helpers that run command lines in process."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from resnet_pl.cli.main import main

PROJECT = Path(__file__).parents[2]
SMALL = [
    *["--config", str(PROJECT / "configs/digits.yaml"), "--model.backbone.depth", "8"],
    *["--trainer.max_epochs", "2", "--trainer.limit_train_batches", "6", "--trainer.log_every_n_steps", "2"],
    *["--dashboard.graph", "false", "--dashboard.images", "0"],  # half of the time of such a run
]
# The same for another backbone, which may have no argument `depth`.
BARE = [*SMALL[:2], *SMALL[4:]]


def run(*argv: object) -> None:
    """Runs a command line that must succeed."""
    assert main([str(arg) for arg in argv]) == 0


def failed(capsys: pytest.CaptureFixture[str], code: int, *argv: object) -> str:
    """Runs a command line that must fail with a code and at most two lines; returns these lines."""
    capsys.readouterr()
    assert main([str(arg) for arg in argv]) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    start = next(i for i, line in enumerate(lines) if line.startswith("error: "))
    text = "\n".join(lines[start:])
    assert len(lines[start:]) <= 2, text
    assert not any(noise in text for noise in ("Traceback", "Subtypes", "Subclass types", "Given value")), text
    return text


def refused(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """Runs a command line that must fail with exit code 2; returns the message."""
    return failed(capsys, 2, *argv)


def printed(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """Runs a command line such as `--help`; returns its output."""
    capsys.readouterr()
    run(*argv)
    return capsys.readouterr().out


def rows(run_folder: Path) -> list[dict[str, str]]:
    """The rows of a run's metrics.csv."""
    with (run_folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))
