"""CPU time of the command line until it answers, or has trained one step: python benchmarks/startup.py"""

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

from benchmarks.report import command, make_parser, report, run_interleaved, table

PROJECT = Path(__file__).parent.parent
IMPORTS = "importing torch, torchvision, torchmetrics and LightningCLI"
FIT = ["cli.py", "fit", "--config", "configs/digits.yaml"]
COMMANDS = {
    "Python alone": ["-c", "pass"],
    "`--help`": ["cli.py", "--help"],
    "`fit --config no.yaml`, which is rejected": ["cli.py", "fit", "--config", "no.yaml"],
    IMPORTS: ["-c", "import torch, torchvision, torchmetrics, lightning.pytorch.cli"],
    "`fit --help`": ["cli.py", "fit", "--help"],
    "`fit --config configs/digits.yaml --print_config`": [*FIT, "--print_config"],
    "the same with one step trained, validated and saved": [*FIT, "--trainer.max_steps", "1"],
}
NOTE = """
Medians of {rounds} interleaved rounds, files in the page cache; CPU time includes child processes. Our commands import
with garbage collection disabled, the bare import does not: they can take less time.
"""


def run(words: Sequence[str], folder: str) -> tuple[float, float]:
    """Runs a process; returns its CPU time and its wall time, seconds."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    output = ["--trainer.default_root_dir", folder] if "--trainer.max_steps" in words else []
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run([sys.executable, *words, *output], cwd=PROJECT, env=environment, check=False, **quiet)
    if done.returncode and "no.yaml" not in words:
        raise SystemExit(f"{' '.join(words)}: exit code {done.returncode}")
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, seconds


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and reports."""
    argv = sys.argv[1:] if argv is None else argv
    parser = make_parser(__doc__, rounds=7)
    parser.add_argument("--rows", "--sides", type=int, nargs="+", default=list(range(len(COMMANDS))), help="from 0")
    options = parser.parse_args(argv)
    names = [list(COMMANDS)[number] for number in options.rows]
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            run(COMMANDS[name], folder)  # fills the page cache
        results = run_interleaved({name: partial(run, COMMANDS[name], folder) for name in names}, options.rounds)
    medians = {name: [statistics.median(times) for times in zip(*each, strict=True)] for name, each in results.items()}
    base = medians.get(IMPORTS, [0.0])[0]
    importing = list(COMMANDS)[list(COMMANDS).index(IMPORTS) + 1 :]
    rows = [
        [name, f"{used:.2f}", f"{seconds:.2f}", f"{used - base:+.2f}" if base and name in importing else ""]
        for name, (used, seconds) in medians.items()
    ]
    head = ["Command", "CPU time (s)", "Wall time (s)", "CPU time relative to imports (s)"]
    body = table(head, rows) + "\n" + NOTE.format(rounds=options.rounds).rstrip()
    bare, fit = (medians.get(f"`{words}`", [None])[0] for words in ("--help", "fit --help"))
    measured = {
        "help": None if bare is None else f"{bare:.2f} s",
        "fit help": None if fit is None or not base else f"{fit - base:+.2f} s",
    }
    report("Start-up", command(__file__, argv), body, options.record, measured)


if __name__ == "__main__":
    main()
