"""Corrupted configuration files and command lines run, or are rejected with a short message; no key is ignored."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader

from resnet_pl.cli import train
from resnet_pl.cli.main import main
from resnet_pl.cli.parser import ProjectCLI
from resnet_pl.run_dir import to_yaml
from tests.conftest import write_photos
from tests.faults.config_mutations import TEXT, TREE, mutate, random_option
from tests.faults.forks import ProcessResult, forked

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
# Configurations whose data exist here; for the others, model and data are created, but not trained.
TRAINED = {"digits.yaml", "folder.yaml"}
# How a command can end, and the column of the table.
OUTCOMES = {
    "ran": "Ran",
    "rejected": "Rejected, 1 or 2 lines",
    "unexpected error": "Unexpected error, 2 lines",
    "long message": "Longer message",
    "traceback": "Traceback",
    "time-out": "Time-out (60 s of CPU time)",
    "killed": "Killed",
    "ignored key": "Ignored key",
}
REAL = 0.06  # fraction of the trials that run in a new process
ONE_STEP = [
    *["--trainer.max_steps", 1, "--trainer.limit_val_batches", 1, "--trainer.default_root_dir", "runs"],
    *["--trainer.accelerator", "cpu"],
]


def prepare(folder: Path) -> Path:
    """Writes the images for configs/folder.yaml."""
    return write_photos(folder / "photos", count=6)


def trial(photos: Path, rng: random.Random, folder: Path) -> dict[str, Any]:
    """Starts a run with a mutated configuration or command line.

    Returns:
        `file`, `kind` and `detail` of the mutation; `outcome`: one of `OUTCOMES`; `failed`: the reason or None;
        `real`: whether it ran in a new process.
    """
    folder.mkdir(parents=True)
    path = rng.choice(FILES)
    kind = rng.choice([*TREE, *TREE, *TEXT, "command-line option", "command-line option"])
    text, detail = mutate(path, photos, kind, rng)
    (folder / "mutated.yaml").write_bytes(text)
    argv = ["fit", "--config", "mutated.yaml", *ONE_STEP]
    words = random_option(rng) if kind == "command-line option" else []
    if words:
        argv, detail = [*argv, *words], " ".join(map(repr, words))
    trained = path.name in TRAINED
    if path.parent.name == "recipes" and not path.name.startswith("cifar10"):
        argv[1:1], trained = _base(path, photos), True
    elif path.name.startswith("imagenet"):
        argv += ["--data.root", photos.resolve()]
    # An argument of a new process cannot contain a zero byte.
    real = rng.random() < REAL and not any("\0" in str(word) for word in argv)
    result = (_process if real else _fork)([str(word) for word in argv], folder, trained)
    outcome = classify(result)
    row = {"file": path.name, "kind": kind, "detail": detail[:300], "outcome": outcome, "failed": None, "real": real}
    if outcome == "ran" and (
        ignored := "the unknown key" if kind == "unknown key" else find_ignored(argv, words, folder)
    ):
        row["outcome"], row["failed"] = "ignored key", f"{path.name}: {detail}: it ignored {ignored}"
    elif outcome not in ("ran", "rejected"):
        message = " ".join(result.message or result.err.splitlines()[-3:])
        row["failed"] = f"{path.name}: {detail[:200]}: {outcome}, exit code {result.code}: {message[:400]}"
    row["message"] = " ".join(result.message)[:300]
    shutil.rmtree(folder)
    return row


def _fork(argv: list[str], folder: Path, trained: bool) -> ProcessResult:
    """Runs a command line in a forked process, without training if the data do not exist."""

    def run(cli: ProjectCLI) -> None:
        Path("resolved.yaml").write_text(to_yaml(cli.plain_config), encoding="utf-8")
        if trained:
            fit(cli)

    def work() -> int:
        train.run = run
        return main(argv)

    fit = train.run
    return forked(work, folder, seconds=60, memory=6 * 2**30)


def _process(argv: list[str], folder: Path, trained: bool) -> ProcessResult:
    """Runs a command line in a new process, with --print_config if the data do not exist."""
    words = [sys.executable, str(CONFIGS.parent / "cli.py"), *argv, *([] if trained else ["--print_config"])]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    for path in folder.rglob("config.yaml") if trained else []:
        path.rename(folder / "resolved.yaml")
    if not trained and not done.returncode:
        (folder / "resolved.yaml").write_text(done.stdout, encoding="utf-8")
    return ProcessResult(done.returncode, done.stdout, done.stderr, 0.0)


def find_ignored(argv: Sequence[object], option: Sequence[str], folder: Path) -> str | None:
    """Finds a given value that is missing in the resolved configuration of a run.

    Args:
        argv: the command line.
        option: words of the option that was added to it.
        folder: folder of mutated.yaml and resolved.yaml.

    Returns:
        Key and value, or None if nothing is missing.
    """
    resolved = yaml.safe_load((folder / "resolved.yaml").read_text(encoding="utf-8"))
    names = [str(word)[2:].partition("=")[0] for word in argv if str(word).startswith("--")]
    line = [name.removesuffix("+").removesuffix(".class_path") for name in names]
    given = get_loader("yaml")((folder / "mutated.yaml").read_text(encoding="utf-8"))
    for path, value in _leaves(given if isinstance(given, dict) else {}):
        # The command line overrides the file.
        if not any(f"{path}.".startswith(f"{key}.") for key in line) and not _holds(resolved, path.split("."), value):
            return f"{path} = {value!r}"
    name, _, value = "=".join(option)[2:].partition("=")
    used = not value or name in ("config", "ckpt_path") or _holds(resolved, name.removesuffix("+").split("."), value)
    return None if used else f"--{name} {value}"


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the name and the value of every leaf of nested mappings; names are those of the options."""
    if not isinstance(tree, dict):
        yield path, tree
        return
    for key, value in tree.items():
        inner = f"{path}.{key}".removesuffix("+").lstrip(".")
        yield from _leaves(value, path if key in ("init_args", "class_path") else inner)


def _holds(resolved: Any, path: Sequence[str], value: Any) -> bool:
    """Whether a configuration has a value at a path, in one of the forms into which the parser converts it."""
    if path:
        holder = resolved if isinstance(resolved, dict) else {}
        inner = holder if path[0] in holder else holder.get("init_args") or {}
        return path[0] in inner and _holds(inner[path[0]], path[1:], value)
    if value == resolved:
        return True
    with suppress(yaml.YAMLError):
        value = yaml.safe_load(value) if isinstance(value, str) else value
    if isinstance(value, dict):
        return all(_holds(resolved, [key for key in keys.split(".") if key], leaf) for keys, leaf in _leaves(value))
    if isinstance(value, str) and isinstance(resolved, dict):
        resolved = resolved.get("class_path")
    if isinstance(value, list) and isinstance(resolved, list):
        # An appended list is at the end of the resolved one.
        pairs = list(zip(value[::-1], resolved[::-1], strict=False))
        leaves = [(own, keys, leaf) for each, own in pairs for keys, leaf in _leaves(each)]
        return len(pairs) == len(value) and all(
            _holds(own, keys.split(".") if keys else [], v) for own, keys, v in leaves
        )
    try:
        return float(value) == float(resolved) or value != value
    except (TypeError, ValueError):
        return resolved == value or f".{resolved}".endswith(f".{value}")


def _base(recipe: Path, photos: Path) -> list[object]:
    """Options of the base configuration for a recipe."""
    text = recipe.read_text(encoding="utf-8")
    if "crop:" not in text and "transforms:" not in text:
        return ["--config", CONFIGS / "digits.yaml", "--model.backbone.depth", 8]
    model = ["--model.backbone", "cifar_resnet", "--model.backbone.depth", 8, "--model.weights", "null"]
    data = ["--data.root", photos.resolve(), "--data.image_size", 16, "--data.num_workers", 0, "--data.batch_size", 4]
    return ["--config", CONFIGS / "folder.yaml", *model, *data]


def classify(result: ProcessResult) -> str:
    """Returns one of `OUTCOMES`."""
    if result.code == 0 or result.rejected():
        return "ran" if result.code == 0 else "rejected"
    if result.code is None:
        return "time-out"
    if result.unexpected_error():
        return "unexpected error"
    return "traceback" if "Traceback" in result.err else "killed" if result.code < 0 else "long message"


def summary(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Lines of Markdown with the figures."""
    lines = [f"| Mutation | Trials | {' | '.join(OUTCOMES.values())} |", "| --- " * (len(OUTCOMES) + 2) + "|"]
    for kind in [*TREE, *TEXT, "command-line option"]:
        outcomes = Counter(row["outcome"] for row in rows if row["kind"] == kind)
        lines.append(f"| {kind} | {outcomes.total():,} | {' | '.join(f'{outcomes[name]:,}' for name in OUTCOMES)} |")
    return [
        *lines,
        "",
        f"{sum(row['real'] for row in rows):,} of the trials ran in a new process, the others in a forked one.",
    ]
