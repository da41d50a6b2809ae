"""Trainings killed at random moments: the resumed run must be bitwise equal to an uninterrupted one."""

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
from tests.faults.forks import ProcessResult, run_command

CONFIGS = Path(__file__).parents[2] / "configs"
DIGITS = ["--config", CONFIGS / "digits.yaml", "--data.batch_size", 128]
MODEL = ["--model.backbone", "cifar_resnet", "--model.backbone.depth", 8, "--trainer.max_epochs", 3]
RUN = ["--trainer.log_every_n_steps", 1, "--name", "killed", "--trainer.default_root_dir", "runs"]
# How long a process waits for one that was killed while they connect.
TOGETHER = ["--trainer.strategy", "DDPStrategy", "--trainer.strategy.timeout", "0:01:00"]
KINDS: dict[str, list[Any]] = {
    "in memory": DIGITS,
    "EMA weights, MixUp": [*DIGITS, "--config", CONFIGS / "recipes" / "ema.yaml", "--data.mix", "MixUp"],
    "warm-up by training error": [
        *["--config", CONFIGS / "digits.yaml", "--data.batch_size", 30, "--model.schedule.warmup", 0],
        *["--trainer.callbacks+=ErrorWarmup", "--trainer.callbacks.error", 0.8],
    ],
    "gradient accumulation, validation within epochs": [
        *DIGITS,
        *["--data.batch_size", 64, "--trainer.accumulate_grad_batches", 2, "--trainer.val_check_interval", 5],
    ],
    "max_steps": [*DIGITS, "--trainer.max_steps", 25, "--trainer.val_check_interval", 4],
    "image files": [
        *["--config", CONFIGS / "folder.yaml", "--model.weights", "null", "--data.image_size", 16],
        *["--data.batch_size", 4, "--data.transforms", "[torchvision.transforms.v2.TrivialAugmentWide]"],
    ],
    "two processes": [*DIGITS, "--data.batch_size", 64, "--trainer.devices", 2, *TOGETHER],
}
# When last.ckpt is saved, in addition to the end of each epoch.
SAVED: dict[str, list[Any]] = {
    "at the end of epochs": [],
    "after every step": ["--checkpoint.every_n_steps", 1],
    "after every 5 steps": ["--checkpoint.every_n_steps", 5],
    "every 60 milliseconds": ["--checkpoint.every_minutes", 0.001],
}
SIGNALS = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT]
MAX_KILLS = 5


@dataclass
class Reference:
    """The uninterrupted run."""

    seconds: float
    checkpoint: dict[str, Any]
    best: dict[str, Any]
    metrics: list[dict[str, str]]


def prepare(folder: Path) -> dict[str, Reference]:
    """Trains the reference run of each kind; it reads image files without workers."""
    references = {}
    for kind in KINDS:
        result = _run_kind(kind, _fit(kind, _photos(folder / kind), 0), folder / kind)
        if result.code:
            raise SystemExit(result.err)
        run = folder / kind / "runs/killed/version_0"
        references[kind] = Reference(result.seconds, _state(run / "checkpoints/last.ckpt"),
                                _state(run / "checkpoints/best.ckpt"), _metrics(run))  # fmt: skip
    return references


def _run_kind(kind: str, argv: Sequence[object], folder: Path, **options: Any) -> ProcessResult:
    return run_command(argv, folder, processes=2 if kind == "two processes" else 1, **options)


def _photos(folder: Path) -> Path:
    return write_photos(folder / "photos", count=14)


def _fit(kind: str, photos: Path, workers: int) -> list[Any]:
    """Arguments of the command line that trains a kind of run."""
    data = ["--data.root", photos, "--data.num_workers", workers] if kind == "image files" else []
    return ["fit", *KINDS[kind], *MODEL, *RUN, *data]


def trial(references: dict[str, Reference], rng: random.Random, folder: Path) -> dict[str, Any]:
    """Kills a run at a random moment, resumes it, and possibly kills it again, until it finishes.

    Returns:
        `kind` and `workers`; `saved`: when last.ckpt was saved; `steps`: length of the run; `kills`: number by signal;
        `repeated`: most steps repeated after a kill; `restarts`: kills before the first checkpoint; `failed`: the
        reason or None.
    """
    saved, kind, workers = rng.choice(list(SAVED)), rng.choice(list(KINDS)), rng.choice([0, 2])
    reference = references[kind]
    start = [*_fit(kind, _photos(folder), workers), *SAVED[saved]]
    row: dict[str, Any] = {"saved": saved, "kind": kind, "workers": workers if kind == "image files" else 0}
    row |= {"steps": reference.checkpoint["global_step"]}
    row |= {"kills": Counter(), "repeated": 0, "restarts": 0, "failed": None}
    again, longest = True, reference.seconds
    while again:
        run = _resumable_run(folder)
        argv = ["fit", "--ckpt_path", "last", "--trainer.default_root_dir", "runs"] if run else start
        again = row["kills"].total() < MAX_KILLS and (not row["kills"] or rng.random() < 0.5)
        kill = (rng.uniform(0, longest), rng.choice(SIGNALS)) if again else None
        rank = rng.choice([None, 0, 1]) if kind == "two processes" else None
        logged = _logged(folder)
        result = _run_kind(kind, argv, folder, kill=kill, rank=rank)
        if kill and None not in result.codes and any(result.codes):
            row["kills"][kill[1].name] += 1
            again = True
            row["failed"] = check_exit_codes(result, kill[1], rank, began=_logged(folder) != logged)
            row["repeated"] = max(row["repeated"], _repeated(folder))
            row["restarts"] += _resumable_run(folder) is None
        elif any(result.codes) or None in result.codes:
            row["failed"] = f"{' '.join(map(str, argv[:3]))}: exit codes {result.codes}: {result.err[-500:]}"
        elif not row["kills"]:
            # It finished before the signal: try again with an earlier one.
            shutil.rmtree(folder / "runs")
            longest *= 0.8
        else:
            again = False
        if row["failed"]:
            return row
    row["failed"] = find_difference(reference, _resumable_run(folder))
    if not row["failed"]:
        shutil.rmtree(folder)
    return row


def _resumable_run(folder: Path) -> Path | None:
    """Returns the run folder that has a checkpoint to resume from."""
    runs = [path.parents[1] for path in folder.glob("runs/killed/*/checkpoints/last.ckpt")]
    return runs[0] if len(runs) == 1 else None


def check_exit_codes(result: ProcessResult, number: signal.Signals, rank: int | None, began: bool) -> str | None:
    """Checks how a killed training ended.

    Args:
        result: of all processes.
        number: the signal.
        rank: the process that received it; None for all.
        began: whether the training has logged a step.

    Returns:
        The problem, or None.
    """
    stopped = [-signal.SIGTERM, 128 + signal.SIGTERM, 128 + signal.SIGINT]
    expected = {signal.SIGKILL: [-signal.SIGKILL], signal.SIGTERM: stopped[:2], signal.SIGINT: stopped[2:]}[number]
    # A process that did not receive the signal stops together with the other, or reports that it is gone.
    others = [1, 2] if number == signal.SIGKILL else [1, 2, *stopped]
    allowed = [expected if rank in (None, at) else others for at in range(len(result.codes))]
    if number == signal.SIGTERM and len(result.codes) > 1 and not began:
        # Before the first step Lightning's own signal handler is active; its collective may collide with another one.
        allowed = [[*codes, -signal.SIGABRT, -signal.SIGKILL] for codes in allowed]
    # The last process may have finished before the signal came.
    unusual = any(code not in [*codes, 0] for code, codes in zip(result.codes, allowed, strict=True))
    if not unusual and "Traceback" not in result.err:
        return None
    target = "" if rank is None else f" to process {rank}"
    return f"{number.name}{target}: exit codes {result.codes}: {result.err[-500:]}"


def _logged(folder: Path) -> list[str]:
    """Contents of all metrics.csv files."""
    return [path.read_text(encoding="utf-8") for path in sorted(folder.glob("runs/killed/*/metrics.csv"))]


def _repeated(folder: Path) -> int:
    """Number of logged steps after the last checkpoint, which the resumed run repeats."""
    run = _resumable_run(folder)
    if run is None or not (run / "metrics.csv").is_file():
        return 0
    saved = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"]
    logged = [int(row["step"]) + 1 for row in _metrics(run) if row.get("train/loss")]
    return max(0, max(logged, default=0) - saved)


def _state(path: Path) -> dict[str, Any]:
    saved = torch.load(path, weights_only=True)
    keys = ("epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers", "callbacks")
    return {key: saved[key] for key in keys}


def _metrics(run: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv, without the columns of times."""
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
        lines = [line for line in file if line.endswith("\n")]
    return [{key: value for key, value in row.items() if "second" not in key} for row in csv.DictReader(lines)]


def find_difference(reference: Reference, run: Path | None) -> str | None:
    """Compares the checkpoints and metrics.csv of a run with the reference; returns the first difference or None."""
    if run is None:
        return "there is not exactly one finished run"
    for name, expected in (("last", reference.checkpoint), ("best", reference.best)):
        if where := first_difference(_state(run / f"checkpoints/{name}.ckpt"), expected):
            return f"the {name} checkpoint differs in {where}"
    metrics = _metrics(run)
    if [row["step"] for row in metrics] != [row["step"] for row in reference.metrics]:
        return f"metrics.csv has the steps {[row['step'] for row in metrics]}"
    if metrics == reference.metrics:
        return None
    row, expected = next(pair for pair in zip(metrics, reference.metrics, strict=True) if pair[0] != pair[1])
    return f"metrics.csv has {row}, not {expected}"


def first_difference(one: Any, two: Any, name: str = "") -> str | None:
    """Path of the first difference between two nested objects; None if they are bitwise equal."""
    if type(one) is not type(two):
        return name
    if isinstance(one, torch.Tensor):
        return None if torch.equal(one, two) else name
    if isinstance(one, list | tuple):
        one, two = dict(enumerate(one)), dict(enumerate(two))
    if not isinstance(one, dict):
        return None if one == two else f"{name}: {one}, not {two}"
    if one.keys() != two.keys():
        return f"{name}: {list(one)}, not {list(two)}"
    differences = (first_difference(one[key], two[key], f"{name}.{key}".lstrip(".")) for key in one)
    return next((each for each in differences if each), None)


def summary(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Lines of Markdown with the figures."""
    kills = sum((Counter(row["kills"]) for row in rows), Counter())
    signals = ", ".join(f"{number:,} × {name}" for name, number in sorted(kills.items()))
    repeated = {name: max((row["repeated"] for row in rows if row["saved"] == name), default=None) for name in SAVED}
    most = ", ".join(f"{steps} (`last.ckpt` saved {name})" for name, steps in repeated.items() if steps is not None)
    counts = Counter(f"{row['kind']}{', 2 workers' * (row['workers'] > 0)}" for row in rows)
    kinds = "; ".join(f"{number:,} × {kind}" for kind, number in sorted(counts.items()))
    failed = sum(row["failed"] is not None for row in rows)
    shortest, longest = min(row["steps"] for row in rows), max(row["steps"] for row in rows)
    return [
        f"- Runs: {len(rows):,}, of {shortest} to {longest} steps ({kinds}). Kills: {kills.total():,} ({signals}); "
        f"{sum(row['restarts'] for row in rows)} of them before the first checkpoint, so that the run started again.",
        "- Runs bitwise equal to the uninterrupted run, in weights, optimizer, schedule, state of the callbacks, best "
        f"checkpoint and `metrics.csv`: {len(rows) - failed:,}. "
        f"Lost steps or images: {'none' if not failed else 'see below'}.",
        f"- Steps repeated after a kill, at most: {most}.",
    ]
