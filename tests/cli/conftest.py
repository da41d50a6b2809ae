"""Fixtures: a small training run that many tests read or copy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cli.commands import SMALL, run


@pytest.fixture(scope="package")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a small training."""
    root = tmp_path_factory.mktemp("trained")
    run("fit", *SMALL, "--trainer.default_root_dir", root / "runs")
    return root / "runs/digits/version_0"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def copy(trained: Path, place: Path) -> Path:
    """A copy of the run that a test may change, in an empty working folder."""
    return Path(shutil.copytree(trained, place / "runs/digits/version_0")).relative_to(place)
