"""What a net costs, module by module: parameters, multiply-adds, and the memory its training keeps."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

# BatchNorm cannot train on one value a channel, which is what the last stage of a small image holds.
BATCH = 2


@dataclass(frozen=True)
class ModuleCost:
    """A module of a net, or one with all that is in it.

    Args:
        name: its name in the net; empty for the net itself.
        kind: its class.
        shape: of its output for one image, such as (C, H, W); None where it did not run or gives no tensor.
        parameters: their number, each counted where it is first.
        multiply_adds: of convolutions, linear layers and attention for one image in evaluation; all else is little.
        activations: bytes that it is the first to keep of one image for the backward pass.
    """

    name: str
    kind: str
    shape: tuple[int, ...] | None = None
    parameters: int = 0
    multiply_adds: int = 0
    activations: int = 0

    def __add__(self, other: ModuleCost) -> ModuleCost:
        """Both together, under the first one's name."""
        counts = ("parameters", "multiply_adds", "activations")
        return replace(self, **{name: getattr(self, name) + getattr(other, name) for name in counts})


def count_costs(net: nn.Module, image_size: int) -> list[ModuleCost]:
    """Counts what each module does itself, apart from the modules in it; in the order of `net.named_modules()`.

    The net runs twice, in evaluation and in training mode, and stays in the latter; on the meta device this takes no
    memory and nearly no time.

    Args:
        net: any net that takes images `(N, C, H, W)`.
        image_size: height and width, pixels.
    """
    channels = next((m.in_channels for m in net.modules() if isinstance(m, nn.Conv2d)), 3)
    device = next((p.device for p in net.parameters()), torch.device("cpu"))
    images = torch.zeros(BATCH, channels, image_size, image_size, device=device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with FlopCounterMode(display=False) as flops:
            evaluation = _Pass(net.eval(), images, flops.get_total_flops)
        training = _Pass(net.train(), images)
    parameters = Counter[str]()
    for name, parameter in net.named_parameters():
        parameters[name.rpartition(".")[0]] += parameter.numel()
    return [
        ModuleCost(
            name,
            type(module).__name__,
            evaluation.shapes.get(name),
            parameters[name],
            evaluation.flops[name] // (2 * BATCH),
            training.kept[name] // BATCH,
        )
        for name, module in net.named_modules()
    ]


def group_by_depth(layers: list[ModuleCost], depth: int) -> list[ModuleCost]:
    """Sums modules into those of at most `depth` words in their names, such as 2 for `layer1.0`.

    Modules that do nothing themselves are left out.
    """
    rows: dict[str, ModuleCost] = {}
    for layer in layers:
        name = ".".join(layer.name.split(".")[:depth])
        # A module comes before what is in it.
        rows[name] = rows[name] + layer if name in rows else layer
    parents = {layer.name.rpartition(".")[0] for layer in layers}
    return [
        row
        for row in rows.values()
        if row.parameters
        or row.multiply_adds
        or row.activations
        # A layer that costs nothing but does something, such as a pool.
        or (row.shape and row.name not in parents and row.kind != "Identity")
    ]


class _Pass:
    """One forward pass; what happens in it is put down to the innermost module that is running.

    Args:
        net: any net.
        images: `(N, C, H, W)`.
        total_flops: tells how many there have been so far.

    Attributes:
        shapes: of each module's output, without the batch.
        flops: of each module, two for a multiply-add.
        kept: bytes that autograd keeps: neither parameters, buffers nor the images, and nothing twice.
    """

    def __init__(self, net: nn.Module, images: Tensor, total_flops: Callable[[], int] = int) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.flops, self.kept = Counter[str](), Counter[str]()
        self._total_flops, self._settled, self._running = total_flops, 0, list[str]()
        # By identity, because addresses are all zero on the meta device. Python has one object for a storage as long as
        # that object is held, and no other object gets its id meanwhile.
        storages = [tensor.untyped_storage() for tensor in (images, *net.parameters(), *net.buffers())]
        self._seen = {id(storage): storage for storage in storages}
        handles = [
            handle
            for name, module in net.named_modules()
            for handle in (
                module.register_forward_pre_hook(lambda *_, name=name: self._start(name)),
                module.register_forward_hook(lambda _, __, output, name=name: self._end(name, output)),
            )
        ]
        hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda _: None)
        try:
            with torch.enable_grad(), hooks:
                net(images)
        finally:
            for handle in handles:
                handle.remove()

    def _settle(self) -> None:
        """Puts down to the running module what came since a module last started or ended."""
        total = self._total_flops()
        if self._running:
            self.flops[self._running[-1]] += total - self._settled
        self._settled = total

    def _start(self, name: str) -> None:
        self._settle()
        self._running.append(name)

    def _end(self, name: str, output: object) -> None:
        self._settle()
        self._running.pop()
        if (first := next(_tensors(output), None)) is not None:
            self.shapes[name] = tuple(first.shape[1:])

    def _keep(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if id(storage) not in self._seen:
            self._seen[id(storage)] = storage
            self.kept[self._running[-1]] += storage.nbytes()


def _tensors(value: object) -> Iterator[Tensor]:
    """The tensors in the output of a module: a tensor, or lists, tuples and mappings of them; all else is skipped."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple | Mapping):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(part)
