"""Comparison of runs as a plot: top-1 of each run, or error over depth if a model was trained with several depths.

Runs without top-1, such as those of a multi-label dataset, are compared by the metric that chose best.ckpt.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_pl.reports.plots import INK, MUTED, new_figure, plot_label, render, save_png, style_axes
from resnet_pl.reports.run_groups import MISSING, Group, family, is_depth_study, option_headings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SPLITS = {"train": "training", "val": "validation", "test": "test"}
# Runs that fit into one plot, and characters of a name that fit next to it.
MAX_RUNS = 40
MAX_NAME = 60


def plot_comparison(groups: Sequence[Group], path: Path) -> None:
    """Writes the plot of a comparison as PNG; raises UserError if it cannot be written.

    Points are means over seeds, with bars of one standard deviation. Results of the paper are hollow diamonds.
    """
    by_top1 = any(not math.isnan(_error(group, split)[0]) for group in groups for split in ("val", "test"))
    if by_top1 and is_depth_study(groups):
        _error_over_depth(groups, path)
    else:
        _metric_by_run(groups, "top1" if by_top1 else "score", path)


def _metric_by_run(groups: Sequence[Group], metric: str, path: Path) -> None:
    """One row per group, in the order of the table; `metric` is top1, or score for the monitored metric."""
    groups, count = groups[:MAX_RUNS], len(groups)
    names = [f"{group.name}, {group.data}" if _several_datasets(groups) else group.name for group in groups]
    labels = [plot_label(name, MAX_NAME) for name in names]
    names = [f"{label} (chosen)" if group.chosen else label for group, label in zip(groups, labels, strict=True)]
    figure = new_figure(5.2 + 0.08 * max(map(len, names)), 1.3 + 0.34 * len(groups))
    axes = figure.add_subplot()
    handles: list[Any] = []
    monitor = groups[0].runs[0].monitor.removeprefix("val/")
    scale, axis_label = (100, "top-1 (%)") if metric == "top1" else (1, monitor)
    for split, label, color, marker in (("val", "best validation", "C0", "o"), ("test", "test", "C1", "s")):
        statistics = [(*group.statistics(f"{split}_{metric}"), row) for row, group in enumerate(groups)]
        known = [(scale * mean, scale * deviation, row) for mean, deviation, row in statistics if not math.isnan(mean)]
        if known:
            means, deviations, places = zip(*known, strict=True)
            style = {"color": color, "marker": marker, "markersize": 6, "linestyle": "none", "capsize": 3}
            handles.append(axes.errorbar(means, places, xerr=deviations, label=label, **style))
    paper = [(100 - error, row) for row, group in enumerate(groups) if (error := group.runs[0].paper_error)]
    if paper and metric == "top1":
        handles += axes.plot(*zip(*paper, strict=True), "D", color=MUTED, fillstyle="none", label="paper")
    axes.set_yticks(range(len(groups)), names, fontsize=10, parse_math=False)
    axes.set_ylim(len(groups) - 0.4, -0.6)
    axes.margins(x=0.08)
    repeated = any(len(group.runs) > 1 for group in groups)
    style_axes(axes, f"{axis_label}, mean ± standard deviation" if repeated else axis_label)
    if count > MAX_RUNS:
        axes.set_title(f"the first {MAX_RUNS} of {count} rows of the table", loc="left", fontsize=10, color=MUTED)
    axes.tick_params(axis="y", labelcolor=INK)
    _add_legend_below(figure, handles, 80)
    save_png(render(figure), path)


def _error_over_depth(groups: Sequence[Group], path: Path) -> None:
    """One line per model, plain networks dashed; a panel for each split that has results."""
    families: dict[str, list[Group]] = defaultdict(list)
    headings = option_headings([*groups[0].options])
    for group in sorted(groups, key=lambda group: group.runs[0].depth or 0):
        model = group.model.replace(group.runs[0].model, family(group.runs[0]), 1)
        options = [f"{headings[key]} {value}" for key, value in group.options.items() if value != MISSING]
        families[", ".join([model, *([group.data] if _several_datasets(groups) else []), *options])].append(group)
    splits = [split for split in SPLITS if not all(math.isnan(_error(group, split)[0]) for group in groups)]
    figure = new_figure(max(4.8 * len(splits), 6.0), 4.2 + 0.2 * len(families))
    panels = dict(zip(splits, figure.subplots(1, max(len(splits), 1), squeeze=False)[0], strict=False))
    depths = sorted({group.runs[0].depth or 0 for group in groups})
    paper = sorted({(run.depth, run.paper_error) for run in (group.runs[0] for group in groups) if run.paper_error})
    handles: list[Any] = []
    for split, axes in panels.items():
        handles = []
        for index, (label, members) in enumerate(sorted(families.items())):
            places = [group.runs[0].depth for group in members]
            means, deviations = zip(*(_error(group, split) for group in members), strict=True)
            dashes = "--" if members[0].runs[0].plain else "-"
            style = {"color": f"C{index}", "linestyle": dashes, "linewidth": 1.4, "marker": "o", "markersize": 4}
            handles.append(axes.errorbar(places, means, yerr=deviations, label=plot_label(label), capsize=3, **style))
        if split == "test" and paper:
            style = {"color": MUTED, "fillstyle": "none", "linestyle": "none", "marker": "D"}
            handles += axes.plot(*zip(*paper, strict=True), label="paper, 64k iterations", **style)
        axes.set_title(f"{SPLITS[split]} error (%)", loc="left", fontsize=11, color=INK)
        style_axes(axes, "layers")
        _set_depth_ticks(axes, depths)
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
    _add_legend_below(figure, handles, 13 * figure.get_figwidth())
    save_png(render(figure), path)


def _several_datasets(groups: Sequence[Group]) -> bool:
    return len({group.data for group in groups}) > 1


def _error(group: Group, split: str) -> tuple[float, float]:
    """Mean and standard deviation of the error, per cent."""
    mean, deviation = group.statistics(f"{split}_top1")
    return 100 * (1 - mean), 100 * deviation


def _set_depth_ticks(axes: Axes, depths: Sequence[int]) -> None:
    """A tick at each depth, except where labels would overlap; logarithmic for a wide range, as 20 to 1202."""
    wide = depths[-1] > 8 * depths[0]
    if wide:
        axes.set_xscale("log")
    scale = math.log if wide else float
    span = scale(depths[-1]) - scale(depths[0])
    ticks = depths[:1]
    for depth in depths[1:]:
        if scale(depth) - scale(ticks[-1]) >= 0.055 * span:
            ticks = [*ticks, depth]
    axes.set_xticks(ticks, [str(depth) for depth in ticks])
    axes.minorticks_off()


def _add_legend_below(figure: Figure, handles: Sequence[Any], width: float) -> None:
    """A legend below the panels with as many columns as fit.

    Args:
        figure: the figure.
        handles: artists with a label.
        width: characters that fit into a row.
    """
    labels = [str(handle.get_label()) for handle in handles]
    if labels:
        columns = min(len(labels), max(1, int(width / (6 + max(map(len, labels))))))
        style = {"loc": "outside lower center", "fontsize": 9, "frameon": False}
        for text in figure.legend(handles, labels, ncols=columns, **style).get_texts():
            text.set_parse_math(False)
