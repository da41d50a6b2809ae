"""L2 norm of the training loss's gradient with respect to each layer's weight, as gradients.csv and gradients.png.

The mean over a few training batches, augmented as in training, of the net as its seed initialised it and with the
checkpoint's weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt
from torch import Tensor

from resnet_pl.classifier import ImageClassifier
from resnet_pl.commands.responses import add_nets, device, name, net_layers, restored
from resnet_pl.configuration import Restored
from resnet_pl.console import progress, tell
from resnet_pl.evaluation.gradients import gradient_norms
from resnet_pl.patches import short_names
from resnet_pl.reports.layers import NetLayers, gradients_picture, write_layers
from resnet_pl.reports.pictures import save_png


def add_arguments(parser: ArgumentParser) -> None:
    """The command's options."""
    add_nets(parser)
    parser.add_argument("--batches", type=PositiveInt, default=8, help="training batches to average over")


def run(settings: Namespace) -> None:
    """Measures one net after another."""
    nets = [_measure(checkpoint, settings) for checkpoint in settings.checkpoints]
    table, picture = Path(settings.output) / "gradients.csv", Path(settings.output) / "gradients.png"
    write_layers(nets, table)
    save_png(gradients_picture(nets), picture)
    print(f"written to {table} and {picture}")


def _measure(checkpoint: str, settings: Namespace) -> NetLayers:
    net = restored(checkpoint, settings)
    data = net.datamodule
    data.split("train")
    data.setup("fit")
    count = min(settings.batches, len(data.train_dataloader()))
    measured_on = f"{count} batches of {data.batch_size}, {data.told('train')}"
    tell(f"{name(net)}: {measured_on}; {net.request.checkpoint}")
    if net.model.weights is not None:
        tell("note: the run started from pretrained weights; initialisation is at random here")
    with progress(name(net), 2 * count) as advance:

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            # The same ones each time: order and augmentation are drawn from the seed.
            for batch in islice(data.train_dataloader(), count):
                parts = {part: getattr(batch, part).to(device()) for part in ("images", "labels", "indices")}
                batch = data.augment(batch._replace(**parts))
                yield batch.images, batch.labels
                advance(1)

        models = {"initial": _initialised(net), "trained": net.model}
        norms = {when: _norms(model.to(device()), batches()) for when, model in models.items()}
    return net_layers(net, measured_on, norms)


def _norms(model: ImageClassifier, batches: Iterator[tuple[Tensor, Tensor]]) -> dict[str, float]:
    norms = gradient_norms(model, batches, model.loss)
    return {layer.removeprefix("backbone."): norm for layer, norm in norms.items()}


def _initialised(net: Restored) -> ImageClassifier:
    """The net as its run's seed made it, in the order of draws that `fit` has."""
    net._set_seed()
    with short_names():
        model = net.parser.instantiate_classes(net.config)[net.subcommand].model
    model.configure_model()
    model.normalize = net.model.normalize
    return model
