"""L2 norm of the training loss's gradient with respect to each layer's weight, as gradients.csv and gradients.png.

The mean over a few training batches, augmented as in training, of the net as its seed initialised it and with the
checkpoint's weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch
from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt
from torch import Tensor

from resnet_pl.analysis.layers import Measured, add_nets, measure_nets
from resnet_pl.classifier import ImageClassifier
from resnet_pl.cli.parser import Restored
from resnet_pl.data import ImageDataModule
from resnet_pl.evaluation.gradients import gradient_norms
from resnet_pl.patches import short_names
from resnet_pl.reports.layers import gradients_picture
from resnet_pl.utils import progress, tell


def add_arguments(parser: ArgumentParser) -> None:
    """The command's options."""
    add_nets(parser)
    parser.add_argument("--batches", type=PositiveInt, default=8, help="training batches to average over")


def run(settings: Namespace) -> None:
    """Measures one net after another."""
    measure_nets(settings, "gradients", _measure, gradients_picture)


def _measure(net: Restored, name: str, settings: Namespace) -> Measured:
    data = net.datamodule
    data.split("train")
    data.setup("fit")
    count = min(settings.batches, len(data.train_dataloader()))
    measured_on = f"{count} batches of {data.batch_size}, {data.told('train')}"
    tell(f"{name}: {measured_on}; {net.request.checkpoint}")
    if net.model.weights is not None:
        tell("note: the run started from pretrained weights; initialisation is at random here")
    norms = {}
    for when, model in {"initial": _initialised(net), "trained": net.model}.items():
        batches = _batches(data, count, net.model.device, f"{name}, {when}")
        own = gradient_norms(model.to(net.model.device), batches, model.loss)
        norms[when] = {layer.removeprefix("backbone."): norm for layer, norm in own.items()}
    return measured_on, norms


def _batches(data: ImageDataModule, count: int, device: torch.device, name: str) -> Iterator[tuple[Tensor, Tensor]]:
    """The same ones each time: order and augmentation are drawn from the seed."""
    with progress(name, count) as advance:
        for batch in islice(data.train_dataloader(), count):
            batch = data.augment(data.transfer_batch_to_device(batch, device, 0))
            yield batch.images, batch.labels
            advance(1)


def _initialised(net: Restored) -> ImageClassifier:
    """The net as its run's seed made it, in the order of draws that `fit` has."""
    net._set_seed()
    with short_names():
        model = net.parser.instantiate_classes(net.config)[net.subcommand].model
    model.configure_model()
    model.normalize = net.model.normalize
    return model
