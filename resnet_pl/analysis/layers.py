"""What the studies of a net's layers share: the nets of checkpoints, a table of the layers, and pictures of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import seed_everything

from resnet_pl import checkpoint as ckpt
from resnet_pl.classifier import ImageClassifier
from resnet_pl.data import ImageDataModule
from resnet_pl.load import build, load_run
from resnet_pl.reports.plots import MUTED, add_legend, new_figure, render, save_png, style_axes
from resnet_pl.reports.run_reader import Run
from resnet_pl.reports.tables import write_csv
from resnet_pl.run_dir import find_checkpoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The images in words, and under the name of each quantity a number for each layer, by name.
Measured = tuple[str, dict[str, dict[str, float]]]


@dataclass(frozen=True)
class LoadedRun:
    """The net of a checkpoint, with its data.

    Attributes:
        run: the run that it is of, under the path of the checkpoint.
        step: steps it was trained for.
        model: with the checkpoint's weights, in evaluation mode.
        data: with its splits.
        initial: builds the net anew, with the weights that the run's seed gave it.
    """

    run: Run
    step: int
    model: ImageClassifier
    data: ImageDataModule
    initial: Callable[[], ImageClassifier]


def load(checkpoint: str | Path, options: Sequence[str] = ()) -> LoadedRun:
    """Loads a checkpoint: a file, a run folder, `best` or `last`; takes the options of `test`, such as --data.root."""
    file = find_checkpoint(checkpoint)
    trained, data = load_run(file, options=options)
    stored = ckpt.read(file)
    config = ckpt.config_of(stored, file, "test")

    def initial() -> ImageClassifier:
        # Seeded and built in the order of `fit`. `seed_everything: false` leaves the generators as they are.
        if (seed := config.get("seed_everything", 0)) is not False:
            seed_everything(seed, workers=True, verbose=False)
        model, _ = build(config, options)
        model.configure_model()
        model.normalize = trained.normalize
        return model

    return LoadedRun(Run(file, config), stored["global_step"], trained, data, initial)


@dataclass(frozen=True)
class LayerMeasurements:
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


def add_checkpoint_arguments(parser: ArgumentParser) -> None:
    """Options that say which nets to look at."""
    parser.add_argument("checkpoints", type=str, nargs="+", help="files, run folders, best or last")
    parser.add_argument("--output", type=str, default=".", help="folder to write into")
    root = "folder of the images; where they were in training if not given"
    parser.add_argument("--data.root", type=str | None, default=None, help=root)


def measure_models(
    settings: Namespace,
    study: str,
    measure: Callable[[LoadedRun, Namespace], Measured],
    draw: Callable[[Sequence[LayerMeasurements]], np.ndarray],
) -> None:
    """Measures one net after another, and writes STUDY.csv and STUDY.png.

    Args:
        settings: what `add_checkpoint_arguments` reads, among others.
        study: name of the two files.
        measure: of a net, on a GPU if there is one, and the settings.
        draw: the picture, (H, W, 3) uint8.
    """
    nets = []
    for checkpoint in settings.checkpoints:
        net = load(checkpoint, ["--data.root", settings.data.root] if settings.data.root else [])
        net.model.to("cuda" if torch.cuda.is_available() else "cpu")
        nets.append(LayerMeasurements(net.run, net.step, *measure(net, settings)))
    table, picture = (Path(settings.output) / f"{study}.{kind}" for kind in ("csv", "png"))
    write_layers(nets, table)
    save_png(draw(nets), picture)
    print(f"written to {table} and {picture}")


def write_layers(nets: Sequence[LayerMeasurements], path: Path) -> None:
    """Write a row for each layer as CSV; raises UserError if nothing can be written at `path`."""
    rows = []
    for net in nets:
        for index, layer in enumerate(net.layers, 1):
            values = [f"{column[layer]:.9g}" for column in net.columns.values()]
            rows.append([net.run.net, net.run.path, net.step, net.measured_on, index, layer, *values])
    write_csv(path, ["net", "checkpoint", "step", "measured_on", "index", "layer", *nets[0].columns], rows)


def responses_picture(nets: Sequence[LayerMeasurements]) -> np.ndarray:
    """The `std` of the layers as Fig. 7 has it, above in their order, below sorted, one color a depth; (H, W, 3)."""
    figure = new_figure(7.2, 6.4)
    above, below = figure.subplots(2, sharex=True, sharey=True)
    for net, label, color in zip(nets, _labels(nets), _colors(nets), strict=True):
        std = np.array(list(net.columns["std"].values()))
        for axes, values in ((above, std), (below, np.sort(std)[::-1])):
            _line(axes, net, values, color=color, linewidth=1.6, label=label)
    style_axes(above, "layer index", "std")
    style_axes(below, "layer index, sorted by magnitude", "std")
    above.set_ylim(bottom=0)
    above.tick_params(labelbottom=True)
    above.set_title("response of each 3×3 layer, after BN", loc="left", fontsize=10, color=MUTED)
    add_legend(above, fontsize=9)
    return render(figure)


def gradients_picture(nets: Sequence[LayerMeasurements]) -> np.ndarray:
    """`initial` thin and `trained` bold over the layers, on a logarithmic axis, one color a net; (H, W, 3)."""
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = new_figure(7.2, 4.8)
    axes = figure.add_subplot()
    # A block whose last BatchNorm starts at zero has gradients of zero, which are left out.
    axes.set_yscale("log", nonpositive="mask")
    for index, (net, label) in enumerate(zip(nets, _labels(nets), strict=True)):
        initial, trained = (list(net.columns[when].values()) for when in ("initial", "trained"))
        _line(axes, net, initial, color=f"C{index}", linewidth=0.9, alpha=0.75)
        _line(axes, net, trained, color=f"C{index}", linewidth=1.9, label=f"{label}, step {net.step:,}")
    style_axes(axes, "layer index", "L2 norm of the gradient")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title("thin: at initialisation   bold: in the checkpoint", loc="left", fontsize=10, color=MUTED)
    add_legend(axes, fontsize=9)
    return render(figure)


def _labels(nets: Sequence[LayerMeasurements]) -> list[str]:
    """The nets' names, with run and checkpoint where several have the same."""
    count = Counter(net.run.net for net in nets)
    parts = [[part for part in net.run.path.with_suffix("").parts if part != "checkpoints"][-3:] for net in nets]
    names = [(net.run.net, "/".join(own)) for net, own in zip(nets, parts, strict=True)]
    return [name if count[name] == 1 else f"{name}, {place}" for name, place in names]


def _colors(nets: Sequence[LayerMeasurements]) -> list[str]:
    """One color for a plain and a residual net of the same depth; another for the next pair of that depth."""
    kinds = [(len(net.layers), net.run.plain) for net in nets]
    pairs = [(kind[0], kinds[:place].count(kind)) for place, kind in enumerate(kinds)]
    order = list(dict.fromkeys(pairs))
    return [f"C{order.index(pair)}" for pair in pairs]


def _line(axes: Axes, net: LayerMeasurements, values: Sequence[float] | np.ndarray, **style: object) -> None:
    from matplotlib.ticker import MaxNLocator

    dashes = {"linestyle": (0, (4, 1.5))} if net.run.plain else {}
    marker = "o" if len(values) == 1 else None
    axes.plot(np.arange(1, len(values) + 1), values, marker=marker, **dashes, **style)
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
