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
from tests.faults.forks import Ended, command

CONFIGS = Path(__file__).parents[2] / "configs"
DIGITS = ["--config", CONFIGS / "digits.yaml", "--data.batch_size", 128]
NET = ["--model.backbone", "cifar_resnet", "--model.backbone.depth", 8, "--trainer.max_epochs", 3]
KEPT = ["--trainer.log_every_n_steps", 1, "--name", "killed", "--trainer.default_root_dir", "runs"]
# A process waits so long for one that was killed while they connect.
TOGETHER = ["--trainer.strategy", "DDPStrategy", "--trainer.strategy.timeout", "0:01:00"]
KINDS: dict[str, list[Any]] = {
    "in memory": DIGITS,
    "averaged weights, MixUp": [*DIGITS, "--config", CONFIGS / "recipes" / "ema.yaml", "--data.mix", "MixUp"],
    "warm-up by error": [
        *["--config", CONFIGS / "digits.yaml", "--data.batch_size", 30, "--model.schedule.warmup", 0],
        *["--trainer.callbacks+=ErrorWarmup", "--trainer.callbacks.error", 0.8],
    ],
    "accumulated, validated within epochs": [
        *DIGITS,
        *["--data.batch_size", 64, "--trainer.accumulate_grad_batches", 2, "--trainer.val_check_interval", 5],
    ],
    "length in steps": [*DIGITS, "--trainer.max_steps", 25, "--trainer.val_check_interval", 4],
    "photos": [
        *["--config", CONFIGS / "folder.yaml", "--model.weights", "null", "--data.image_size", 16],
        *["--data.batch_size", 4, "--data.transforms", "[torchvision.transforms.v2.TrivialAugmentWide]"],
    ],
    "two processes": [*DIGITS, "--data.batch_size", 64, "--trainer.devices", 2, *TOGETHER],
}
# When last.ckpt is saved besides the end of each epoch.
SAVED: dict[str, list[Any]] = {
    "at the end of epochs": [],
    "after every step": ["--checkpoint.every_n_steps", 1],
    "after every 5 steps": ["--checkpoint.every_n_steps", 5],
    "every 60 milliseconds": ["--checkpoint.every_minutes", 0.001],
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
        ended = _command(kind, _fit(kind, _photos(folder / kind), 0), folder / kind)
        if ended.code:
            raise SystemExit(ended.err)
        run = folder / kind / "runs/killed/version_0"
        found[kind] = Reference(ended.seconds, _state(run / "checkpoints/last.ckpt"),
                                _state(run / "checkpoints/best.ckpt"), _metrics(run))  # fmt: skip
    return found


def _command(kind: str, argv: Sequence[object], folder: Path, **how: Any) -> Ended:
    return command(argv, folder, processes=2 if kind == "two processes" else 1, **how)


def _photos(folder: Path) -> Path:
    return write_photos(folder / "photos", count=14)


def _fit(kind: str, photos: Path, workers: int) -> list[Any]:
    """What trains."""
    where = ["--data.root", photos, "--data.num_workers", workers] if kind == "photos" else []
    return ["fit", *KINDS[kind], *NET, *KEPT, *where]


def trial(references: dict[str, Reference], rng: random.Random, folder: Path) -> dict[str, Any]:
    """Kills a run, and again when it is resumed, until it is let to end.

    Returns:
        `kind` and `workers`; `saved`: when last.ckpt was saved; `steps`: the run's length; `kills`, by signal;
        `repeated`: the most steps that were made anew after one; `anew`: how often there was no checkpoint yet;
        `failed`, in words or None.
    """
    saved, kind, workers = rng.choice(list(SAVED)), rng.choice(list(KINDS)), rng.choice([0, 2])
    reference = references[kind]
    start = [*_fit(kind, _photos(folder), workers), *SAVED[saved]]
    found: dict[str, Any] = {"saved": saved, "kind": kind, "workers": workers if kind == "photos" else 0}
    found |= {"steps": reference.checkpoint["global_step"]}
    found |= {"kills": Counter(), "repeated": 0, "anew": 0, "failed": None}
    again, longest = True, reference.seconds
    while again:
        run = _run(folder)
        argv = ["fit", "--ckpt_path", "last", "--trainer.default_root_dir", "runs"] if run else start
        again = found["kills"].total() < MOST_KILLS and (not found["kills"] or rng.random() < 0.5)
        kill = (rng.uniform(0, longest), rng.choice(SIGNALS)) if again else None
        rank = rng.choice([None, 0, 1]) if kind == "two processes" else None
        logged = _logged(folder)
        ended = _command(kind, argv, folder, kill=kill, rank=rank)
        if kill and None not in ended.codes and any(ended.codes):
            found["kills"][kill[1].name] += 1
            again = True
            found["failed"] = _odd(ended, kill[1], rank, began=_logged(folder) != logged)
            found["repeated"] = max(found["repeated"], _repeated(folder))
            found["anew"] += _run(folder) is None
        elif any(ended.codes) or None in ended.codes:
            found["failed"] = f"{' '.join(map(str, argv[:3]))}: exit codes {ended.codes}: {ended.err[-500:]}"
        elif not found["kills"]:
            # It was faster than the reference; another try.
            shutil.rmtree(folder / "runs")
            longest *= 0.8
        else:
            again = False
        if found["failed"]:
            return found
    found["failed"] = _difference(reference, _run(folder))
    if not found["failed"]:
        shutil.rmtree(folder)
    return found


def _run(folder: Path) -> Path | None:
    """The run that has a checkpoint to go on from."""
    runs = [path.parents[1] for path in folder.glob("runs/killed/*/checkpoints/last.ckpt")]
    return runs[0] if len(runs) == 1 else None


def _odd(ended: Ended, number: signal.Signals, rank: int | None, began: bool) -> str | None:
    """What is wrong with the way it ended, if anything is; `began` tells whether a step was made."""
    stopped = [-signal.SIGTERM, 128 + signal.SIGTERM, 128 + signal.SIGINT]
    expected = {signal.SIGKILL: [-signal.SIGKILL], signal.SIGTERM: stopped[:2], signal.SIGINT: stopped[2:]}[number]
    # A process that was not sent the signal stops with the other, or says that the other has gone.
    others = [1, 2] if number == signal.SIGKILL else [1, 2, *stopped]
    fitting = [expected if rank in (None, at) else others for at in range(len(ended.codes))]
    if number == signal.SIGTERM and len(ended.codes) > 1 and not began:
        # Until the first step Lightning's own handler is in place, whose collective may meet another one.
        fitting = [[*codes, -signal.SIGABRT, -signal.SIGKILL] for codes in fitting]
    # The last process may have finished before the signal came.
    odd = any(code not in [*codes, 0] for code, codes in zip(ended.codes, fitting, strict=True))
    if not odd and "Traceback" not in ended.err:
        return None
    whom = "" if rank is None else f" to process {rank}"
    return f"{number.name}{whom}: exit codes {ended.codes}: {ended.err[-500:]}"


def _logged(folder: Path) -> list[str]:
    """What is in metrics.csv, of whichever run."""
    return [path.read_text(encoding="utf-8") for path in sorted(folder.glob("runs/killed/*/metrics.csv"))]


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
    kept = ("epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers", "callbacks")
    return {key: saved[key] for key in kept}


def _metrics(run: Path) -> list[dict[str, str]]:
    """The rows, without the columns that tell of the machine."""
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
        lines = [line for line in file if line.endswith("\n")]
    return [{key: value for key, value in row.items() if "second" not in key} for row in csv.DictReader(lines)]


def _difference(reference: Reference, run: Path | None) -> str | None:
    if run is None:
        return "there is not exactly one run that has ended"
    for name, expected in (("last", reference.checkpoint), ("best", reference.best)):
        if where := unlike(_state(run / f"checkpoints/{name}.ckpt"), expected):
            return f"the {name} checkpoint differs in {where}"
    metrics = _metrics(run)
    if [row["step"] for row in metrics] != [row["step"] for row in reference.metrics]:
        return f"metrics.csv has the steps {[row['step'] for row in metrics]}"
    if metrics == reference.metrics:
        return None
    row, expected = next(pair for pair in zip(metrics, reference.metrics, strict=True) if pair[0] != pair[1])
    return f"metrics.csv has {row}, not {expected}"


def unlike(one: Any, two: Any, name: str = "") -> str | None:
    """The first place where two contents differ; None where they are equal to the bit."""
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
    places = (unlike(one[key], two[key], f"{name}.{key}".lstrip(".")) for key in one)
    return next((place for place in places if place), None)


def summary(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Figures, as lines of Markdown."""
    kills = sum((Counter(row["kills"]) for row in rows), Counter())
    told = ", ".join(f"{number:,} × {name}" for name, number in sorted(kills.items()))
    repeated = {name: max((row["repeated"] for row in rows if row["saved"] == name), default=None) for name in SAVED}
    most = ", ".join(f"{steps} (last.ckpt saved {name})" for name, steps in repeated.items() if steps is not None)
    told_kinds = Counter(f"{row['kind']}{', 2 workers' * (row['workers'] > 0)}" for row in rows)
    kinds = "; ".join(f"{number:,} × {kind}" for kind, number in sorted(told_kinds.items()))
    failed = sum(row["failed"] is not None for row in rows)
    shortest, longest = min(row["steps"] for row in rows), max(row["steps"] for row in rows)
    return [
        f"- Runs: {len(rows):,}, of {shortest} to {longest} steps ({kinds}); kills: {kills.total():,} ({told}); "
        f"{sum(row['anew'] for row in rows)} of them before the first checkpoint, after which the run began anew.",
        "- Runs that ended bitwise equal to the one never stopped, in weights, optimizer, schedule, state of the "
        f"callbacks, best checkpoint and `metrics.csv`: {len(rows) - failed:,}. "
        f"Steps and images lost: {'none' if not failed else 'see below'}.",
        f"- Steps made anew after a kill, at most: {most}.",
    ]
