"""A table of trained and tested runs: mean ± standard deviation over seeds, next to the paper's figures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from resnet_pl.reports.comparison import comparison_table, error_over_depth, group_runs, markdown
from resnet_pl.reports.run_reader import read_runs
from resnet_pl.reports.tables import print_report, write_csv
from resnet_pl.utils import atomic_write


def add_arguments(parser: ArgumentParser) -> None:
    """See the package."""
    parser.add_argument("runs", nargs="+", type=str, help="run folders, or folders above them")
    where = "folder for comparison.csv, .md and .png; the one that holds all runs if not given"
    parser.add_argument("--output", type=str | None, default=None, help=where)


def run(settings: Namespace) -> None:
    """Prints the table and writes it."""
    compare([Path(path) for path in settings.runs], Path(settings.output) if settings.output else None)


def compare(paths: Sequence[Path], output: Path | None = None) -> None:
    """Prints the table of the runs among and below the paths, and writes it to a folder as CSV, markdown and PNG."""
    runs, lines = read_runs(paths)
    groups = group_runs(runs)
    output = output or Path(os.path.commonpath([run.path.absolute().parent for run in runs]))
    print_report(comparison_table(groups))
    for line in lines:
        print(line)
    rows = [group.row() for group in groups]
    write_csv(output / "comparison.csv", list(rows[0]), [list(row.values()) for row in rows])
    with atomic_write(output / "comparison.md") as partial:
        partial.write_text(markdown(groups), encoding="utf-8")
    error_over_depth(groups, output / "comparison.png")
    print(f"written to {output / 'comparison.csv'}, comparison.md and comparison.png beside it")
