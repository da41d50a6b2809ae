"""How well, and how fast, `configs/digits.yaml` does with each of five seeds: python benchmarks/digits.py"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.report import report
from resnet_pl.main import main

CONFIG = Path(__file__).parent.parent / "configs" / "digits.yaml"


def measure(seed: int, extra: list[str]) -> tuple[float, float]:
    """Trains and tests with a seed; returns test top-1 and the seconds of training, imports not counted."""
    with tempfile.TemporaryDirectory() as folder:
        where = ["--trainer.default_root_dir", folder, "--name", "digits"]
        start = time.perf_counter()
        if main(["fit", "--config", str(CONFIG), "--seed_everything", str(seed), *where, *extra]):
            raise SystemExit("training failed")
        seconds = time.perf_counter() - start
        run = Path(folder) / "digits" / "version_0"
        if main(["test", "--ckpt_path", str(run / "checkpoints" / "best.ckpt")]):
            raise SystemExit("testing failed")
        return json.loads((run / "results.json").read_text())["top1"], seconds


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, from 0")
    parser.add_argument("--record", action="store_true", help="write the table into docs/benchmarks.md")
    options, extra = parser.parse_known_args()
    rows = [(seed, *measure(seed, extra)) for seed in range(options.seeds)]
    scores = [top1 for _, top1, _ in rows]
    table = [
        "| seed | test top-1 | seconds |",
        "|---|---|---|",
        *(f"| {seed} | {top1:.2%} | {seconds:.1f} |" for seed, top1, seconds in rows),
        f"| mean | {statistics.mean(scores):.2%} ± {statistics.stdev(scores):.2%} | |" if len(scores) > 1 else "",
    ]
    report(
        "Digits: `configs/digits.yaml` with several seeds",
        ["python benchmarks/digits.py", *extra],
        "\n".join(line for line in table if line),
        options.record,
    )
