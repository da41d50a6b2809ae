"""Measure the L2 norm of the loss gradient with respect to the weight of each layer.

The norm is the mean over a few training batches with augmentation. It is measured at initialization, which the seed of
the run reproduces, and at the checkpoint. The results are saved as gradients.csv and gradients.png.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import torch
from jsonargparse import ArgumentParser, Namespace
from torch import Tensor, nn
from torch.func import functional_call

from resnet_pl.analysis.layers import LoadedRun, Measured, add_checkpoint_arguments, measure_models, plot_gradients
from resnet_pl.data import ImageDataModule
from resnet_pl.models.heads import training_loss
from resnet_pl.types import PositiveInt
from resnet_pl.utils import counted, progress, rank_zero_print

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options of `paper gradients`."""
    add_checkpoint_arguments(parser)
    parser.add_argument("--batches", type=PositiveInt, default=8, help="training batches to average over")


def run(settings: Namespace) -> None:
    """Runs the command."""
    measure_models(settings, "gradients", _measure, plot_gradients)


def _measure(loaded: LoadedRun, settings: Namespace) -> Measured:
    data, name = loaded.data, loaded.run.model
    data.split("train")
    data.setup("fit")
    count = min(settings.batches, len(data.train_dataloader()))
    measured_on = f"{counted(count, 'batch')} of {data.batch_size}, {data.describe_split('train')}"
    rank_zero_print(f"{name}: {measured_on}; {loaded.run.path}")
    if loaded.model.weights is not None:
        rank_zero_print("note: the run started from pretrained weights; here the initial weights are random")
    norms = {}
    for when, model in {"initial": loaded.initial(), "trained": loaded.model}.items():
        batches = _batches(data, count, loaded.model.device, f"{name}, {when}")
        by_layer = gradient_norms(model.to(loaded.model.device), batches, model.criterion)
        norms[when] = {layer.removeprefix("backbone."): norm for layer, norm in by_layer.items()}
    return measured_on, norms


def _batches(data: ImageDataModule, count: int, device: torch.device, name: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the same images and labels in each call: order and augmentation depend on the seed only."""
    with progress(name, count) as advance:
        for batch in islice(data.train_dataloader(), count):
            batch = data.augment(data.transfer_batch_to_device(batch, device, 0))
            assert isinstance(batch.images, Tensor)  # lists of views occur in evaluation only
            yield batch.images, batch.labels
            advance(1)


def gradient_norms(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], loss: Callable[[Tensor, Tensor], Tensor]
) -> dict[str, float]:
    """Returns the L2 norm of the loss gradient with respect to the weight of each convolution and linear layer.

    The model runs in training mode. Its running statistics, modes and gradients are not changed.

    Args:
        model: maps images to logits, in training mode also to those of auxiliary heads.
        batches: pairs of images and labels.
        loss: function of logits and labels.

    Returns:
        The mean over the batches, by layer name, in the order of `named_modules()`.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, (*CONVOLUTIONS, nn.Linear))}
    # Detached copies, so that frozen layers have a gradient too.
    weights = {f"{name}.weight": layer.weight.detach().requires_grad_() for name, layer in layers.items()}
    modes = {module: module.training for module in model.modules()}
    norms = []
    model.train()
    try:
        for images, labels in batches:
            # BatchNorm updates these copies of its running statistics.
            buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
            outputs = functional_call(model, buffers | weights, (images,))
            value, _ = training_loss(loss, outputs, labels)
            gradients = torch.autograd.grad(value, list(weights.values()), materialize_grads=True)
            norms.append(torch.stack([gradient.double().norm() for gradient in gradients]))
    finally:
        for module, mode in modes.items():
            module.training = mode
    return dict(zip(layers, torch.stack(norms).mean(0).tolist(), strict=True))
