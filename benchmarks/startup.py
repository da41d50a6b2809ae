"""Processor time until the command line has answered, or has taken its first step: python benchmarks/startup.py"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.report import arguments, command, report, table, take_turns

PROJECT = Path(__file__).parent.parent
IMPORTS = "importing torch, torchvision, torchmetrics and LightningCLI"
FIT = ["cli.py", "fit", "--config", "configs/digits.yaml"]
SIDES = {
    "Python itself": ["-c", "pass"],
    "`--help`": ["cli.py", "--help"],
    "`fit --config no.yaml`, refused": ["cli.py", "fit", "--config", "no.yaml"],
    IMPORTS: ["-c", "import torch, torchvision, torchmetrics, lightning.pytorch.cli"],
    "`fit --help`": ["cli.py", "fit", "--help"],
    "`fit --config configs/digits.yaml --print_config`": [*FIT, "--print_config"],
    "the same until one step is trained, validated and kept": [*FIT, "--trainer.max_steps", "1"],
}
NOTE = """
Medians of {rounds} rounds in which the commands take turns, files in the page cache; processor time is of the process
and its children. Our commands import without Python's search for garbage, the bare import with it: they may take less.
"""


def run(words: Sequence[str], folder: str) -> tuple[float, float]:
    """Seconds of processor time and of the clock that a process takes."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    kept = ["--trainer.default_root_dir", folder] if "--trainer.max_steps" in words else []
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run([sys.executable, *words, *kept], cwd=PROJECT, env=environment, check=False, **quiet)
    if done.returncode and "no.yaml" not in words:
        raise SystemExit(f"{' '.join(words)} ended with {done.returncode}")
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, seconds


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and tells."""
    argv = sys.argv[1:] if argv is None else argv
    parser = arguments(__doc__, rounds=7)
    parser.add_argument("--sides", type=int, nargs="+", default=list(range(len(SIDES))), help="positions, from 0")
    options = parser.parse_args(argv)
    names = [list(SIDES)[number] for number in options.sides]
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            run(SIDES[name], folder)  # brings the files into memory
        turns = take_turns({name: partial(run, SIDES[name], folder) for name in names}, options.rounds)
    medians = {name: [statistics.median(each) for each in zip(*found, strict=True)] for name, found in turns.items()}
    base = medians.get(IMPORTS, [0.0])[0]
    gc_paused = list(SIDES)[list(SIDES).index(IMPORTS) + 1 :]
    rows = [
        [name, f"{used:.2f}", f"{seconds:.2f}", f"{used - base:+.2f}" if base and name in gc_paused else ""]
        for name, (used, seconds) in medians.items()
    ]
    head = ["", "processor time, s", "clock, s", "over the importing, s"]
    told = table(head, rows) + "\n" + NOTE.format(rounds=options.rounds).rstrip()
    bare, fit = (medians.get(f"`{words}`", [None])[0] for words in ("--help", "fit --help"))
    reached = {
        "help": None if bare is None else f"{bare:.2f} s",
        "fit help": None if fit is None or not base else f"{fit - base:+.2f} s",
    }
    report("Start-up", command(__file__, argv), told, options.record, reached)


if __name__ == "__main__":
    main()
