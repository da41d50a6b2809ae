"""Finds and reads the run folders below other folders."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from resnet_pl.reports.run_reader import Run, read_run
from resnet_pl.utils import UserError


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """Returns the run folders among and below the paths, by name and version; raises UserError if a path has none.

    Below a path these are the folders `version_…`, and others with the files of a run, such as a renamed one.
    """
    runs: list[Path] = []
    for path in paths:
        if (path / "config.yaml").is_file() or path.name.startswith("version_"):
            below = {path}
        else:
            files = [file for name in ("metrics.csv", "sessions.json") for file in path.rglob(name)]
            below = {file.parent for file in files if file.with_name("config.yaml").is_file()}
            below |= {folder for folder in path.rglob("version_*") if folder.is_dir()}
        if not below:
            raise UserError(f"there are no runs in {path}\ngive runs/NAME/version_N, or a folder above it")
        runs += sorted(below, key=_name_and_version)
    unique: dict[Path, Path] = {}
    for path in runs:
        unique.setdefault(path.resolve(), path)
    return list(unique.values())


def _name_and_version(path: Path) -> tuple[Path, int, str]:
    number = path.name.removeprefix("version_")
    return path.parent, int(number) if number.isdecimal() else sys.maxsize, path.name


def read_runs(paths: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """Reads all runs among and below the paths.

    Returns:
        The complete runs, as `read_run` returns them, and a message for each skipped run.

    Raises:
        UserError: no run is complete.
    """
    runs, skipped = [], []
    for path in find_runs(paths):
        try:
            runs.append(read_run(path))
        except UserError as error:
            skipped.append(str(error).splitlines()[0])
    if not runs:
        raise UserError(f"no complete runs\n{skipped[0]}")
    return runs, [f"Skipped: {message}" for message in skipped]
