"""Compare runs: validation and test accuracy, and the options in which the runs differ.

Runs that differ only in the seed are one row: mean ± standard deviation. The best validation comes first. The
column `paper` has the result of the ResNet paper for the same model and dataset. Runs that are skipped, not tested or
interrupted are named below the table. The table is also written as comparison.csv and comparison.md, and a plot as
comparison.png.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from resnet_pl.reports.comparison import comparison_table, markdown
from resnet_pl.reports.comparison_plot import plot_comparison
from resnet_pl.reports.run_finder import read_runs
from resnet_pl.reports.run_groups import group_runs
from resnet_pl.reports.run_reader import Run
from resnet_pl.reports.tables import print_report, write_csv
from resnet_pl.utils import UserError, atomic_write, counted


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options of `compare`."""
    parser.add_argument("runs", nargs="+", type=str, help="run folders or parent folders")
    output = "folder for comparison.csv, .md and .png; default: the common parent folder of the runs"
    parser.add_argument("--output", type=str | None, default=None, help=output)


def run(settings: Namespace) -> None:
    """Runs the command."""
    compare([Path(path) for path in settings.runs], Path(settings.output) if settings.output else None)


def compare(
    paths: Sequence[Path], output: Path | None = None, notes: Sequence[str] = (), chosen: Sequence[Path] | None = None
) -> None:
    """Prints the comparison of all runs among and below the paths, and writes it to a folder as CSV, Markdown and PNG.

    Args:
        paths: run folders or parent folders.
        output: folder to write to; the common parent folder of the runs if not given.
        notes: lines below the table, for example about runs that are not among the paths.
        chosen: the runs that a sweep has chosen, which are marked; None if it was not a sweep.
    """
    found, skipped = read_runs(paths)
    runs = [run for run in found if not run.pruned]
    if len(runs) < len(found):
        skipped.append(f"Pruned by a search: {counted(len(found) - len(runs), 'run')}")
    if not runs:
        raise UserError(f"all runs were pruned by a search\ngive other runs than {paths[0]}")
    groups = group_runs(runs)
    if chosen is not None:
        groups = [replace(group, chosen=group.runs[0].path in chosen) for group in groups]
    output = output or Path(os.path.commonpath([run.path.absolute().parent for run in runs]))
    lines = [*skipped, *_notes(runs, chosen), *notes]
    rows = [group.row() for group in groups]
    write_csv(output / "comparison.csv", list(rows[0]), [list(row.values()) for row in rows])
    with atomic_write(output / "comparison.md") as partial:
        text = "".join(f"\n{line}\n" for line in lines)
        partial.write_text(markdown(groups) + text, encoding="utf-8", errors="backslashreplace")
    plot_comparison(groups, output / "comparison.png")
    print_report(comparison_table(groups))
    for line in lines:
        print(line)
    print(f"Saved comparison.csv, comparison.md and comparison.png to {output}")


def _notes(runs: Sequence[Run], chosen: Sequence[Path] | None) -> list[str]:
    """Runs whose results in the table are not complete."""
    reasons = {
        "Not tested": [run.path for run in runs if not run.results and (chosen is None or run.path in chosen)],
        "Tested without a test set": [run.path for run in runs if run.results and run.results.get("split") != "test"],
        "Tested before the best validation": [run.path for run in runs if run.has_better_checkpoint],
        "Interrupted or still training": [run.path for run in runs if run.unfinished],
    }
    return [f"{reason}: {', '.join(map(str, found))}" for reason, found in reasons.items() if found]
