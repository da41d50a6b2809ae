"""Reliability diagram: the accuracy of predictions by their confidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from resnet_pl.reports.plots import FRAMES, INK, MUTED, add_legend, new_figure, render, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BAR = "#54aeff"
# The color of a wrong prediction, also that of overconfidence.
GAP = tuple(level / 255 for level in FRAMES["wrong"])


def reliability_diagram(bins: Sequence[Mapping[str, Any]], error: float) -> np.ndarray:
    """Plots the accuracy in each bin of confidence, and below it the histogram of the confidences.

    Args:
        bins: one per bin with images: `low` and `high` (its range of confidences), `images` (their number), mean
            `confidence` and `accuracy`, and the 95 % `interval` of the accuracy.
        error: the expected calibration error, for the title.

    Returns:
        The plot `(H, W, 3)` uint8.
    """
    figure = new_figure(5.4, 6.4, dpi=110)
    figure.set_layout_engine("none")  # two plots in fixed places; a layout engine takes as long as the drawing
    places = {"left": 0.13, "right": 0.96, "top": 0.88, "bottom": 0.08, "hspace": 0.08}
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1], gridspec_kw=places)
    images = sum(row["images"] for row in bins)
    style_axes(above, y="accuracy")
    style_axes(below, x="confidence: probability of the predicted class", y="images")
    title = f"calibration error {error:.2%} ({images:,} images)" if images else "no images"
    above.set_title(title, loc="left", fontsize=13, fontweight="bold", color=INK, pad=30)
    above.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle="--", label="perfectly calibrated")
    if bins:
        _draw_bins(above, below, bins)
    above.set(xlim=(0, 1), ylim=(0, 1.02))
    add_legend(
        above, loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=3, fontsize=8, columnspacing=1, handlelength=1.5
    )
    return render(figure)


def _draw_bins(above: Axes, below: Axes, bins: Sequence[Mapping[str, Any]]) -> None:
    """Draws the accuracies with their intervals, the mean confidences, and the histogram."""
    low, high, count, confidence, accuracy = (
        np.array([row[key] for row in bins]) for key in ("low", "high", "images", "confidence", "accuracy")
    )
    bar = {"x": low, "width": high - low, "align": "edge", "edgecolor": "white"}
    above.bar(height=accuracy, color=BAR, label="accuracy, with 95 % interval", **bar)
    middle = (low + high) / 2
    ends = np.array([row["interval"] for row in bins]).T
    above.errorbar(middle, accuracy, np.abs(ends - accuracy), fmt="none", ecolor=INK, elinewidth=1, capsize=2)
    above.hlines(confidence, low, high, color=GAP, linewidth=2, label="mean confidence")
    below.bar(height=count, color=BAR, **bar)
    for x, images in zip(middle, count, strict=True):
        below.annotate(f"{images:,}", (x, images), ha="center", va="bottom", fontsize=7, color=MUTED)
    below.margins(y=0.15)
