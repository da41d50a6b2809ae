"""How well, and how fast, `configs/digits.yaml` does with each of five seeds: python benchmarks/digits.py"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

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
    options, extra = parser.parse_known_args()
    rows = [(seed, *measure(seed, extra)) for seed in range(options.seeds)]
    print(f"\n{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print("seed  test top-1  seconds")
    for seed, top1, seconds in rows:
        print(f"{seed:>4}  {top1:>10.2%}  {seconds:>7.1f}")
