"""What `responses` and `gradients` share: which nets they look at, and the table and the picture they leave."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from jsonargparse import ArgumentParser, Namespace

from resnet_pl.cli.parser import Restored
from resnet_pl.reports.layers import NetLayers, write_layers
from resnet_pl.reports.pictures import save_png
from resnet_pl.reports.records import Run

# The images in words, and under the name of each quantity a number for each layer, by name.
Measured = tuple[str, dict[str, dict[str, float]]]


def add_nets(parser: ArgumentParser) -> None:
    """Options that say which nets to look at."""
    parser.add_argument("checkpoints", type=str, nargs="+", help="files, run folders, best or last")
    parser.add_argument("--output", type=str, default=".", help="folder to write into")
    root = "folder of the images; where they were in training if not given"
    parser.add_argument("--data.root", type=str | None, default=None, help=root)


def measure_nets(
    settings: Namespace,
    command: str,
    measure: Callable[[Restored, str, Namespace], Measured],
    draw: Callable[[Sequence[NetLayers]], np.ndarray],
) -> None:
    """Measures one net after another, and writes COMMAND.csv and COMMAND.png.

    Args:
        settings: what `add_nets` reads, among others.
        measure: of a net, on a GPU if there is one, its name and the settings.
    """
    nets = []
    for checkpoint in settings.checkpoints:
        net = Restored(checkpoint, ["--data.root", settings.data.root] if settings.data.root else [])
        net.model.to("cuda" if torch.cuda.is_available() else "cpu")
        run = Run(net.request.checkpoint, net.model.config)
        measured_on, columns = measure(net, run.net, settings)
        nets.append(NetLayers(run, net.checkpoint["global_step"], measured_on, columns))
    table, picture = (Path(settings.output) / f"{command}.{kind}" for kind in ("csv", "png"))
    write_layers(nets, table)
    save_png(draw(nets), picture)
    print(f"written to {table} and {picture}")
