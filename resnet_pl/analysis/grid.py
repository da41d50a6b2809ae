"""Grid of a sweep: all combinations of option values of `fit`, and the state of their runs."""

from __future__ import annotations

import itertools
import re
import shlex
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from resnet_pl import run_dir as runs
from resnet_pl.reports.run_reader import Run, read_run
from resnet_pl.utils import UserError

# Options that the sweep sets for each run.
RESERVED_OPTIONS = ("--name", "--trainer.default_root_dir", "--ckpt_path", "--config", "-c")


@dataclass(frozen=True)
class SweepRun:
    """One combination of the grid.

    Args:
        name: name of the run, made of the values, for example `cifar_plain-depth20-seed0`.
        group_key: the name without the seed; runs with the same key take about the same time.
        args: command-line arguments of `fit`.
        root: folder of all runs of the sweep.
    """

    name: str
    group_key: str
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

    def finished_run(self) -> Run | None:
        """Returns the run if it was trained and tested, else None."""
        for path in self.started():
            with suppress(UserError):
                return read_run(path)
        return None

    def problem(self) -> str:
        """Returns why there is no finished run, as text."""
        for path in self.started():
            try:
                read_run(path)
            except UserError as error:
                return str(error).splitlines()[0]
        return f"{self.root / self.name} has no run with these options"

    def steps(self) -> list[list[str]]:
        """Returns the arguments of the commands to run: `fit`, which resumes an interrupted run, then `test`."""
        for path in self.started():
            if (last := path / "checkpoints" / "last.ckpt").is_file():
                return [["fit", "--ckpt_path", str(last)], ["test", "--ckpt_path", str(path)]]
        version = max((number for number, _ in runs.versions(self.root, self.name)), default=-1) + 1
        return [self.args, ["test", "--ckpt_path", str(self.root / self.name / f"version_{version}")]]


def grid_runs(grid: list[str], configs: list[str], options: list[str], folder: Path) -> list[SweepRun]:
    """Returns all combinations of a grid; the values of the first key vary slowest.

    Args:
        grid: `KEY=VALUE,VALUE` for each key.
        configs: configuration files of every run.
        options: options of every run.
        folder: folder of the sweep.

    Raises:
        UserError: the grid or an option is invalid.
    """
    if not grid:
        raise UserError("sweep: --grid is required\ngive --grid KEY=VALUE,VALUE, such as --grid seed_everything=0,1,2")
    if own := [word for word in options if word.split("=")[0] in RESERVED_OPTIONS]:
        raise UserError(f"sweep: {own[0]} is not allowed after --: the sweep sets it for each run\nremove it")
    values = dict(map(_key_values, grid))
    if len(values) < len(grid):
        raise UserError(f"sweep: duplicate key in {' '.join(grid)}\ngive all values of a key in one --grid")
    sweep_runs = []
    for chosen in itertools.product(*values.values()):
        pairs = dict(zip(values, chosen, strict=True))
        name = "-".join(_value_slug(*pair) for pair in pairs.items())
        group_key = "-".join(_value_slug(*pair) for pair in pairs.items() if pair[0] != "seed_everything")
        # A class must precede its arguments, so keys with fewer dots come first.
        ordered = sorted(pairs.items(), key=lambda pair: pair[0].count("."))
        files = [word for path in configs for word in ("--config", path)]
        words = [word for key, value in ordered for word in (f"--{key}", value)]
        own = ["--name", name, "--trainer.default_root_dir", str(folder)]
        sweep_runs.append(SweepRun(name, group_key, ["fit", *files, *options, *words, *own], folder))
    names = [sweep_run.name for sweep_run in sweep_runs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"sweep: two runs of the grid have the name {twice[0]}\nremove the duplicate value")
    return sweep_runs


def _key_values(text: str) -> tuple[str, list[str]]:
    key, equals, values = text.partition("=")
    # A comma inside brackets belongs to the value.
    listed = re.split(r",(?![^\[{]*[\]}])", values)
    if not equals or not key or not all(listed):
        raise UserError(
            f"sweep: --grid {text} is not of the form KEY=VALUE,VALUE\nfor example --grid model.backbone.depth=20,56"
        )
    return key.removeprefix("--"), listed


def _value_slug(key: str, value: str) -> str:
    """A value as part of a run name: the name of a class or file, else the last part of the key and the value."""
    last = key.rsplit(".", 1)[-1]
    if last in ("model", "backbone", "data", "config"):
        text = Path(value).stem if last == "config" else runs.class_name(value)
    else:
        text = f"{'seed' if last == 'seed_everything' else last}{value}"
    return re.sub(r"[^\w.+-]+", "_", text).strip("_")
