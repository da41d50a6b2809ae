"""Throughput of `fit` with one process and with two, on the CPU: python benchmarks/processes.py"""

from __future__ import annotations

import csv
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.report import PROJECT, command, make_parser, report, run_interleaved, table

BATCH = 128  # of all processes together
NOTE = """
ResNet-20 on random images of 32×32 pixels, one thread per process, {batch} images per step in all. Medians of {rounds}
interleaved rounds of {epochs} epochs with {images:,} images; the first epoch is not counted. With two processes the
gradients are averaged after each step, and both share the caches and the memory bandwidth of the machine.
"""


def images_per_second(processes: int, images: int, epochs: int) -> float:
    """Trains with torchrun and returns the median throughput of the epochs after the first."""
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    words += [
        "cli.py",
        "fit",
        "--data",
        "benchmarks.steps.Noise",
        "--data.count",
        str(images),
        "--data.image_size",
        "32",
    ]
    words += [
        "--data.batch_size",
        str(BATCH // processes),
        "--trainer.max_epochs",
        str(epochs),
        "--trainer.accelerator",
    ]
    words += ["cpu", "--model.backbone", "cifar_resnet", "--dashboard.images", "0", "--dashboard.graph", "false"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [*words, "--trainer.default_root_dir", folder], cwd=PROJECT, env=environment, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)
        with next(Path(folder).rglob("metrics.csv")).open(newline="") as file:
            logged = [row["throughput/images_per_second"] for row in csv.DictReader(file)]
    return statistics.median([float(value) for value in logged if value][1:])


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and reports."""
    argv = sys.argv[1:] if argv is None else argv
    parser = make_parser(__doc__, rounds=3)
    parser.add_argument("--images", type=int, default=6400, help="images per epoch")
    parser.add_argument("--epochs", type=int, default=3, help="epochs, at least two")
    options = parser.parse_args(argv)
    calls = {count: partial(images_per_second, count, options.images, options.epochs) for count in (1, 2)}
    results = run_interleaved(calls, options.rounds)
    one, two = (statistics.median(results[count]) for count in (1, 2))
    rows = [[1, f"{one:,.0f}", "1.00"], [2, f"{two:,.0f}", f"{two / one:.2f}"]]
    note = NOTE.format(batch=BATCH, rounds=options.rounds, epochs=options.epochs, images=options.images)
    body = "\n".join([table(["Processes", "Images/s", "Ratio"], rows), note]).rstrip()
    report("Processes on one CPU", command(__file__, argv), body, options.record)


if __name__ == "__main__":
    main()
