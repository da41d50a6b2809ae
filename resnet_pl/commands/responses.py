"""Standard deviation of each 3×3 layer's response (Fig. 7), in evaluation mode, as responses.csv and responses.png."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt
from torch import Tensor

from resnet_pl.configuration import Restored
from resnet_pl.console import progress, tell
from resnet_pl.data import ImageDataModule
from resnet_pl.data.loaders import EpochSampler
from resnet_pl.data.photos import Photos
from resnet_pl.errors import UserError
from resnet_pl.evaluation.responses import response_stds
from resnet_pl.models import ResNet
from resnet_pl.reports.layers import NetLayers, responses_picture, write_layers
from resnet_pl.reports.pictures import save_png


def add_arguments(parser: ArgumentParser) -> None:
    """The command's options."""
    add_nets(parser)
    split = "images to run; val where there is one, else test, if not given"
    parser.add_argument("--split", choices=["train", "val", "test"], help=split)
    number = "how many of them, evenly spread over the split; all if not given"
    parser.add_argument("--images", type=PositiveInt | None, default=None, help=number)


def add_nets(parser: ArgumentParser) -> None:
    """Options that say which nets to look at."""
    parser.add_argument("checkpoints", type=str, nargs="+", help="files, run folders, best or last")
    parser.add_argument("--output", type=str, default=".", help="folder to write into")
    root = "folder of the images; where they were in training if not given"
    parser.add_argument("--data.root", type=str | None, default=None, help=root)


def run(settings: Namespace) -> None:
    """Measures one net after another."""
    nets = [_measure(checkpoint, settings) for checkpoint in settings.checkpoints]
    table, picture = Path(settings.output) / "responses.csv", Path(settings.output) / "responses.png"
    write_layers(nets, table)
    save_png(responses_picture(nets), picture)
    print(f"written to {table} and {picture}")


def _measure(checkpoint: str, settings: Namespace) -> NetLayers:
    net = restored(checkpoint, settings)
    data, model = net.datamodule, net.model.to(device())
    split = settings.split or ("val" if "val" in data.splits else "test")
    images = data.split(split)
    count = min(settings.images or len(images), len(images))
    share = "" if count == len(images) else f"{count:,} of "
    measured_on = f"{share}{len(images):,} images, {data.told(split)}"
    tell(f"{name(net)}: {measured_on}; {net.request.checkpoint}")
    with progress(name(net), count) as advance:

        def batches() -> Iterator[Tensor]:
            for batch in _evenly(data, images, count):
                yield batch.to(model.device)
                advance(len(batch))

        stds = response_stds(model.backbone, batches(), model)
    if not stds:
        raise UserError(
            f"{net.request.checkpoint}: {name(net)} has no 3×3 convolution with BatchNorm right after it\n"
            "Fig. 7 is about such layers; give a net that has them"
        )
    return net_layers(net, measured_on, {"std": stds})


def _evenly(data: ImageDataModule, images: object, count: int) -> Iterator[Tensor]:
    """Batches of evaluation's view of `count` images, evenly spread, for photos may lie sorted by class."""
    if isinstance(images, Photos):
        images = Photos(images.root, images.names, images.labels, data.image_size)
    loader = data.loader(images, EpochSampler(len(images)), data.eval_batch_size)
    chosen = torch.arange(count) * len(images) // count
    for batch, _, indices in loader.read(chosen.split(data.eval_batch_size), epoch=0):
        if len(indices):
            yield batch


def restored(checkpoint: str, settings: Namespace) -> Restored:
    """The net and the data of a checkpoint, by the options that `add_nets` adds."""
    root = settings.data.root
    return Restored(checkpoint, ["--data.root", root] if root else [])


def device() -> torch.device:
    """A GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def name(net: Restored) -> str:
    """The net in a word or two, such as `cifar_resnet 20`."""
    backbone = net.config[net.subcommand].model.backbone
    depth = (backbone.get("init_args") or {}).get("depth")
    return backbone.class_path.rsplit(".", 1)[-1] + ("" if depth is None else f" {depth}")


def net_layers(net: Restored, measured_on: str, columns: dict[str, dict[str, float]]) -> NetLayers:
    """What was measured of a net, for a report.

    Args:
        net: the net.
        measured_on: the images, in words.
        columns: under the name of each quantity a number for each layer, by name.
    """
    backbone = net.model.backbone
    return NetLayers(
        net=name(net),
        plain=isinstance(backbone, ResNet) and backbone.init_args["shortcut"] == "none",
        checkpoint=net.request.checkpoint,
        step=net.checkpoint["global_step"],
        measured_on=measured_on,
        layers=list(next(iter(columns.values()))),
        columns={quantity: list(values.values()) for quantity, values in columns.items()},
    )
