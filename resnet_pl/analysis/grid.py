"""Runs of a sweep: the combinations of option values of `fit`, and the state of their run folders."""

from __future__ import annotations

import hashlib
import itertools
import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from resnet_pl import run_dir as runs
from resnet_pl._renamed import upgrade_arguments
from resnet_pl.utils import UserError, expand_words

# Options that the sweep sets for each run.
RESERVED_OPTIONS = ("--name", "--trainer.default_root_dir", "--ckpt_path", "--config", "-c")
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
# A range of numbers, which a search takes and a grid does not.
RANGE = rf"(log:)?({_NUMBER}):({_NUMBER})"


@dataclass(frozen=True)
class SweepRun:
    """One combination of option values. Its run folders are found by the command line that started them.

    Args:
        name: name of the run, made of the values, for example `cifar_plain-depth20-seed0`.
        args: command-line arguments of `fit`.
        root: folder of all runs of the sweep.
    """

    name: str
    args: list[str]
    root: Path

    def started(self) -> list[Path]:
        """The run folders that were started with exactly these arguments, newest first."""
        command = f" {shlex.join(self.args)}"
        started = []
        for _, path in reversed(runs.versions(self.root, self.name)):
            with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
                if runs.read_sessions(path)[0]["command"].endswith(command):
                    started.append(path)
        return started

    def trained(self) -> Path | None:
        """Returns the folder of the run if its training has ended, else None."""
        return next((path for path in self.started() if _has(path, "ended")), None)

    def pruned(self) -> bool:
        """Whether a search has stopped the run, because others were better at the same epoch, or its loss diverged."""
        # A later run counts: the user can have corrected an error.
        newest = self.started()[:1]
        return any(_has(path, mark) for path in newest for mark in ("pruned", "diverged"))

    def resumes(self) -> Path | None:
        """Returns the checkpoint that the run resumes from; None if it has to start."""
        checkpoints = (path / "checkpoints" / "last.ckpt" for path in self.started())
        return next((last for last in checkpoints if last.is_file()), None)

    def command(self) -> list[str]:
        """Returns the arguments of the next `fit`, which resumes an interrupted run."""
        last = self.resumes()
        return self.args if last is None else ["fit", "--ckpt_path", str(last)]

    def next_folder(self) -> Path:
        """Returns the run folder that `command` writes to."""
        if last := self.resumes():
            return last.parent.parent
        version = max((number for number, _ in runs.versions(self.root, self.name)), default=-1) + 1
        return self.root / self.name / f"version_{version}"


def record(path: Path, mark: str) -> None:
    """Records in a run folder that the run has `ended`, or was `pruned`, if it is not recorded yet."""
    if (path / "sessions.json").is_file() and not _has(path, mark):
        runs.write_session(path, {mark: datetime.now(UTC).isoformat(timespec="seconds")}, new=False)


def _has(path: Path, mark: str) -> bool:
    with suppress(OSError, ValueError, LookupError):
        return mark in runs.read_sessions(path)[-1]
    return False


def make_run(values: Mapping[str, str], configs: Sequence[str], options: Sequence[str], folder: Path) -> SweepRun:
    """Returns the run with these values of options.

    Args:
        values: value of each option, by key.
        configs: configuration files of every run.
        options: options of every run.
        folder: folder of the sweep.
    """
    name = run_name(values)
    # A class must precede its arguments, so keys with fewer dots come first.
    ordered = sorted(values.items(), key=lambda pair: pair[0].count("."))
    files = [word for path in configs for word in ("--config", path)]
    words: list[str] = []
    for key, value in ordered:  # the parser takes a word such as `-1e-3`, but not `-1`, for an option
        joined = value.startswith("-") and not re.fullmatch(r"-\d+|-\d*\.\d+", value)
        words += [f"--{key}={value}"] if joined else [f"--{key}", value]
    own = ["--name", name, "--trainer.default_root_dir", str(folder)]
    # The run records the words as the command line expands them.
    return SweepRun(name, upgrade_arguments(expand_words(["fit", *files, *options, *words, *own])), folder)


def grid_values(grid: Sequence[str], options: Sequence[str]) -> list[dict[str, str]]:
    """Returns all combinations of a grid; the values of the first key vary slowest.

    Args:
        grid: `KEY=VALUE,VALUE` for each key.
        options: options of every run.

    Raises:
        UserError: the grid or an option is invalid.
    """
    if own := [word for word in options if word.split("=")[0] in RESERVED_OPTIONS]:
        raise UserError(f"sweep: {own[0]} is not allowed after --: the sweep sets it for each run\nremove it")
    values = dict(key_values("grid", text) for text in grid)
    if found := [text for text in grid if any(re.fullmatch(RANGE, value) for value in key_values("grid", text)[1])]:
        hint = "separate values by commas, or use --search"
        raise UserError(f"sweep: --grid {found[0]} has a range; a grid has values\n{hint}")
    if len(values) < len(grid):
        raise UserError(f"sweep: duplicate key in {' '.join(grid)}\ngive all values of a key in one --grid")
    combinations = [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]
    names = [run_name(each) for each in combinations]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"sweep: two runs of the grid have the name {twice[0]}\nremove or rename one of the values")
    return combinations


def key_values(option: str, text: str) -> tuple[str, list[str]]:
    """Splits `KEY=VALUE,VALUE` of an option; raises UserError if a part is missing."""
    key, equals, values = text.partition("=")
    listed = split_values(values)
    if not equals or not key.strip("-") or not all(listed):
        example = "model.backbone.depth=20,56"
        raise UserError(
            f"sweep: --{option} {text} is not of the form KEY=VALUE,VALUE\nfor example --{option} {example}"
        )
    return key.removeprefix("--"), listed


def split_values(text: str) -> list[str]:
    """Splits a text at its commas. A comma inside brackets belongs to a value."""
    listed, depth = [""], 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth <= 0:
            listed.append("")
        else:
            listed[-1] += letter
    return listed


def run_name(values: Mapping[str, Any]) -> str:
    """Returns the name of the run with these values."""
    return "-".join(_value_slug(key, str(value)) for key, value in values.items())


def _value_slug(key: str, value: str) -> str:
    """A value as part of a run name: the name of a class or file, else the last part of the key and the value."""
    last = key.rsplit(".", 1)[-1]
    if last in ("model", "backbone", "data", "config"):
        text = Path(value).stem if last == "config" else runs.class_name(value)
    else:
        text = f"{'seed' if last == 'seed_everything' else last}{value}"
    slug = re.sub(r"[^\w.+-]+", "_", text).strip("_")
    # File names have at most 255 bytes.
    return slug if len(slug) <= 100 else f"{slug[:60]}_{hashlib.sha256(value.encode()).hexdigest()[:8]}"
