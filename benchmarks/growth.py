"""Step time and memory by batch and image size, and an epoch by the size of the data: python benchmarks/growth.py"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.depth import MIB, step
from benchmarks.report import alone, arguments, command, report, table, take_turns

NOTE = """
Medians of {rounds} rounds in which the sizes take turns, each in a process of its own; of each the fastest of three
training steps, and the most memory that they took over what there was before. *Linear* is the first line's cost a
pixel; a number below 1 is cheaper than linear. By depth: see *Depth*.
"""
EPOCHS = """
An epoch of ResNet-8 with 16 pixels and batch 64 by `fit` of the command line, medians of {rounds} rounds in which the
sizes take turns.
"""


def grown(name: str, sizes: Sequence[tuple[int, int]], rounds: int, **arguments: Any) -> str:
    """A table of (batch, image size)."""
    ones = {each: {"name": name, "batch": each[0], "size": each[1], **arguments} for each in sizes}
    turns = take_turns({each: partial(alone, __file__, one) for each, one in ones.items()}, rounds)
    medians = {
        each: [statistics.median(found[key] for found in turns[each]) for key in ("seconds", "peak")] for each in sizes
    }
    (batch, size), base = next(iter(medians.items()))
    rows = []
    for (more, side), each in medians.items():
        linear = [value * (more * side**2) / (batch * size**2) for value in base]
        shares = [f"{value / line:.2f}" for value, line in zip(each, linear, strict=True)]
        rows.append([more, side, f"{each[0] * 1e3:,.0f}", f"{each[1] / MIB:,.0f}", *shares])
    return table(["batch", "pixels a side", "ms a step", "peak, MiB", "time, of linear", "memory, of linear"], rows)


def epoch(count: int) -> float:
    """Seconds of a training epoch over so many images, its first step left out and made up for."""
    from benchmarks.steps import Stopwatch, build, fit, unseen_terminal

    data = ["--data", "benchmarks.steps.Noise", "--data.count", str(count), "--data.image_size", "16"]
    net = ["--model.backbone", "cifar_resnet", "--model.backbone.depth", "8", "--trainer.devices", "1"]
    with tempfile.TemporaryDirectory() as folder, unseen_terminal():
        built = build(folder, *data, "--data.batch_size", "64", *net)
        return fit(built, Stopwatch(1, count // 64 - 1)).step * (count // 64)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and tells."""
    argv = sys.argv[1:] if argv is None else argv
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--batches", type=int, nargs="*", default=[16, 32, 64, 128, 256], help="for ResNet-20, 32 px")
    parser.add_argument("--sizes", type=int, nargs="*", default=[64, 96, 128, 160, 224], help="for ResNet-18, batch 8")
    parser.add_argument("--images", type=int, default=3200, help="the smallest data set; others have 2 and 4 times it")
    parser.add_argument("--one", type=json.loads, help="one measurement, which is printed as JSON")
    options = parser.parse_args(argv)
    if options.one:
        print(json.dumps(step(**options.one)))
        return
    parts = []
    if options.batches:
        nets = grown("cifar_resnet", [(batch, 32) for batch in options.batches], options.rounds, depth=20)
        parts += [f"ResNet-20 by batch:\n\n{nets}\n"]
    if options.sizes:
        parts += [f"ResNet-18 by image size:\n\n{grown('resnet18', [(8, s) for s in options.sizes], options.rounds)}"]
    counts = [options.images * factor for factor in (1, 2, 4)]
    turns = take_turns({count: partial(epoch, count) for count in counts}, options.rounds)
    seconds = {count: statistics.median(found) for count, found in turns.items()}
    rows = [[f"{n:,}", f"{s:.2f}", f"{s * counts[0] / (seconds[counts[0]] * n):.2f}"] for n, s in seconds.items()]
    epochs = table(["images", "seconds an epoch", "of linear"], rows)
    parts += [NOTE.format(rounds=options.rounds), epochs, EPOCHS.format(rounds=options.rounds)]
    report("Growth: batch, image size, data", command(__file__, argv), "\n".join(parts).rstrip(), options.record)


if __name__ == "__main__":
    main()
