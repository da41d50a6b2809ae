"""L2 norm of the training loss's gradient with respect to each layer's weight, as gradients.csv and gradients.png.

The mean over a few training batches, augmented as in training, of the net as its seed initialised it and with the
checkpoint's weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import torch
from jsonargparse import ArgumentParser, Namespace
from torch import Tensor, nn
from torch.func import functional_call

from resnet_pl.analysis.layers import LoadedRun, Measured, add_checkpoint_arguments, gradients_picture, measure_models
from resnet_pl.data import ImageDataModule
from resnet_pl.types import PositiveInt
from resnet_pl.utils import progress, rank_zero_print

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def add_arguments(parser: ArgumentParser) -> None:
    """The command's options."""
    add_checkpoint_arguments(parser)
    parser.add_argument("--batches", type=PositiveInt, default=8, help="training batches to average over")


def run(settings: Namespace) -> None:
    """Measures one net after another."""
    measure_models(settings, "gradients", _measure, gradients_picture)


def _measure(net: LoadedRun, settings: Namespace) -> Measured:
    data = net.data
    data.split("train")
    data.setup("fit")
    count = min(settings.batches, len(data.train_dataloader()))
    measured_on = f"{count} batches of {data.batch_size}, {data.describe_split('train')}"
    rank_zero_print(f"{net.run.net}: {measured_on}; {net.run.path}")
    if net.model.weights is not None:
        rank_zero_print("note: the run started from pretrained weights; initialisation is at random here")
    norms = {}
    for when, model in {"initial": net.initial(), "trained": net.model}.items():
        batches = _batches(data, count, net.model.device, f"{net.run.net}, {when}")
        own = gradient_norms(model.to(net.model.device), batches, model.criterion)
        norms[when] = {layer.removeprefix("backbone."): norm for layer, norm in own.items()}
    return measured_on, norms


def _batches(data: ImageDataModule, count: int, device: torch.device, name: str) -> Iterator[tuple[Tensor, Tensor]]:
    """The same ones each time: order and augmentation are drawn from the seed."""
    with progress(name, count) as advance:
        for batch in islice(data.train_dataloader(), count):
            batch = data.augment(data.transfer_batch_to_device(batch, device, 0))
            yield batch.images, batch.labels
            advance(1)


def gradient_norms(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], loss: Callable[[Tensor, Tensor], Tensor]
) -> dict[str, float]:
    """L2 norm of the loss's gradient with respect to each convolution's and linear layer's weight, as in training.

    The model is as it was afterwards: running statistics, mode and gradients.

    Args:
        model: images to logits.
        batches: images and labels.
        loss: of (logits, labels).

    Returns:
        The mean over the batches, by the layer's name, in the model's own order.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, (*CONVOLUTIONS, nn.Linear))}
    # Of copies, so that a layer that is frozen has a gradient too.
    weights = {f"{name}.weight": layer.weight.detach().requires_grad_() for name, layer in layers.items()}
    modes = {module: module.training for module in model.modules()}
    norms = []
    model.train()
    try:
        for images, labels in batches:
            # BatchNorm counts the batch in copies of its statistics.
            buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
            logits = functional_call(model, buffers | weights, (images,))
            gradients = torch.autograd.grad(loss(logits, labels), list(weights.values()), materialize_grads=True)
            norms.append(torch.stack([gradient.double().norm() for gradient in gradients]))
    finally:
        for module, mode in modes.items():
            module.training = mode
    return dict(zip(layers, torch.stack(norms).mean(0).tolist(), strict=True))
