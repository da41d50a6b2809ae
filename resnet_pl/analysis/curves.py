"""Training and validation error of several runs over iterations, in the style of Figures 4 and 6, as PNG and CSV.

Training is thin, validation bold; plain nets stand left and residual ones right where there are both; seeds are drawn
as their mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jsonargparse import ArgumentParser, Namespace

from resnet_pl.reports.comparison import group_runs, label_groups
from resnet_pl.reports.plots import MUTED, add_legend, new_figure, render, save_png, style_axes
from resnet_pl.reports.run_reader import Run, Series, read_runs
from resnet_pl.reports.tables import write_csv
from resnet_pl.utils import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Band = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def add_arguments(parser: ArgumentParser) -> None:
    """See the package."""
    parser.add_argument("runs", nargs="+", type=str, help="run folders, or folders above them; finished or not")
    where = "the picture; the numbers are written beside it as .csv"
    parser.add_argument("--output", type=str, default="curves.png", help=where)


def run(settings: Namespace) -> None:
    """Draws the runs among and below the paths."""
    picture = Path(settings.output)
    if picture.suffix != ".png":
        raise UserError(f"--output: {picture} is no PNG\ngive a name that ends in .png, such as curves.png")
    runs, lines = read_runs(map(Path, settings.runs), tested=False)
    training_curves(label_groups(group_runs(runs)), picture)
    write_curves(runs, picture.with_suffix(".csv"))
    for line in lines:
        print(line)
    print(f"written to {picture} and {picture.with_suffix('.csv')}")


def training_curves(runs: Mapping[str, Sequence[Run]], path: Path) -> None:
    """Draw the error of runs as a PNG: one color a name, training thin, validation bold, over iterations.

    Args:
        runs: under each name of the legend the runs, such as seeds, that are drawn as their mean in a band from the
            least to the greatest. Plain nets stand in a panel of their own at the left, where there are others too.
        path: the PNG to write.

    Raises:
        UserError: a run has not logged its error, or `path` cannot be written.
    """
    bands = {name: _bands(same) for name, same in runs.items()}
    panels = [{name: bands[name] for name in runs if runs[name][0].plain == plain} for plain in (True, False)]
    panels = [panel for panel in panels if panel]
    figure = new_figure(7.2 if len(panels) == 1 else 11.6, 4.8)
    title = "last value, mean of seeds" if any(len(same) > 1 for same in runs.values()) else "last value"
    axes_of_panels = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for axes, panel in zip(axes_of_panels, panels, strict=True):
        _draw(axes, panel, title)
    for axes in axes_of_panels:
        style_axes(axes, "iterations", "error (%)" if axes is axes_of_panels[0] else "")
        _limit(axes, np.concatenate([means for own in bands.values() for _, means, _, _ in own.values()]))
    save_png(render(figure), path)


def write_curves(runs: Iterable[Run], path: Path) -> None:
    """Write what `training_curves` draws as CSV, one line a value: run, split (train or val), step, error."""
    rows = (
        [run.path, part, step, f"{value:.6g}"]
        for run in runs
        for part, series in _curves(run).items()
        for step, value in zip(*series, strict=True)
    )
    write_csv(path, ["run", "split", "step", "error"], rows)


def _curves(run: Run) -> dict[str, Series]:
    """Error of training and validation in per cent, in that order and where logged."""
    logged = {part: run.metrics[f"{part}/top1"] for part in ("train", "val") if f"{part}/top1" in run.metrics}
    if not logged:
        has = ", ".join(sorted(run.metrics))
        raise UserError(f"{run.path / 'metrics.csv'} has neither train/top1 nor val/top1; it has {has}.")
    return {part: (steps, 100 * (1 - shares)) for part, (steps, shares) in logged.items()}


def _bands(runs: Sequence[Run]) -> dict[str, Band]:
    """Steps, mean, least and greatest over the runs, at the steps that all of them have."""
    curves = [_curves(run) for run in runs]
    bands = {}
    for part in curves[0]:
        own = [curve[part] for curve in curves if part in curve]
        steps = reduce(np.intersect1d, [steps for steps, _ in own])
        values = np.array([values[np.isin(logged, steps)] for logged, values in own])
        bands[part] = (steps, values.mean(axis=0), values.min(axis=0), values.max(axis=0))
    return bands


def _draw(axes: Axes, curves: Mapping[str, dict[str, Band]], title: str) -> None:
    """The lines, bands and legend of a panel."""
    lines, labels = [], []
    for index, (name, bands) in enumerate(curves.items()):
        for part, (steps, means, least, greatest) in bands.items():
            width, alpha = (0.9, 0.75) if part == "train" else (1.9, 1.0)
            marker = "o" if len(steps) == 1 else None
            line = axes.plot(steps, means, color=f"C{index}", linewidth=width, alpha=alpha, marker=marker)[0]
            if (least < greatest).any():
                axes.fill_between(steps, least, greatest, color=f"C{index}", alpha=0.15, linewidth=0)
        lines.append(line)
        labels.append(f"{name}  {means[-1] if len(means) else math.nan:.2f}%")
    add_legend(axes, lines, labels, fontsize=10, title=title)
    axes.set_title("thin: training   bold: validation", loc="left", fontsize=10, color=MUTED)


def _limit(axes: Axes, values: np.ndarray) -> None:
    """Limits that leave the steep start of a long run outside, as the paper's figures do.

    To be called when all lines are there: a limit that is set holds for the panels that share it.
    """
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    values = values[np.isfinite(values)]
    if len(values):
        # Of fewer than twenty values the quantile is the greatest: a short run is shown whole.
        axes.set_ylim(bottom=0, top=1.05 * np.quantile(values, 0.95, method="higher") or None)
