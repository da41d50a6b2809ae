"""What `doctor` predicts, compared with the run: python benchmarks/doctor.py --flowers FOLDER --cifar FOLDER"""

from __future__ import annotations

import csv
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from benchmarks.report import MeasurementCache, command, git_commit, make_parser, report, run_in_subprocess, table
from resnet_pl.callbacks.resources import peak_memory
from resnet_pl.cli import main as cli

# Options of each run; FLOWERS and CIFAR are folders. The runs are short in epochs, not in batches.
FLOWERS = "--config configs/flowers-scratch.yaml --data.root FLOWERS --data.image_size 64"
RUNS = {
    "digits": "--config configs/digits.yaml",
    "CIFAR-10, ResNet-8, 2 epochs": "--config configs/cifar10.yaml --data.root CIFAR --model.backbone.depth 8"
    " --trainer.max_epochs 2",
    "flowers at 64 × 64 pixels, ResNet-18, 2 epochs": f"{FLOWERS} --trainer.max_epochs 2",
    "the same photos at 96 × 96 pixels, frozen ResNet-18, 2 epochs": "--config configs/folder.yaml --data.root FLOWERS"
    " --config configs/recipes/head-only.yaml --model.weights null --data.image_size 96 --trainer.max_epochs 2",
    "the same at 64 × 64 pixels, ResNet-8, decoded cache, 4 epochs": f"{FLOWERS} --trainer.max_epochs 4"
    " --model.backbone cifar_resnet --model.backbone.depth 8 --data.cache true --data.cache_dir CACHE",
}
NOTE = """
The time is that of `fit` without the start of Python; with the cache it includes the decoding of all images. The memory
is the peak of the main process. Images per second are those of the training, the median of all epochs of the run.
`doctor --seconds {seconds:g}` and `fit` were separate processes, one after the other, with {threads} CPU threads.
"""


def words_of(run: str, folders: dict[str, str]) -> list[str]:
    """Returns the options of a run with its folders."""
    project = Path(__file__).parent.parent
    words = [folders.get(word, word) for word in RUNS[run].split()]
    words = [str(project / word) if word.startswith("configs/") else word for word in words]
    return [*words, "--trainer.accelerator", "cpu"]


def predict(words: Sequence[str], seconds: float) -> dict[str, float]:
    """Returns what `doctor` predicts: seconds, memory in GB, and images per second."""
    page = StringIO()
    with tempfile.TemporaryDirectory() as output, redirect_stdout(page):
        if cli.main(["doctor", *words, "--seconds", str(seconds), "--output", output]):
            raise SystemExit("doctor failed")
    text = page.getvalue()
    print(text, file=sys.stderr)
    hours, minutes, rest = _find(r"^run +(\d+):(\d+):(\d+) =", text)
    (memory,), (speed,) = _find(r"^memory +([\d.]+) GB", text), _find(r"together ([\d,.]+) images/s", text)
    return {"seconds": 3600 * hours + 60 * minutes + rest, "memory": memory, "speed": speed}


def _find(pattern: str, text: str) -> list[float]:
    found = re.search(pattern, text, re.MULTILINE)
    if found is None:
        raise SystemExit(f"doctor printed no {pattern}")
    return [float(each.replace(",", "")) for each in found.groups()]


def measure(words: Sequence[str]) -> dict[str, float]:
    """Returns the same of the run itself."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        with redirect_stdout(sys.stderr):
            if cli.main(["fit", *words, "--trainer.default_root_dir", folder]):
                raise SystemExit("training failed")
        seconds = time.perf_counter() - start
        with next(Path(folder).rglob("metrics.csv")).open(newline="") as file:
            found = [row.get("throughput/images_per_second") for row in csv.DictReader(file)]
    speed = statistics.median(float(each) for each in found if each)
    return {"seconds": seconds, "memory": peak_memory(torch.device("cpu")) / 1e9, "speed": speed}


def one(run: str, folders: dict[str, str], seconds: float | None) -> dict[str, float]:
    """Predicts a run in `seconds`, or measures it without."""
    with tempfile.TemporaryDirectory() as cache:
        words = words_of(run, folders | {"CACHE": cache})
        return measure(words) if seconds is None else predict(words, seconds)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and reports."""
    argv = sys.argv[1:] if argv is None else argv
    parser = make_parser(__doc__)
    parser.add_argument("--flowers", default="data/flower_photos", help="folder of the flower photos")
    parser.add_argument("--cifar", default="data/cifar10", help="folder of CIFAR-10")
    parser.add_argument("--seconds", type=float, default=30, help="`--seconds` of doctor")
    parser.add_argument("--only", nargs="*", default=list(RUNS), choices=RUNS, help="runs to measure")
    parser.add_argument("--state", type=Path, help="file for each measurement; an interrupted benchmark resumes")
    parser.add_argument("--one", type=json.loads, help="a single measurement, printed as JSON")
    options = parser.parse_args(argv)
    if options.one:
        print(json.dumps(one(**options.one)))
        return
    folders = {"FLOWERS": str(Path(options.flowers).resolve()), "CIFAR": str(Path(options.cifar).resolve())}
    cache = MeasurementCache(options.state, f"{options.seconds}, {git_commit()}")
    rows = []
    for run in options.only:
        argument: dict[str, Any] = {"run": run, "folders": folders}
        predicted, measured = (
            cache(f"{name}: {run}", partial(run_in_subprocess, __file__, argument | {"seconds": seconds}))
            for name, seconds in (("doctor", options.seconds), ("fit", None))
        )
        rows.append([run, *(_compare(predicted[key], measured[key], form) for key, form in FORMATS.items())])
    named = {options.flowers: "data/flower_photos", options.cifar: "data/cifar10"}
    report(
        "`doctor`: prediction and run",
        [named.get(word, word) for word in command(__file__, argv)],
        table(["Run", "Time in seconds", "Memory in GB", "Images/s"], rows)
        + "\n"
        + NOTE.format(seconds=options.seconds, threads=torch.get_num_threads()).rstrip(),
        options.record,
    )


FORMATS = {"seconds": ".0f", "memory": ".1f", "speed": ",.0f"}


def _compare(predicted: float, measured: float, form: str) -> str:
    return f"{predicted:{form}} predicted, {measured:{form}} measured ({predicted / measured:.2f})"


if __name__ == "__main__":
    main()
