"""Step time and memory by batch and image size, epoch time by data set size: python benchmarks/growth.py"""

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

from benchmarks.depth import MIB, train_steps
from benchmarks.report import command, make_parser, report, run_in_subprocess, run_interleaved, table

NOTE = """
Medians of {rounds} interleaved rounds, each measurement in its own process: the fastest of three training steps, and
the peak additional memory. *Vs linear* is relative to a cost that is proportional to the number of pixels, starting
from the first row; below 1 is cheaper. For the scaling with depth see *Depth*.
"""
EPOCHS_NOTE = """
An epoch of ResNet-8 by `fit` on the command line, 16×16 pixels, batch 64; medians of {rounds} interleaved rounds.
"""


def scaling_table(name: str, sizes: Sequence[tuple[int, int]], rounds: int, **arguments: Any) -> str:
    """Measures a network for each (batch size, image size); returns a Markdown table."""
    settings = {each: {"name": name, "batch": each[0], "size": each[1], **arguments} for each in sizes}
    variants = {each: partial(run_in_subprocess, __file__, setting) for each, setting in settings.items()}
    results = run_interleaved(variants, rounds)
    medians = {
        each: [statistics.median(result[key] for result in results[each]) for key in ("seconds", "peak")]
        for each in sizes
    }
    (first_batch, first_size), base = next(iter(medians.items()))
    rows = []
    for (batch, size), each in medians.items():
        linear = [value * (batch * size**2) / (first_batch * first_size**2) for value in base]
        ratios = [f"{value / expected:.2f}" for value, expected in zip(each, linear, strict=True)]
        rows.append([batch, size, f"{each[0] * 1e3:,.0f}", f"{each[1] / MIB:,.0f}", *ratios])
    head = ["Batch size", "Image size (px)", "ms/step", "Peak memory (MiB)", "Time vs linear", "Memory vs linear"]
    return table(head, rows)


def epoch_seconds(count: int) -> float:
    """Seconds of a training epoch over `count` images, computed from its steps without the first."""
    from benchmarks.steps import Stopwatch, build_fit, hidden_terminal, run_fit

    data = ["--data", "benchmarks.steps.Noise", "--data.count", str(count), "--data.image_size", "16"]
    model = ["--model.backbone", "cifar_resnet", "--model.backbone.depth", "8", "--trainer.devices", "1"]
    with tempfile.TemporaryDirectory() as folder, hidden_terminal():
        cli = build_fit(folder, *data, "--data.batch_size", "64", *model)
        return run_fit(cli, Stopwatch(1, count // 64 - 1)).step * (count // 64)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and reports."""
    argv = sys.argv[1:] if argv is None else argv
    parser = make_parser(__doc__, rounds=3)
    parser.add_argument("--batches", type=int, nargs="*", default=[16, 32, 64, 128, 256], help="for ResNet-20, 32×32")
    parser.add_argument("--sizes", type=int, nargs="*", default=[64, 96, 128, 160, 224], help="for ResNet-18, batch 8")
    parser.add_argument(
        "--images", type=int, default=3200, help="smallest data set; the others are 2 and 4 times as large"
    )
    parser.add_argument("--one", type=json.loads, help="a single measurement, printed as JSON")
    options = parser.parse_args(argv)
    if options.one:
        print(json.dumps(train_steps(**options.one)))
        return
    parts = []
    if options.batches:
        batches = scaling_table("cifar_resnet", [(batch, 32) for batch in options.batches], options.rounds, depth=20)
        parts += [f"ResNet-20 by batch size:\n\n{batches}\n"]
    if options.sizes:
        sizes = scaling_table("resnet18", [(8, size) for size in options.sizes], options.rounds)
        parts += [f"ResNet-18 by image size:\n\n{sizes}"]
    counts = [options.images * factor for factor in (1, 2, 4)]
    results = run_interleaved({count: partial(epoch_seconds, count) for count in counts}, options.rounds)
    seconds = {count: statistics.median(each) for count, each in results.items()}
    rows = [[f"{n:,}", f"{s:.2f}", f"{s * counts[0] / (seconds[counts[0]] * n):.2f}"] for n, s in seconds.items()]
    epochs = table(["Images", "Seconds per epoch", "Time vs linear"], rows)
    parts += [NOTE.format(rounds=options.rounds), epochs, EPOCHS_NOTE.format(rounds=options.rounds)]
    report(
        "Scaling: batch size, image size, data set size",
        command(__file__, argv),
        "\n".join(parts).rstrip(),
        options.record,
    )


if __name__ == "__main__":
    main()
