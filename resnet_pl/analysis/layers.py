"""Common code of the per-layer measurements: loading checkpoints, writing the CSV, and plots over layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import seed_everything

from resnet_pl import checkpoint as ckpt
from resnet_pl.classifier import ImageClassifier
from resnet_pl.data import ImageDataModule
from resnet_pl.load import build, load_run
from resnet_pl.reports.plots import MUTED, add_legend, new_figure, plot_label, render, save_png, style_axes
from resnet_pl.reports.run_reader import Run
from resnet_pl.reports.tables import write_csv
from resnet_pl.run_dir import find_checkpoint
from resnet_pl.utils import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Description of the images, and for each quantity its value by layer name.
Measured = tuple[str, dict[str, dict[str, float]]]


@dataclass(frozen=True)
class LoadedRun:
    """Model and data of a checkpoint.

    Attributes:
        run: the run; its `path` is the checkpoint.
        step: optimizer steps of the checkpoint.
        model: the model with the weights of the checkpoint, in evaluation mode.
        data: the data module, after `setup`.
        initial: returns a new model with the initial weights of the run, reproduced from its seed.
    """

    run: Run
    step: int
    model: ImageClassifier
    data: ImageDataModule
    initial: Callable[[], ImageClassifier]


def load(checkpoint: str | Path, options: Sequence[str] = ()) -> LoadedRun:
    """Loads a checkpoint for measurements.

    Args:
        checkpoint: a file, a run folder, `best` or `last`.
        options: options of `test`, for example `--data.root`.

    Raises:
        UserError: the model or the data is not of a class of this project.
    """
    file = find_checkpoint(checkpoint)
    stored = ckpt.read(file)
    config = ckpt.config_of(stored, file, "test")

    def seed() -> None:
        # `seed_everything: false` means no seed.
        if (number := config.get("seed_everything", 0)) is not False:
            seed_everything(number, workers=True, verbose=False)

    seed()  # random crops depend on it, not on the checkpoint before this one
    trained, data = load_run(file, options=options)
    if not isinstance(trained, ImageClassifier) or not isinstance(data, ImageDataModule):
        raise UserError(
            f"{file} has a {type(trained).__name__} with a {type(data).__name__}\n"
            "this analysis needs an ImageClassifier with an ImageDataModule, or classes derived from them"
        )

    def initial() -> ImageClassifier:
        seed()  # in the order of `fit`, so that the random numbers are equal
        model, _ = build(config, options, file)
        model.configure_model()
        model.normalize, model.criterion = trained.normalize, trained.criterion  # with the class weights of the run
        return model

    return LoadedRun(Run(file, config), stored["global_step"], trained, data, initial)


@dataclass(frozen=True)
class LayerMeasurements:
    """Per-layer measurements of one model.

    Attributes:
        run: the run; its `path` is the checkpoint.
        step: optimizer steps of the checkpoint.
        measured_on: description of the images.
        columns: for each quantity its value by layer name, in the order of the layers.
    """

    run: Run
    step: int
    measured_on: str
    columns: dict[str, dict[str, float]]

    @property
    def layers(self) -> list[str]:
        """Names of the layers."""
        return list(next(iter(self.columns.values())))


def add_checkpoint_arguments(parser: ArgumentParser) -> None:
    """Adds the options that select checkpoints, images and the output folder."""
    parser.add_argument("checkpoints", type=str, nargs="+", help="checkpoint files, run folders, `best` or `last`")
    parser.add_argument("--output", type=str, default=".", help="folder to write to")
    root = "folder of the images; default: the folder used in training"
    parser.add_argument("--data.root", type=str | None, default=None, help=root)


def load_all(settings: Namespace) -> Iterator[LoadedRun]:
    """Yields each checkpoint of `add_checkpoint_arguments`; its model is on a GPU if there is one."""
    for checkpoint in settings.checkpoints:
        loaded = load(checkpoint, ["--data.root", settings.data.root] if settings.data.root else [])
        loaded.model.to("cuda" if torch.cuda.is_available() else "cpu")
        yield loaded


def measure_models(
    settings: Namespace,
    study: str,
    measure: Callable[[LoadedRun, Namespace], Measured],
    draw: Callable[[Sequence[LayerMeasurements]], np.ndarray],
) -> None:
    """Measures all checkpoints and writes STUDY.csv and STUDY.png.

    Args:
        settings: the parsed options, including those of `add_checkpoint_arguments`.
        study: name of the two files.
        measure: function of a loaded checkpoint and the settings; the model is on a GPU if there is one.
        draw: returns the plot `(H, W, 3)` uint8.
    """
    measurements = [
        LayerMeasurements(loaded.run, loaded.step, *measure(loaded, settings)) for loaded in load_all(settings)
    ]
    table, plot = (Path(settings.output) / f"{study}.{kind}" for kind in ("csv", "png"))
    write_layers(measurements, table)
    save_png(draw(measurements), plot)
    print(f"Saved to {table} and {plot}")


def write_layers(measurements: Sequence[LayerMeasurements], path: Path) -> None:
    """Writes a CSV file with one row per layer; raises UserError if `path` cannot be written."""
    rows = []
    for measured in measurements:
        for index, layer in enumerate(measured.layers, 1):
            values = [f"{column[layer]:.9g}" for column in measured.columns.values()]
            facts = [measured.run.model, measured.run.path, measured.step, measured.measured_on]
            rows.append([*facts, index, layer, *values])
    write_csv(path, ["model", "checkpoint", "step", "measured_on", "index", "layer", *measurements[0].columns], rows)


def plot_responses(measurements: Sequence[LayerMeasurements]) -> np.ndarray:
    """Plots the column `std` as in Fig. 7: in layer order and sorted by magnitude, one color per depth.

    Returns:
        The plot `(H, W, 3)` uint8.
    """
    figure = new_figure(7.2, 6.4)
    above, below = figure.subplots(2, sharex=True, sharey=True)
    labels = model_labels([each.run for each in measurements])
    for measured, label, color in zip(measurements, labels, _colors(measurements), strict=True):
        std = np.array(list(measured.columns["std"].values()))
        for axes, values in ((above, std), (below, np.sort(std)[::-1])):
            _draw_line(axes, measured, values, color=color, linewidth=1.6, label=label)
    style_axes(above, "layer index", "std")
    style_axes(below, "layer index, sorted by magnitude", "std")
    above.set_ylim(bottom=0)
    above.tick_params(labelbottom=True)
    above.set_title("response of each 3×3 layer, after BN", loc="left", fontsize=10, color=MUTED)
    add_legend(above, fontsize=9)
    return render(figure)


def plot_gradients(measurements: Sequence[LayerMeasurements]) -> np.ndarray:
    """Plots the columns `initial` (thin) and `trained` (bold) over the layers, logarithmically, one color per model.

    Returns:
        The plot `(H, W, 3)` uint8.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = new_figure(7.2, 4.8)
    axes = figure.add_subplot()
    # Zeros are not drawn: with `zero_init_residual` some gradients are zero at initialization.
    axes.set_yscale("log", nonpositive="mask")
    labels = model_labels([each.run for each in measurements])
    for index, (measured, label) in enumerate(zip(measurements, labels, strict=True)):
        initial, trained = (list(measured.columns[when].values()) for when in ("initial", "trained"))
        _draw_line(axes, measured, initial, color=f"C{index}", linewidth=0.9, alpha=0.75)
        _draw_line(axes, measured, trained, color=f"C{index}", linewidth=1.9, label=f"{label}, step {measured.step:,}")
    style_axes(axes, "layer index", "L2 norm of the gradient")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title("thin: at initialization   bold: at the checkpoint", loc="left", fontsize=10, color=MUTED)
    add_legend(axes, fontsize=9)
    return render(figure)


def model_labels(runs: Sequence[Run]) -> list[str]:
    """Returns the models' names; with run and checkpoint if several models have the same name."""
    count = Counter(run.model for run in runs)
    labels = []
    for run in runs:
        parts = [part for part in run.path.with_suffix("").parts if part != "checkpoints"][-3:]
        labels.append(plot_label(run.model if count[run.model] == 1 else f"{run.model}, {'/'.join(parts)}"))
    return labels


def _colors(measurements: Sequence[LayerMeasurements]) -> list[str]:
    """One color for a plain and a residual network of the same depth; another color for the next pair of that depth."""
    kinds = [(len(measured.layers), measured.run.plain) for measured in measurements]
    pairs = [(kind[0], kinds[:index].count(kind)) for index, kind in enumerate(kinds)]
    order = list(dict.fromkeys(pairs))
    return [f"C{order.index(pair)}" for pair in pairs]


def _draw_line(axes: Axes, measured: LayerMeasurements, values: Sequence[float] | np.ndarray, **style: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    dashes = {"linestyle": (0, (4, 1.5))} if measured.run.plain else {}
    marker = "o" if len(values) == 1 else None
    axes.plot(np.arange(1, len(values) + 1), values, marker=marker, **dashes, **style)
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
