"""The run folder runs/NAME/version_N: creates it, finds its checkpoints, reads and writes its files."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from resnet_pl.utils import UserError, atomic_write, expand_path

# Key of the names of sections and arguments that a configuration lacks, because they were built in Python.
BUILT_IN_PYTHON = "built_in_python"


# The metric that chooses best.ckpt by default.
TOP1 = "val/top1"
MAP = "val/map"  # of images with several classes
# The class of a prediction below the model's confidence threshold.
UNKNOWN = "unknown"


def create_run_dir(root: Path, name: str) -> Path:
    """Creates and returns the folder of the next version of a run; concurrent processes get different ones.

    Raises:
        UserError: the name is not allowed, or the folder cannot be created.
    """
    if not name.strip() or Path(name).is_absolute() or ".." in Path(name).parts:
        raise UserError(f"--name {name!r} is not a valid run name\nuse a relative name, such as --name flowers")
    version = max((number for number, _ in versions(root, name)), default=-1) + 1
    run = root / name / f"version_{version}"
    try:
        # Before the loop: a file in place of a parent raises FileExistsError too.
        run.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                run.mkdir()
                return run
            except FileExistsError:
                version += 1
                run = run.with_name(f"version_{version}")
    except OSError as error:
        raise UserError(
            f"cannot create the run folder {run}: {error.strerror}\nchoose another with --trainer.default_root_dir"
        ) from error


def versions(root: Path, name: str) -> list[tuple[int, Path]]:
    """Returns the versions of a run as (number, folder), in ascending order."""
    folders = [path for path in (root / name).glob("version_*") if path.name.removeprefix("version_").isdecimal()]
    return sorted((int(path.name.removeprefix("version_")), path) for path in folders)


def run_dir_of(checkpoint: Path) -> Path | None:
    """Returns the run folder of a checkpoint; None if the checkpoint is not in a run folder."""
    folder = checkpoint.parent if len(checkpoint.parts) > 2 else checkpoint.absolute().parent
    return folder.parent if folder.name == "checkpoints" and (folder.parent / "config.yaml").is_file() else None


def newest_checkpoint(root: Path, name: str | None, which: str) -> Path:
    """Returns the `best` or `last` checkpoint of the newest run, among those with this name if one is given.

    Raises:
        UserError: no run has this checkpoint, or the newest has a `last` but no `best`.
    """
    last = _newest(root, name, "last")
    if which == "best" and last is not None and not last.with_name("best.ckpt").is_file():
        raise UserError(
            f"checkpoint not found: {last.with_name('best.ckpt')} (no validation yet, or the metric of "
            "--checkpoint.monitor is not logged)\nuse --ckpt_path last"
        )
    if (checkpoint := _newest(root, name, which)) is None:
        pattern = root / (name or "NAME") / "version_N" / "checkpoints" / f"{which}.ckpt"
        # Runs of `sweep` and `cross-validate` are in folders of their own.
        inside = sorted((root / name).glob(f"*/version_*/checkpoints/{which}.ckpt")) if name else []
        hint = "train first, or give the path of a checkpoint: --ckpt_path PATH"
        if inside:
            hint = f"it has several runs: give the path of one, such as --ckpt_path {inside[0]}"
        raise UserError(f"checkpoint not found: {pattern}\n{hint}")
    return checkpoint


def find_checkpoint(
    path: str | Path, root: Path = Path("runs"), name: str | None = None, order: Sequence[str] = ("best", "last")
) -> Path:
    """Returns the checkpoint file for a path, a run folder, or `best` or `last` of the newest run.

    Args:
        path: checkpoint file, run folder, `best` or `last`.
        root: folder of all runs.
        name: name of the runs that `best` and `last` refer to; all runs by default.
        order: checkpoints to look for in a run folder, in order of preference.

    Raises:
        UserError: no checkpoint was found.
    """
    path = expand_path(str(path))
    if path in ("best", "last"):
        return newest_checkpoint(root, name, path)
    for which in order:
        if (inside := Path(path) / "checkpoints" / f"{which}.ckpt").is_file():
            return inside
    if not Path(path).is_file():
        raise UserError(f"checkpoint not found: {path}\ncheckpoints are in runs/NAME/version_N/checkpoints")
    return Path(path)


def _newest(root: Path, name: str | None, which: str) -> Path | None:
    names = [name] if name else sorted(path.name for path in root.glob("*") if path.is_dir())
    paths = [run / "checkpoints" / f"{which}.ckpt" for name in names for _, run in versions(root, name)]
    existing = [path for path in paths if path.is_file()]
    if name or not existing:
        return existing[-1] if existing else None
    return max(existing, key=lambda path: path.stat().st_mtime)


def job_id() -> str | None:
    """Returns the id of the torchrun or SLURM job that may restart this command; None outside a job."""
    job = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    if job != "none":
        return f"torchrun {job}"
    return f"slurm {os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else None


def find_interrupted_run(root: Path, name: str, command: str) -> Path | None:
    """Returns last.ckpt of an unfinished run of the same job and command line, if the job was restarted.

    Every process has to find the same run without communication, so only the run folder is read.
    """
    launched_by = job_id() or ""
    # Without a restart of the SLURM job, the same command starts another run.
    restarted = launched_by.startswith("torchrun") or os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
    for _, run in reversed(versions(root, name)) if launched_by and restarted else ():
        with suppress(OSError, ValueError, LookupError, TypeError):
            last, sessions = run / "checkpoints" / "last.ckpt", read_sessions(run)
            same = (sessions[-1]["launch"], sessions[-1]["command"]) == (launched_by, command)
            if same and "ended" not in sessions[-1] and last.is_file():
                return last
    return None


def write_config(run: Path, config: dict[str, Any]) -> None:
    """Writes config.yaml, which can be passed to `fit --config`."""
    with atomic_write(run / "config.yaml") as partial:
        partial.write_text(to_yaml(config), encoding="utf-8")


class _Dumper(yaml.SafeDumper):
    """Quotes text that some YAML readers, such as jsonargparse's, parse as a number: a class named 1e3."""


def _quoted(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    try:
        float(text.replace("_", ""))
    except ValueError:
        return dumper.represent_str(text)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="'")


_Dumper.add_representer(str, _quoted)
# A member of an enumeration of strings, such as the default of Lightning's Timer, becomes its value.
_Dumper.add_multi_representer(str, lambda dumper, text: _quoted(dumper, str.__str__(text)))
# A number with a range, such as `PositiveInt`, can be the value of an argument of type `int`.
_Dumper.add_multi_representer(int, lambda dumper, number: dumper.represent_int(int(number)))
_Dumper.add_multi_representer(float, lambda dumper, number: dumper.represent_float(float(number)))


def to_yaml(config: dict[str, Any], ascii_only: bool = False) -> str:
    """Returns a configuration as YAML that all readers parse in the same way.

    Args:
        config: the configuration.
        ascii_only: whether other characters are escaped, for readers that expect the encoding of the system.
    """
    return yaml.dump(config, Dumper=_Dumper, sort_keys=False, allow_unicode=not ascii_only)


def get_init_args(section: Any) -> dict[str, Any]:
    """Returns the arguments in a section of a configuration: its `init_args`, or the section if it names no class."""
    if not isinstance(section, Mapping):
        return {}
    has_class = "class_path" in section or "init_args" in section
    return dict((section.get("init_args") or {}) if has_class else section)


def score_sign(monitor: str, mode: str = "auto") -> int:
    """Returns 1 if a larger value of a metric is better, -1 if a smaller one is.

    Args:
        monitor: log key of the metric.
        mode: `max`, `min`, or `auto`: `min` if the name contains "loss" or "error".
    """
    return -1 if mode == "min" or (mode == "auto" and re.search("loss|error", monitor)) else 1


def class_name(section: Any) -> str:
    """Returns the class name of a class path, or of a section with a `class_path`; an empty string without one."""
    path = section.get("class_path") if isinstance(section, Mapping) else section
    return path.rsplit(".", 1)[-1] if isinstance(path, str) else ""


def read_sessions(run: Path) -> list[dict[str, Any]]:
    """Returns the sessions of a run: one entry for each time it was started or resumed.

    Raises:
        OSError: sessions.json is missing.
        ValueError: sessions.json is damaged.
    """
    return json.loads((run / "sessions.json").read_text(encoding="utf-8"))


def write_session(run: Path, facts: dict[str, Any], new: bool = True) -> None:
    """Writes facts about a session of a run to sessions.json: command, commit, versions, machine, or how it ended.

    Args:
        run: run folder.
        facts: keys and values.
        new: whether to add a session; else the facts are added to the last one.
    """
    path = run / "sessions.json"
    try:
        sessions = read_sessions(run) if path.is_file() else []
    except ValueError:
        # A damaged file does not stop the training; it is renamed.
        path.replace(path.with_name("sessions.json.bad"))
        sessions = []
    if new or not sessions:
        sessions.append({})
    sessions[-1] |= facts
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(sessions, indent=2), encoding="utf-8")


def write_splits(run: Path, provenance: dict[str, Any]) -> None:
    """Writes splits.json: root, classes, and the file names of each split that has no folder of its own."""
    with atomic_write(run / "splits.json") as partial:
        # ASCII escapes can represent file names in any encoding.
        partial.write_text(json.dumps(provenance, indent=1), encoding="utf-8")


def metrics_reader(path: Path) -> csv.DictReader[str]:
    """Returns a reader of the rows of a metrics.csv, as text; an incomplete last line is dropped."""
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        # A truncated number looks like a number; only the line end shows that a line is complete.
        return csv.DictReader([line for line in file if line.endswith("\n")])


def is_complete_row(row: Mapping[str | None, Any]) -> bool:
    """Whether a row of `csv.DictReader` has one cell per column."""
    return None not in row and None not in row.values()


def read_metrics_before(path: Path, step: float) -> list[dict[str, str]]:
    """Returns the rows of a metrics.csv before a step, for a run that resumes there; damaged rows are dropped."""
    rows = filter(is_complete_row, metrics_reader(path)) if path.is_file() else ()
    return [row for row in rows if row.get("step", "").isdecimal() and int(row["step"]) < step]
