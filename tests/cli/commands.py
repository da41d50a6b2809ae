"""Command lines that tests run in process, and what they leave."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from resnet_pl.cli.main import main

PROJECT = Path(__file__).parents[2]
SMALL = [
    *["--config", str(PROJECT / "configs/digits.yaml"), "--model.backbone.depth", "8"],
    *["--trainer.max_epochs", "2", "--trainer.limit_train_batches", "6", "--trainer.log_every_n_steps", "2"],
]
# The same for a test's own backbone, of which a depth would be an argument.
BARE = [*SMALL[:2], *SMALL[4:]]


def run(*argv: object) -> None:
    """Runs a command line that must succeed."""
    assert main([str(arg) for arg in argv]) == 0


def failed(capsys: pytest.CaptureFixture[str], code: int, *argv: object) -> str:
    """Runs a command line that must end with a code and two lines at most, and returns these."""
    capsys.readouterr()
    assert main([str(arg) for arg in argv]) == code
    said = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    start = next(i for i, line in enumerate(said) if line.startswith("error: "))
    text = "\n".join(said[start:])
    assert len(said[start:]) <= 2, text
    assert not any(noise in text for noise in ("Traceback", "Subtypes", "Subclass types", "Given value")), text
    return text


def refused(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """Runs a command line that must be refused as the user's mistake, and returns what is said."""
    return failed(capsys, 2, *argv)


def printed(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """Runs a command line that prints and ends, such as `--help`, and returns what it prints."""
    capsys.readouterr()
    run(*argv)
    return capsys.readouterr().out


def rows(run_folder: Path) -> list[dict[str, str]]:
    """The rows of a run's metrics.csv."""
    with (run_folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))
