"""Memory and time of a training step by depth, with and without activation checkpointing: python benchmarks/depth.py"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.report import alone, report

MIB = 2**20
NOTE = """
The peak holds parameters, gradients and momentum too, and on a processor what the C library keeps of freed memory."""


def step(name: str, batch: int, size: int = 32, **arguments: Any) -> dict[str, float]:
    """Takes three training steps of a net of ours in this process, in the layout that `fit` has.

    Args:
        name: the net's builder in `resnet_pl.models`.
        batch: images in a step.
        size: their side, pixels.
        arguments: of the builder.

    Returns:
        `peak`: bytes that they took at most, over what there was before; `seconds`: of the fastest.
    """
    import torch
    from torch.nn.functional import cross_entropy

    from resnet_pl import models

    device = "cuda" if torch.cuda.is_available() else "cpu"

    def train(batch: int, name: str = "cifar_resnet", size: int = 32, **arguments: Any) -> float:
        net = getattr(models, name)(**arguments).to(device, memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        images, labels = torch.randn(batch, 3, size, size, device=device), torch.randint(10, (batch,), device=device)
        images = images.contiguous(memory_format=torch.channels_last)
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            optimizer.zero_grad()
            cross_entropy(net(images), labels).backward()
            optimizer.step()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    train(2, depth=8)  # loads what every step needs
    before = _peak(device)
    seconds = train(batch, name, size, **arguments)
    return {"peak": _peak(device) - before, "seconds": seconds}


def _peak(device: str) -> int:
    """The most memory that this process has used so far, bytes."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    # Kibibytes, but on macOS bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def kept(depth: int, checkpointed: bool) -> int:
    """Bytes of activations that `summary` counts for an image."""
    import torch

    from resnet_pl.analysis.complexity import count_costs
    from resnet_pl.models import cifar_resnet

    with torch.device("meta"):
        net = cifar_resnet(depth, checkpoint_activations=checkpointed)
    return sum(layer.activations for layer in count_costs(net, 32))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depths", type=int, nargs="+", default=[20, 56, 110, 1202], help="layers: 6n + 2")
    parser.add_argument("--batch", type=int, default=16, help="images in a step")
    parser.add_argument("--record", action="store_true", help="write the table into docs/benchmarks.md")
    # One measurement, in a process of its own.
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(step(**options.one)))
        raise SystemExit
    measured = {}
    for depth in options.depths:
        for checkpointed in (False, True):
            net = {"name": "cifar_resnet", "depth": depth, "checkpoint_activations": checkpointed}
            measured[depth, checkpointed] = alone(__file__, {"batch": options.batch, **net})
    table = [
        "| layers | activations | peak of a step, MiB | activations as `summary` counts them, MiB | seconds |",
        "|---|---|---|---|---|",
    ]
    for (depth, checkpointed), result in measured.items():
        how = "checkpointed" if checkpointed else "kept"
        computed = kept(depth, checkpointed) * options.batch / MIB
        table.append(f"| {depth} | {how} | {result['peak'] / MIB:,.0f} | {computed:,.0f} | {result['seconds']:.2f} |")
    report(
        f"Depth: a training step of the CIFAR nets, batch {options.batch}",
        ["python benchmarks/depth.py", *(word for word in sys.argv[1:] if word != "--record")],
        "\n".join([*table, NOTE]),
        options.record,
    )
