"""Training curves of one run or several, drawn as in Figures 4 and 6 of the ResNet paper (arXiv:1512.03385)."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from resnet_pl.errors import UserError
from resnet_pl.files import replacing
from resnet_pl.reports.pictures import INK, MUTED, render, save_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Series = tuple[np.ndarray, np.ndarray]
Band = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
Metric = Literal["top1", "loss", "error"]

LABELS = {"top1": "top-1 (%)", "loss": "loss", "error": "error (%)"}


def read_metrics(path: Path) -> dict[str, Series]:
    """Read every metric of a `metrics.csv`.

    A cell is empty where a row does not log that metric. A step that comes twice, as after a resume from an earlier
    checkpoint, counts as it was logged last. A torn last line, as an interrupted run leaves it, is dropped.

    Returns:
        For each column but `step` its steps (n,) int64, rising, and its values (n,) float64.

    Raises:
        UserError: if the file is missing, has no whole row or holds something else than numbers.
    """
    header, *rows = _rows(path) or [(1, [])]
    names = header[1]
    if "step" not in names:
        raise UserError(f"{path} has no line that names its columns with `step` among them; give a run's metrics.csv.")
    metrics: dict[str, dict[int, float]] = defaultdict(dict)
    for number, cells in rows:
        try:
            row = dict(zip(names, cells, strict=True))
            step = int(float(row.pop("step")))
            for name, cell in row.items():
                if cell:
                    metrics[name][step] = float(cell)
        except (ValueError, OverflowError) as error:
            raise UserError(f"{path}, line {number} is damaged ({error}); mend or delete that line.") from error
    if not metrics:
        raise UserError(f"{path} holds no metrics yet; train for at least one epoch.")
    return {name: _series(values) for name, values in metrics.items()}


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """The number and the cells of every whole line."""
    try:
        text = path.read_bytes().decode(errors="replace")
        # A line without its end may have lost digits too: 0.98 torn to 0.9 still reads as a number.
        whole = text[: text.rfind("\n") + 1].split("\n")
        return [(number, cells) for number, cells in enumerate(csv.reader(whole), 1) if cells]
    except (OSError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read: {reason}. Give the metrics.csv of a run.") from error


def _series(values: Mapping[int, float]) -> Series:
    steps = sorted(values)
    return np.array(steps), np.array([values[step] for step in steps])


def training_curves(
    runs: Mapping[str, Path | Sequence[Path]], path: Path, metric: Metric = "error", plain: Collection[str] = ()
) -> None:
    """Draw the runs as a PNG: one colour a name, training thin, validation bold, over iterations.

    Args:
        runs: the `metrics.csv` of each run, or the folder it lies in, under the name for the legend; several of one
            name, such as seeds, are drawn as their mean in a band from the least to the greatest.
        path: the PNG to write.
        metric: `error` is 100 % minus top-1.
        plain: the names that are drawn in a panel of their own at the left, where there are others too.

    Raises:
        UserError: if there are no runs, a run cannot be read or has not logged the metric, or `path` cannot be written.
    """
    from matplotlib.figure import Figure

    if not runs:
        raise UserError("There are no runs to draw; give at least one metrics.csv.")
    curves = {name: _several([files] if isinstance(files, Path) else files, metric) for name, files in runs.items()}
    left = {name: curve for name, curve in curves.items() if name in plain}
    right = {name: curve for name, curve in curves.items() if name not in plain}
    panels = [panel for panel in (left, right) if panel]
    width = 7.2 if len(panels) == 1 else 11.6
    figure = Figure(figsize=(width, 4.8), dpi=150, layout="constrained", facecolor="white")
    every = np.concatenate([means for curve in curves.values() for _, means, _, _ in curve.values()])
    several = any(not isinstance(files, Path) and len(files) > 1 for files in runs.values())
    axes_of_panels = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for axes, panel in zip(axes_of_panels, panels, strict=True):
        _draw(axes, panel, metric, "last value, mean of seeds" if several else "last value")
    for axes in axes_of_panels:
        # After all lines are there: a limit that is set holds for the panels that share it.
        _dress(axes, metric, every)
    figure.axes[0].set_ylabel(LABELS[metric], color=INK)
    save_png(render(figure), path)


def _several(files: Sequence[Path], metric: Metric) -> dict[str, Band]:
    """Steps, mean, least and greatest over the runs, at the steps that all of them have."""
    curves = [_curves(Path(file), metric) for file in files]
    bands = {}
    for part in curves[0]:
        own = [curve[part] for curve in curves if part in curve]
        steps = reduce(np.intersect1d, [steps for steps, _ in own])
        values = np.array([values[np.isin(logged, steps)] for logged, values in own])
        bands[part] = (steps, values.mean(axis=0), values.min(axis=0), values.max(axis=0))
    return bands


def _draw(axes: Axes, curves: Mapping[str, dict[str, Band]], metric: Metric, title: str) -> None:
    """The lines, bands and legend of a panel."""
    from matplotlib import colormaps

    lines, labels = [], []
    for index, (name, bands) in enumerate(curves.items()):
        colour = colormaps["tab10"](index % 10)
        for part, (steps, means, least, greatest) in bands.items():
            width, alpha = (0.9, 0.75) if part == "train" else (1.9, 1.0)
            marker = "o" if len(steps) == 1 else None
            line = axes.plot(steps, means, color=colour, linewidth=width, alpha=alpha, marker=marker)[0]
            if (least < greatest).any():
                axes.fill_between(steps, least, greatest, color=colour, alpha=0.15, linewidth=0)
        last = means[-1] if len(means) else math.nan
        lines.append(line)
        labels.append(f"{name}  {last:.3f}" if metric == "loss" else f"{name}  {last:.2f}%")
    legend = axes.legend(lines, labels, edgecolor="none", fontsize=10, labelcolor=INK, title=title)
    for text in legend.get_texts():
        text.set_parse_math(False)


def write_curves(runs: Iterable[Path], path: Path, metric: Metric = "error") -> None:
    """Write the curves of runs, one line a value: run, split (train or val), step, value.

    Raises:
        UserError: if a run cannot be read or has not logged the metric, or `path` cannot be written.
    """
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["run", "split", "step", metric])
        for run in runs:
            for part, (steps, values) in _curves(run, metric).items():
                table.writerows([run, part, step, f"{value:.6g}"] for step, value in zip(steps, values, strict=True))


def _curves(path: Path, metric: Metric) -> dict[str, Series]:
    """Training and validation, in that order and where logged, in the unit of the picture."""
    path = path / "metrics.csv" if path.is_dir() else path
    metrics = read_metrics(path)
    logged = "loss" if metric == "loss" else "top1"
    curves = {part: metrics[f"{part}/{logged}"] for part in ("train", "val") if f"{part}/{logged}" in metrics}
    if not curves:
        raise UserError(f"{path} has neither train/{logged} nor val/{logged}; it has {', '.join(sorted(metrics))}.")
    unit = {"top1": lambda share: 100 * share, "loss": lambda loss: loss, "error": lambda share: 100 * (1 - share)}
    return {part: (steps, unit[metric](values)) for part, (steps, values) in curves.items()}


def _dress(axes: Axes, metric: Metric, values: np.ndarray) -> None:
    """Labels, and limits that leave the steep start of a long run outside, as the paper's figures do."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.set_title("thin: training   bold: validation", loc="left", fontsize=10, color=MUTED)
    axes.set_xlabel("iterations", color=INK)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    lighten(axes)
    values = values[np.isfinite(values)]
    # Of fewer than twenty values these quantiles are the outermost: a short run is shown whole.
    if len(values) and metric == "top1":
        axes.set_ylim(bottom=min(0.98 * np.quantile(values, 0.05, method="lower"), 99), top=100)
    elif len(values):
        axes.set_ylim(bottom=0, top=1.05 * np.quantile(values, 0.95, method="higher") or None)


def lighten(axes: Axes) -> None:
    """A light grid below the lines, and no frame."""
    axes.grid(color="#d8dee4", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, length=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#afb8c1")
