"""Per-module parameters, multiply-adds and activation memory of a model."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from resnet_pl.data.resizing import Size, height_width

# BatchNorm needs more than one value per channel in training, and a small image has one in the last stage.
BATCH_SIZE = 2


@dataclass(frozen=True)
class ModuleCost:
    """Cost of a module, with or without its children.

    Args:
        name: name in the model, as in `named_modules()`; empty for the model itself.
        kind: class name.
        shape: output shape for one image without the batch dimension, for example `(C, H, W)`; None if the module did
            not run or returns no tensor.
        parameters: number of parameters; a shared parameter is counted in its first module.
        multiply_adds: multiply-adds of convolutions, linear layers and attention per image, in evaluation mode.
        activations: bytes per image that autograd saves for the backward pass; a tensor that several modules save is
            counted in the first one.
    """

    name: str
    kind: str
    shape: tuple[int, ...] | None = None
    parameters: int = 0
    multiply_adds: int = 0
    activations: int = 0

    def __add__(self, other: ModuleCost) -> ModuleCost:
        """Returns the sum of both, with the name of the first."""
        counts = ("parameters", "multiply_adds", "activations")
        return replace(self, **{name: getattr(self, name) + getattr(other, name) for name in counts})


def count_costs(model: nn.Module, image_size: Size) -> list[ModuleCost]:
    """Returns per-module costs, excluding children, in the order of `model.named_modules()`.

    The model runs twice, in evaluation and in training mode, and stays in training mode. On the meta device this needs
    no memory and very little time.

    Args:
        model: a model that takes images `(N, C, H, W)`.
        image_size: side of a square, or height and width, pixels.
    """
    channels = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    images = torch.zeros(BATCH_SIZE, channels, *height_width(image_size), device=device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with FlopCounterMode(display=False) as flops:
            evaluation = _Pass(model.eval(), images, flops.get_total_flops)
        training = _Pass(model.train(), images)
    parameters = Counter[str]()
    for name, parameter in model.named_parameters():
        parameters[name.rpartition(".")[0]] += parameter.numel()
    return [
        ModuleCost(
            name,
            type(module).__name__,
            evaluation.shapes.get(name),
            parameters[name],
            evaluation.flops[name] // (2 * BATCH_SIZE),
            training.saved_bytes[name] // BATCH_SIZE,
        )
        for name, module in model.named_modules()
    ]


def group_by_depth(layers: list[ModuleCost], depth: int) -> list[ModuleCost]:
    """Returns costs summed over the children of modules at a depth: 2 for `layer1.0`.

    Modules without costs are omitted, except layers that compute something, such as pooling.
    """
    rows: dict[str, ModuleCost] = {}
    for layer in layers:
        name = ".".join(layer.name.split(".")[:depth])
        # A module comes before its children.
        rows[name] = rows[name] + layer if name in rows else layer
    parents = {layer.name.rpartition(".")[0] for layer in layers}
    return [
        row
        for row in rows.values()
        if row.parameters
        or row.multiply_adds
        or row.activations
        # A layer without parameters that is not only a container, such as pooling.
        or (row.shape and row.name not in parents and row.kind != "Identity")
    ]


class _Pass:
    """One forward pass; its costs are attributed to the innermost running module.

    Args:
        model: the model.
        images: `(N, C, H, W)`.
        total_flops: returns the FLOPs so far.

    Attributes:
        shapes: output shape of each module, without the batch dimension.
        flops: FLOPs of each module, two per multiply-add.
        saved_bytes: bytes that autograd saves, without parameters, buffers and the images; each storage counts once.
    """

    def __init__(self, model: nn.Module, images: Tensor, total_flops: Callable[[], int] = int) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.flops, self.saved_bytes = Counter[str](), Counter[str]()
        self._total_flops, self._attributed, self._running = total_flops, 0, list[str]()
        # By identity, because all addresses are zero on the meta device. The dict holds the storages, so that no other
        # object gets the same id.
        storages = [tensor.untyped_storage() for tensor in (images, *model.parameters(), *model.buffers())]
        self._seen = {id(storage): storage for storage in storages}
        handles = [
            handle
            for name, module in model.named_modules()
            for handle in (
                module.register_forward_pre_hook(lambda *_, name=name: self._start(name)),
                module.register_forward_hook(lambda _, __, output, name=name: self._end(name, output)),
            )
        ]
        # Nothing is unpacked, because no backward pass follows.
        hooks = torch.autograd.graph.saved_tensors_hooks(self._count_saved, lambda saved: saved)
        try:
            with torch.enable_grad(), hooks:
                model(images)
        finally:
            for handle in handles:
                handle.remove()

    def _attribute_flops(self) -> None:
        """Attributes the FLOPs since the last start or end of a module to the running module."""
        total = self._total_flops()
        if self._running:
            self.flops[self._running[-1]] += total - self._attributed
        self._attributed = total

    def _start(self, name: str) -> None:
        self._attribute_flops()
        self._running.append(name)

    def _end(self, name: str, output: object) -> None:
        self._attribute_flops()
        self._running.pop()
        if (first := next(_tensors(output), None)) is not None:
            self.shapes[name] = tuple(first.shape[1:])

    def _count_saved(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if id(storage) not in self._seen:
            self._seen[id(storage)] = storage
            self.saved_bytes[self._running[-1]] += storage.nbytes()


def _tensors(value: object) -> Iterator[Tensor]:
    """Yields the tensors in a module's output: a tensor, or nested lists, tuples and mappings of tensors."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple | Mapping):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(part)
