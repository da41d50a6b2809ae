"""Learning-rate range test: the learning rate that it suggests, and its plot."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from resnet_pl.reports.plots import INK, MUTED, add_legend, new_figure, render, style_axes

# Losses this close to the smallest one count as equal to it, as a fraction of the decrease of the loss.
MARGIN = 0.1
# Smallest decrease of the loss from which the test is conclusive, as a fraction of the loss at the start.
MIN_DECREASE = 0.12


def suggest_rate(rates: Sequence[float], losses: Sequence[float]) -> tuple[float, float] | None:
    """Returns the learning rate that a range test suggests, and the largest useful one, with one significant digit.

    The latter is the largest one whose loss is still near the minimum. The suggestion is the geometric mean of it and
    of the one at which half of the decrease is reached. Both are rather low: the test is short and has no warm-up.

    Args:
        rates: the tested learning rates, ascending.
        losses: the smoothed loss after a step with each of them.

    Returns:
        None if the loss decreases too little, or not by more than its noise.
    """
    values = np.array(losses)
    values = values[np.logical_and.accumulate(np.isfinite(values))]
    start = values[: max(3, len(values) // 10)]
    if len(values) < 10:
        return None
    decrease = start.mean() - values.min()
    if decrease < max(MIN_DECREASE * start.mean(), 4 * start.std()):
        return None
    middle = rates[int(np.argmax(values <= start.mean() - decrease / 2))]
    largest = rates[int(np.flatnonzero(values <= values.min() + MARGIN * decrease)[-1])]
    return float(f"{math.sqrt(middle * largest):.0e}"), float(f"{largest:.0e}")


def range_plot(
    rates: Sequence[float], losses: Sequence[float], suggested: float | None, configured: float
) -> np.ndarray:
    """Plots the loss against the learning rate; returns an image `(H, W, 3)` uint8.

    Args:
        rates: the tested learning rates.
        losses: the smoothed loss after a step with each of them.
        suggested: the suggested learning rate, if there is one.
        configured: the learning rate of the configuration.
    """
    figure = new_figure(7, 4)
    axes = figure.add_subplot()
    axes.plot(rates[: len(losses)], losses, color="#0969da")
    axes.set_xscale("log")
    low, high = min(losses), max(losses[: max(3, len(losses) // 3)])
    axes.set_ylim(low - 0.1 * (high - low), high + 0.5 * (high - low))
    marks = [(configured, MUTED, "configured", "--")]
    marks += [(suggested, "#bc4c00", "suggested", "-")] if suggested is not None else []
    for rate, color, name, style in marks:
        axes.axvline(rate, color=color, linestyle=style, label=f"{name}: {rate:g}")
    style_axes(axes, "learning rate", "training loss")
    axes.set_title("Learning-rate range test", loc="left", color=INK)
    add_legend(axes)
    return render(figure)
