"""Training curves of one run or several, drawn as in Figures 4 and 6 of the ResNet paper (arXiv:1512.03385)."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from resnet_pl.errors import UserError
from resnet_pl.reports.pictures import INK, MUTED, render, save_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Series = tuple[np.ndarray, np.ndarray]
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


def training_curves(runs: Mapping[str, Path], path: Path, metric: Metric = "error") -> None:
    """Draw the runs as a PNG: one colour a run, training thin, validation bold, over iterations.

    Args:
        runs: the `metrics.csv` of each run, or the folder it lies in, under the name for the legend.
        path: the PNG to write.
        metric: `error` is 100 % minus top-1.

    Raises:
        UserError: if there are no runs, a run cannot be read or has not logged the metric, or `path` cannot be written.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    if not runs:
        raise UserError("There are no runs to draw; give at least one metrics.csv.")
    figure = Figure(figsize=(7.2, 4.8), dpi=150, layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    lines, labels, drawn = [], [], []
    for index, (name, file) in enumerate(runs.items()):
        curves = _curves(Path(file), metric)
        for part, (steps, values) in curves.items():
            width, alpha = (0.9, 0.75) if part == "train" else (1.9, 1.0)
            marker = "o" if len(steps) == 1 else None
            colour = colormaps["tab10"](index % 10)
            line = axes.plot(steps, values, color=colour, linewidth=width, alpha=alpha, marker=marker)[0]
            drawn.append(values)
        lines.append(line)
        labels.append(f"{name}  {values[-1]:.3f}" if metric == "loss" else f"{name}  {values[-1]:.2f}%")
    _dress(axes, metric, np.concatenate(drawn))
    legend = axes.legend(lines, labels, edgecolor="none", fontsize=10, labelcolor=INK, title="last value")
    for text in legend.get_texts():
        text.set_parse_math(False)
    save_png(render(figure), path)


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
    """Labels, a light grid, and limits that leave the steep start of a long run outside, as the paper's figures do."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.set_title("thin: training   bold: validation", loc="left", fontsize=10, color=MUTED)
    axes.set_xlabel("iterations", color=INK)
    axes.set_xlim(left=0)
    axes.set_ylabel(LABELS[metric], color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(color="#d8dee4", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, length=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#afb8c1")
    values = values[np.isfinite(values)]
    # Of fewer than twenty values these quantiles are the outermost: a short run is shown whole.
    if len(values) and metric == "top1":
        axes.set_ylim(bottom=min(0.98 * np.quantile(values, 0.05, method="lower"), 99), top=100)
    elif len(values):
        axes.set_ylim(bottom=0, top=1.05 * np.quantile(values, 0.95, method="higher") or None)
