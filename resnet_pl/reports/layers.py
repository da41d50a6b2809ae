"""Numbers of a net's layers, as a table and in pictures such as Fig. 7 of the ResNet paper (arXiv:1512.03385)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from resnet_pl.reports.pictures import MUTED, add_legend, dress, new_figure, render
from resnet_pl.reports.records import Run
from resnet_pl.reports.tables import write_csv

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class NetLayers:
    """Numbers of the layers of one net.

    Attributes:
        run: the run that it is of, under the path of the checkpoint.
        step: steps it was trained for.
        measured_on: the images, in words.
        columns: under the name of each quantity a number for each layer, by name and in order.
    """

    run: Run
    step: int
    measured_on: str
    columns: dict[str, dict[str, float]]

    @property
    def layers(self) -> list[str]:
        """Their names."""
        return list(next(iter(self.columns.values())))


def write_layers(nets: Sequence[NetLayers], path: Path) -> None:
    """Write a row for each layer as CSV; raises UserError if nothing can be written at `path`."""
    rows = []
    for net in nets:
        for index, layer in enumerate(net.layers, 1):
            values = [f"{column[layer]:.9g}" for column in net.columns.values()]
            rows.append([net.run.net, net.run.path, net.step, net.measured_on, index, layer, *values])
    write_csv(path, ["net", "checkpoint", "step", "measured_on", "index", "layer", *nets[0].columns], rows)


def responses_picture(nets: Sequence[NetLayers]) -> np.ndarray:
    """The `std` of the layers as Fig. 7 has it, above in their order, below sorted, one colour a depth; (H, W, 3)."""
    figure = new_figure(7.2, 6.4)
    above, below = figure.subplots(2, sharex=True, sharey=True)
    for net, label, colour in zip(nets, _labels(nets), _colours(nets), strict=True):
        std = np.array(list(net.columns["std"].values()))
        for axes, values in ((above, std), (below, np.sort(std)[::-1])):
            _line(axes, net, values, color=colour, linewidth=1.6, label=label)
    dress(above, "layer index", "std")
    dress(below, "layer index, sorted by magnitude", "std")
    above.set_ylim(bottom=0)
    above.tick_params(labelbottom=True)
    above.set_title("response of each 3×3 layer, after BN", loc="left", fontsize=10, color=MUTED)
    add_legend(above, fontsize=9)
    return render(figure)


def gradients_picture(nets: Sequence[NetLayers]) -> np.ndarray:
    """`initial` thin and `trained` bold over the layers, on a logarithmic axis, one colour a net; (H, W, 3)."""
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = new_figure(7.2, 4.8)
    axes = figure.add_subplot()
    # A block whose last BatchNorm starts at zero has gradients of nought, which are left out.
    axes.set_yscale("log", nonpositive="mask")
    for index, (net, label) in enumerate(zip(nets, _labels(nets), strict=True)):
        told = f"{label}, step {net.step:,}"
        initial, trained = (list(net.columns[when].values()) for when in ("initial", "trained"))
        _line(axes, net, initial, color=f"C{index}", linewidth=0.9, alpha=0.75)
        _line(axes, net, trained, color=f"C{index}", linewidth=1.9, label=told)
    dress(axes, "layer index", "L2 norm of the gradient")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title("thin: at initialisation   bold: in the checkpoint", loc="left", fontsize=10, color=MUTED)
    add_legend(axes, fontsize=9)
    return render(figure)


def _labels(nets: Sequence[NetLayers]) -> list[str]:
    """The nets' names, with run and checkpoint where several have the same."""
    count = Counter(net.run.net for net in nets)
    parts = [[part for part in net.run.path.with_suffix("").parts if part != "checkpoints"][-3:] for net in nets]
    names = [(net.run.net, "/".join(own)) for net, own in zip(nets, parts, strict=True)]
    return [name if count[name] == 1 else f"{name}, {place}" for name, place in names]


def _colours(nets: Sequence[NetLayers]) -> list[str]:
    """One colour for a plain and a residual net of the same depth; another for the next pair of that depth."""
    kinds = [(len(net.layers), net.run.plain) for net in nets]
    pairs = [(kind[0], kinds[:place].count(kind)) for place, kind in enumerate(kinds)]
    order = list(dict.fromkeys(pairs))
    return [f"C{order.index(pair)}" for pair in pairs]


def _line(axes: Axes, net: NetLayers, values: Sequence[float] | np.ndarray, **style: object) -> None:
    from matplotlib.ticker import MaxNLocator

    dashes = {"linestyle": (0, (4, 1.5))} if net.run.plain else {}
    marker = "o" if len(values) == 1 else None
    axes.plot(np.arange(1, len(values) + 1), values, marker=marker, **dashes, **style)
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
