"""Standard deviation of each 3×3 layer's response (Fig. 7), in evaluation mode, as responses.csv and responses.png."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt
from torch import Tensor

from resnet_pl.analysis.layers import Measured, add_nets, measure_nets
from resnet_pl.cli.parser import Restored
from resnet_pl.data import ImageDataModule
from resnet_pl.data.dataset import Photos
from resnet_pl.data.loader import EpochSampler
from resnet_pl.evaluation.responses import response_stds
from resnet_pl.reports.layers import responses_picture
from resnet_pl.utils import UserError, progress, tell


def add_arguments(parser: ArgumentParser) -> None:
    """The command's options."""
    add_nets(parser)
    split = "images to run; val where there is one, else test, if not given"
    parser.add_argument("--split", choices=["train", "val", "test"], help=split)
    number = "how many of them, evenly spread over the split; all if not given"
    parser.add_argument("--images", type=PositiveInt | None, default=None, help=number)


def run(settings: Namespace) -> None:
    """Measures one net after another."""
    measure_nets(settings, "responses", _measure, responses_picture)


def _measure(net: Restored, name: str, settings: Namespace) -> Measured:
    data, model, checkpoint = net.datamodule, net.model, net.request.checkpoint
    split = settings.split or ("val" if "val" in data.splits else "test")
    images = data.split(split)
    count = min(settings.images or len(images), len(images))
    share = "" if count == len(images) else f"{count:,} of "
    measured_on = f"{share}{len(images):,} images, {data.told(split)}"
    tell(f"{name}: {measured_on}; {checkpoint}")
    batches = (batch.to(model.device) for batch in _evenly(data, images, count, name))
    stds = response_stds(model.backbone, batches, model)
    if not stds:
        raise UserError(
            f"{checkpoint}: {name} has no 3×3 convolution with BatchNorm right after it\n"
            "Fig. 7 is about such layers; give a net that has them"
        )
    return measured_on, {"std": stds}


def _evenly(data: ImageDataModule, images: object, count: int, name: str) -> Iterator[Tensor]:
    """Batches of evaluation's view of `count` images, evenly spread, for photos may lie sorted by class."""
    if isinstance(images, Photos):
        images = Photos(images.root, images.names, images.labels, data.image_size)
    loader = data.loader(images, EpochSampler(len(images)), data.eval_batch_size)
    chosen = torch.arange(count) * len(images) // count
    with progress(name, count) as advance:
        for batch, _, indices in loader.read(chosen.split(data.eval_batch_size), epoch=0):
            if len(indices):
                yield batch
                advance(len(batch))
