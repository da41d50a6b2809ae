"""Plot training and validation error of several runs over iterations, as in Figures 4 and 6 of the ResNet paper.

Training is a thin line, validation a bold one. If there are plain and residual networks, plain ones are in the left
panel and residual ones in the right. Runs that differ only in the seed are drawn as their mean. The values are also
written as CSV.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jsonargparse import ArgumentParser, Namespace

from resnet_pl.reports.plots import MUTED, add_legend, new_figure, plot_label, render, save_png, style_axes
from resnet_pl.reports.run_finder import read_runs
from resnet_pl.reports.run_groups import group_runs, label_groups
from resnet_pl.reports.run_reader import Run, Series
from resnet_pl.reports.tables import write_csv
from resnet_pl.utils import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Steps, mean, minimum and maximum over the runs.
Band = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options of `paper curves`."""
    parser.add_argument("runs", nargs="+", type=str, help="run folders or parent folders; unfinished runs too")
    output = "the plot, NAME.png; the values are written to NAME.csv"
    parser.add_argument("--output", type=str, default="curves.png", help=output)


def run(settings: Namespace) -> None:
    """Runs the command."""
    path = Path(settings.output)
    if path.suffix != ".png":
        raise UserError(f"--output: {path} does not end in .png\ngive a PNG file, for example curves.png")
    runs, skipped = read_runs(map(Path, settings.runs))
    drawn = [run for run in runs if {"train/top1", "val/top1"} & run.metrics.keys()]
    if drawn:  # else `training_curves` raises an error
        others = [run.path / "metrics.csv" for run in runs if run.path not in {run.path for run in drawn}]
        skipped += [f"Skipped: {path} has neither train/top1 nor val/top1" for path in others]
        runs = drawn
    training_curves(label_groups(group_runs(runs)), path)
    write_curves(runs, path.with_suffix(".csv"))
    for message in skipped:
        print(message)
    print(f"Saved to {path} and {path.with_suffix('.csv')}")


def training_curves(runs: Mapping[str, Sequence[Run]], path: Path) -> None:
    """Plots training and validation error over iterations, one color per label.

    Args:
        runs: runs by label, for example the seeds of one configuration. They are drawn as their mean, in a band from
            minimum to maximum, in the order of their depth. If there are plain and residual networks, plain ones have a
            separate panel.
        path: PNG file to write.

    Raises:
        UserError: a run did not log its error, or `path` cannot be written.
    """
    runs = dict(sorted(runs.items(), key=lambda item: item[1][0].depth or 0))  # a depth has one color in both panels
    bands = {name: _bands(same) for name, same in runs.items()}
    panels = [{name: bands[name] for name in runs if runs[name][0].plain == plain} for plain in (True, False)]
    panels = [panel for panel in panels if panel]
    # Higher if the legend would not fit.
    height = 4.8 + 0.25 * max(0, max(map(len, panels)) - 12)
    figure = new_figure(7.2 if len(panels) == 1 else 11.6, height)
    title = "last value, mean of seeds" if any(len(same) > 1 for same in runs.values()) else "last value"
    axes_of_panels = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for axes, panel in zip(axes_of_panels, panels, strict=True):
        _draw(axes, panel, title)
    for axes in axes_of_panels:
        style_axes(axes, "iterations", "error (%)" if axes is axes_of_panels[0] else "")
        _limit(axes, np.concatenate([means for own in bands.values() for _, means, _, _ in own.values()]))
    save_png(render(figure), path)


def write_curves(runs: Iterable[Run], path: Path) -> None:
    """Writes the values of `training_curves` as CSV, one row per value: run, split (train or val), step, error (%)."""
    rows = (
        [run.path, part, step, f"{value:.6g}"]
        for run in runs
        for part, series in _curves(run).items()
        for step, value in zip(*series, strict=True)
    )
    write_csv(path, ["run", "split", "step", "error"], rows)


def _curves(run: Run) -> dict[str, Series]:
    """Training and validation error in per cent, as far as logged."""
    logged = {part: run.metrics[f"{part}/top1"] for part in ("train", "val") if f"{part}/top1" in run.metrics}
    if not logged:
        has = ", ".join(sorted(run.metrics))
        raise UserError(f"{run.path / 'metrics.csv'} has neither train/top1 nor val/top1\nit has {has}")
    return {part: (steps, 100 * (1 - top1)) for part, (steps, top1) in logged.items()}


def _bands(runs: Sequence[Run]) -> dict[str, Band]:
    """The values over the runs, by split, at the steps that all of them have."""
    curves = [_curves(run) for run in runs]
    bands = {}
    for part in curves[0]:
        own = [curve[part] for curve in curves if part in curve]
        steps = reduce(np.intersect1d, [steps for steps, _ in own])
        values = np.array([values[np.isin(logged, steps)] for logged, values in own])
        bands[part] = (steps, values.mean(axis=0), values.min(axis=0), values.max(axis=0))
    return bands


def _draw(axes: Axes, curves: Mapping[str, dict[str, Band]], title: str) -> None:
    """Draws lines, bands and legend of a panel."""
    lines, labels = [], []
    for index, (name, bands) in enumerate(curves.items()):
        for part, (steps, means, lowest, highest) in bands.items():
            width, alpha = (0.9, 0.75) if part == "train" else (1.9, 1.0)
            marker = "o" if len(steps) == 1 else None
            line = axes.plot(steps, means, color=f"C{index}", linewidth=width, alpha=alpha, marker=marker)[0]
            if (lowest < highest).any():
                axes.fill_between(steps, lowest, highest, color=f"C{index}", alpha=0.15, linewidth=0)
            # The legend shows the last line of a run: validation if it has one.
            if part == [*bands][-1]:
                lines.append(line)
                labels.append(f"{plot_label(name)}  {means[-1] if len(means) else math.nan:.2f}%")
    add_legend(axes, lines, labels, fontsize=10, title=title)
    axes.set_title("thin: training   bold: validation", loc="left", fontsize=10, color=MUTED)


def _limit(axes: Axes, values: np.ndarray) -> None:
    """Sets limits that exclude the steep start of a long run, as in the paper's figures.

    Call it after drawing all lines, because panels share their limits.
    """
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    values = values[np.isfinite(values)]
    if len(values):
        # With fewer than twenty values the quantile is the maximum: a short run is shown completely.
        axes.set_ylim(bottom=0, top=1.05 * np.quantile(values, 0.95, method="higher") or None)
