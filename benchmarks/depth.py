"""Memory and time of a training step by depth, with and without activation checkpointing: python benchmarks/depth.py"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.report import command, make_parser, report, run_in_subprocess, table

MIB = 2**20
NOTE = """
The peak includes parameters, gradients and momentum, and on a CPU the freed memory that the C library still holds.
"""


def train_steps(name: str, batch: int, size: int = 32, **arguments: Any) -> dict[str, float]:
    """Runs three training steps of a network in this process, in the channels-last format that `fit` uses.

    Args:
        name: a function of `resnet_pl.models`.
        batch: images per step.
        size: image size, pixels.
        **arguments: passed to the function.

    Returns:
        `peak`: additional memory that the steps need, bytes; `seconds`: time of the fastest step.
    """
    import torch
    from torch.nn.functional import cross_entropy

    from resnet_pl import models

    device = "cuda" if torch.cuda.is_available() else "cpu"

    def train(batch: int, name: str = "cifar_resnet", size: int = 32, **arguments: Any) -> float:
        model = getattr(models, name)(**arguments).to(device, memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        images, labels = torch.randn(batch, 3, size, size, device=device), torch.randint(10, (batch,), device=device)
        images = images.contiguous(memory_format=torch.channels_last)
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            optimizer.zero_grad()
            cross_entropy(model(images), labels).backward()
            optimizer.step()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    train(2, depth=8)  # loads the libraries that every step needs
    before = _peak_memory(device)
    seconds = train(batch, name, size, **arguments)
    return {"peak": _peak_memory(device) - before, "seconds": seconds}


def _peak_memory(device: str) -> int:
    """Peak memory of this process so far, bytes."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    # Kibibytes on Linux, bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def activation_bytes(depth: int, checkpointed: bool) -> int:
    """Bytes of activations per image, as `summary` counts them."""
    import torch

    from resnet_pl.analysis.complexity import count_costs
    from resnet_pl.models import cifar_resnet

    with torch.device("meta"):
        model = cifar_resnet(depth, checkpoint_activations=checkpointed)
    return sum(layer.activations for layer in count_costs(model, 32))


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and reports."""
    argv = sys.argv[1:] if argv is None else argv
    parser = make_parser(__doc__)
    parser.add_argument("--depths", type=int, nargs="+", default=[20, 56, 110, 1202], help="layers: 6n + 2")
    parser.add_argument("--batch", type=int, default=16, help="images per step")
    parser.add_argument("--one", type=json.loads, help="a single measurement, printed as JSON")
    options = parser.parse_args(argv)
    if options.one:
        print(json.dumps(train_steps(**options.one)))
        return
    rows = []
    for depth in options.depths:
        for checkpointed in (False, True):
            model = {"name": "cifar_resnet", "depth": depth, "checkpoint_activations": checkpointed}
            result = run_in_subprocess(__file__, {"batch": options.batch, **model})
            computed = activation_bytes(depth, checkpointed) * options.batch / MIB
            how = "checkpointed" if checkpointed else "stored"
            rows.append([depth, how, f"{result['peak'] / MIB:,.0f}", f"{computed:,.0f}", f"{result['seconds']:.2f}"])
    head = ["Layers", "Activations", "Peak memory (MiB)", "Activations by `summary` (MiB)", "Time (s)"]
    title = f"Depth: a training step of the CIFAR networks, batch {options.batch}"
    body = table(head, rows) + "\n" + NOTE.rstrip()
    report(title, command(__file__, argv), body, options.record)


if __name__ == "__main__":
    main()
