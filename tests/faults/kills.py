"""Training processes killed at random moments: the run that goes on is bitwise the run that was never stopped."""

from __future__ import annotations

import csv
import random
import shutil
import signal
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.conftest import write_photos
from tests.faults.forks import command

CONFIGS = Path(__file__).parents[2] / "configs"
DIGITS = ["--config", CONFIGS / "digits.yaml", "--data.batch_size", 128]
NET = ["--model.backbone", "cifar_resnet", "--model.backbone.depth", 8, "--trainer.max_epochs", 3]
KEPT = ["--trainer.log_every_n_steps", 1, "--name", "killed", "--trainer.default_root_dir", "runs"]
PHOTOS = [
    "--data.image_size",
    16,
    "--data.batch_size",
    4,
    "--data.transforms",
    "[torchvision.transforms.v2.TrivialAugmentWide]",
]
KINDS: dict[str, list[Any]] = {
    "in memory": DIGITS,
    "averaged weights, MixUp": [*DIGITS, "--config", CONFIGS / "recipes" / "ema.yaml", "--data.mix", "MixUp"],
    "warm-up by error": [*DIGITS, "--model.schedule.warmup", 0, "--model.schedule.warmup_error", 0.8],
    "photos": ["--config", CONFIGS / "folder.yaml", "--model.weights", "null", *PHOTOS],
}
SIGNALS = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT]
MOST_KILLS = 5


@dataclass
class Reference:
    """The run that was never stopped."""

    seconds: float
    checkpoint: dict[str, Any]
    best: dict[str, Any]
    metrics: list[dict[str, str]]


def prepare(folder: Path) -> dict[str, Reference]:
    """Trains a reference of each kind; photos are read without workers."""
    found = {}
    for kind in KINDS:
        ended = command(_fit(kind, _photos(folder / kind), 0), folder / kind)
        if ended.code:
            raise SystemExit(ended.err)
        run = folder / kind / "runs/killed/version_0"
        found[kind] = Reference(ended.seconds, _state(run / "checkpoints/last.ckpt"),
                                _state(run / "checkpoints/best.ckpt"), _metrics(run))  # fmt: skip
    return found


def _photos(folder: Path) -> Path:
    return write_photos(folder / "photos", count=14)


def _fit(kind: str, photos: Path, workers: int) -> list[Any]:
    """What trains."""
    where = ["--data.root", photos, "--data.num_workers", workers] if kind == "photos" else []
    return ["fit", *KINDS[kind], *NET, *KEPT, *where]


def trial(references: dict[str, Reference], rng: random.Random, folder: Path) -> dict[str, Any]:
    """Kills a run, and again when it goes on, until it is let to end.

    Returns:
        `kind` and `workers`; `kills`, by signal; `repeated`, the most steps that were made anew after one; `failed`, in
        words or None.
    """
    every, kind, workers = rng.choice([None, 1, 5]), rng.choice(list(KINDS)), rng.choice([0, 2])
    reference = references[kind]
    start = [*_fit(kind, _photos(folder), workers), *(["--checkpoint.every_n_steps", every] if every else [])]
    found: dict[str, Any] = {"every": every, "kind": kind, "workers": workers if kind == "photos" else 0}
    found |= {"kills": Counter(), "repeated": 0, "anew": 0, "failed": None}
    again, longest = True, reference.seconds
    while again:
        run = _run(folder)
        argv = ["fit", "--ckpt_path", "last", "--trainer.default_root_dir", "runs"] if run else start
        again = found["kills"].total() < MOST_KILLS and (not found["kills"] or rng.random() < 0.5)
        kill = (rng.uniform(0, longest), rng.choice(SIGNALS)) if again else None
        ended = command(argv, folder, kill=kill)
        if kill and ended.code not in (0, None):
            found["kills"][kill[1].name] += 1
            again = True
            found["failed"] = _odd(ended, kill[1])
            found["repeated"] = max(found["repeated"], _repeated(folder))
            found["anew"] += _run(folder) is None
        elif ended.code != 0:
            found["failed"] = f"{' '.join(map(str, argv[:3]))}: exit code {ended.code}: {ended.err[-500:]}"
        elif not found["kills"]:
            # It was faster than the reference; another try.
            shutil.rmtree(folder / "runs")
            longest *= 0.8
        else:
            again = False
        if found["failed"]:
            return found
    found["failed"] = _difference(reference, _run(folder))
    found["left"] = len([path for path in folder.rglob(".*") if path.is_file()])
    shutil.rmtree(folder)
    return found


def _run(folder: Path) -> Path | None:
    """The run that has a checkpoint to go on from."""
    runs = [path.parents[1] for path in folder.glob("runs/killed/*/checkpoints/last.ckpt")]
    return runs[0] if len(runs) == 1 else None


def _odd(ended: Any, number: signal.Signals) -> str | None:
    """What is wrong with the way it ended, if anything is."""
    expected = {signal.SIGKILL: [-9], signal.SIGTERM: [-15, 143], signal.SIGINT: [130]}[number]
    if ended.code in expected and "Traceback" not in ended.err:
        return None
    return f"{number.name}: exit code {ended.code}: {ended.err[-500:]}"


def _repeated(folder: Path) -> int:
    """Steps that have been logged and are not in the checkpoint; they are made anew."""
    run = _run(folder)
    if run is None or not (run / "metrics.csv").is_file():
        return 0
    saved = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"]
    logged = [int(row["step"]) + 1 for row in _metrics(run) if row.get("train/loss")]
    return max(0, max(logged, default=0) - saved)


def _state(path: Path) -> dict[str, Any]:
    saved = torch.load(path, weights_only=True)
    kept = ("epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers")
    return {key: saved[key] for key in kept}


def _metrics(run: Path) -> list[dict[str, str]]:
    """The rows, without the columns that tell of the machine."""
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
        lines = [line for line in file if line.endswith("\n")]
    return [{key: value for key, value in row.items() if "second" not in key} for row in csv.DictReader(lines)]


def _difference(reference: Reference, run: Path | None) -> str | None:
    if run is None:
        return "there is not exactly one run that has ended"
    if not _equal(_state(run / "checkpoints/last.ckpt"), reference.checkpoint):
        return "the last checkpoint differs"
    if not _equal(_state(run / "checkpoints/best.ckpt"), reference.best):
        return "the best checkpoint differs"
    metrics = _metrics(run)
    if [row["step"] for row in metrics] != [row["step"] for row in reference.metrics]:
        return f"metrics.csv has the steps {[row['step'] for row in metrics]}"
    return None if metrics == reference.metrics else "metrics.csv differs"


def _equal(one: Any, two: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(_equal(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(_equal, one, two))
    return one == two


def summary(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Figures, as lines of Markdown."""
    kills = sum((Counter(row["kills"]) for row in rows), Counter())
    told = ", ".join(f"{number:,} × {name}" for name, number in sorted(kills.items()))
    every = {row["every"] for row in rows}
    repeated = {each: max(row["repeated"] for row in rows if row["every"] == each) for each in every}
    most = ", ".join(
        f"{steps} (checkpoints {'at the end of epochs' if each is None else f'every {each} steps too'})"
        for each, steps in sorted(repeated.items(), key=lambda item: item[0] or 0)
    )
    told_kinds = Counter(f"{row['kind']}{', 2 workers' * (row['workers'] > 0)}" for row in rows)
    kinds = "; ".join(f"{number:,} × {kind}" for kind, number in sorted(told_kinds.items()))
    failed = sum(row["failed"] is not None for row in rows)
    return [
        f"- Runs: {len(rows):,}, of 24 to 33 steps ({kinds}); kills: {kills.total():,} ({told}); "
        f"{sum(row['anew'] for row in rows)} of them before the first checkpoint, after which the run began anew.",
        "- Runs that ended bitwise equal to the one never stopped, in weights, optimiser, schedule, best checkpoint "
        f"and `metrics.csv`: {len(rows) - failed:,}. Steps and images lost: {'none' if not failed else 'see below'}.",
        f"- Steps made anew after a kill, at most: {most}.",
    ]
