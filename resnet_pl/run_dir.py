"""The run folder runs/NAME/version_N: where it is, what is in it, which is the newest."""

from __future__ import annotations

import csv
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from resnet_pl.utils import UserError, atomic_write


def create_run_dir(root: Path, name: str) -> Path:
    """Makes and returns the next version of a run; two processes never get the same one.

    Raises:
        UserError: the folder cannot be written.
    """
    if not name.strip() or Path(name).is_absolute() or ".." in Path(name).parts:
        raise UserError(f"--name: {name!r} cannot name a run\ngive a word, such as --name flowers")
    version = max((number for number, _ in versions(root, name)), default=-1) + 1
    run = root / name / f"version_{version}"
    try:
        # Apart, so that a file or a broken link in place of a parent is not taken for a version that exists.
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
            f"cannot write the run folder {run}: {error.strerror}\nname another with --trainer.default_root_dir"
        ) from error


def versions(root: Path, name: str) -> list[tuple[int, Path]]:
    """The versions of a run in rising order, as (number, folder)."""
    folders = [path for path in (root / name).glob("version_*") if path.name.removeprefix("version_").isdecimal()]
    return sorted((int(path.name.removeprefix("version_")), path) for path in folders)


def run_dir_of(checkpoint: Path) -> Path | None:
    """The run folder that a checkpoint is in, if it is in one."""
    folder = checkpoint.parent if len(checkpoint.parts) > 2 else checkpoint.absolute().parent
    return folder.parent if folder.name == "checkpoints" and (folder.parent / "config.yaml").is_file() else None


def newest_checkpoint(root: Path, name: str | None, which: str) -> Path:
    """The `best` or `last` checkpoint of the newest run that has it, of a name or of any.

    Raises:
        UserError: no run has it, or the newest has a `last` but no `best`; says what was looked for.
    """
    last = _newest(root, name, "last")
    if which == "best" and last is not None and not last.with_name("best.ckpt").is_file():
        raise UserError(
            f"there is no {last.with_name('best.ckpt')}: no images were held out to choose it by, or none seen yet\n"
            "use --ckpt_path last"
        )
    if (found := _newest(root, name, which)) is None:
        looked_for = root / (name or "NAME") / "version_N" / "checkpoints" / f"{which}.ckpt"
        raise UserError(f"there is no {looked_for}\ntrain first, or give the path of a checkpoint with --ckpt_path")
    return found


def find_checkpoint(
    path: str | Path, root: Path = Path("runs"), name: str | None = None, order: Sequence[str] = ("best", "last")
) -> Path:
    """The file behind a path, a run folder, or `best` or `last` of the newest run.

    Args:
        path: what was given.
        root: folder of all runs.
        name: of the runs that `best` and `last` are looked for in; of all if not given.
        order: which checkpoint of a run folder is taken first.

    Raises:
        UserError: there is none.
    """
    if str(path) in ("best", "last"):
        return newest_checkpoint(root, name, str(path))
    for which in order:
        if (inside := Path(path) / "checkpoints" / f"{which}.ckpt").is_file():
            return inside
    if not Path(path).is_file():
        raise UserError(f"there is no checkpoint {path}\ncheckpoints are in runs/NAME/version_N/checkpoints")
    return Path(path)


def _newest(root: Path, name: str | None, which: str) -> Path | None:
    names = [name] if name else sorted(path.name for path in root.glob("*") if path.is_dir())
    paths = [run / "checkpoints" / f"{which}.ckpt" for name in names for _, run in versions(root, name)]
    found = [path for path in paths if path.is_file()]
    if name or not found:
        return found[-1] if found else None
    return max(found, key=lambda path: path.stat().st_mtime)


def job_id() -> str | None:
    """What may start this command anew when it was broken off: torchrun with a job's id, or SLURM."""
    job = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    if job != "none":
        return f"torchrun {job}"
    return f"slurm {os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else None


def find_interrupted_run(root: Path, name: str, command: str) -> Path | None:
    """The last checkpoint of the run that this launch started with this very command, and that has not ended.

    Every process must come to the same answer by itself, so it is read from the run folder and nothing else.
    """
    started_by = job_id() or ""
    # Within one turn of a SLURM job the same command may be meant to start another run.
    anew = started_by.startswith("torchrun") or os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
    for _, run in reversed(versions(root, name)) if started_by and anew else ():
        with suppress(OSError, ValueError, LookupError, TypeError):
            last, sessions = run / "checkpoints" / "last.ckpt", read_sessions(run)
            same = (sessions[-1]["launch"], sessions[-1]["command"]) == (started_by, command)
            if same and "ended" not in sessions[-1] and last.is_file():
                return last
    return None


def write_config(run: Path, config: dict[str, Any]) -> None:
    """Writes config.yaml, which `fit --config` takes as it is."""
    with atomic_write(run / "config.yaml") as partial:
        partial.write_text(to_yaml(config), encoding="utf-8")


class _Dumper(yaml.SafeDumper):
    """Quotes text that other readers of YAML, jsonargparse's among them, take for a number: a class called 1e3."""


def _quoted(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    try:
        float(text.replace("_", ""))
    except ValueError:
        return dumper.represent_str(text)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="'")


_Dumper.add_representer(str, _quoted)


def to_yaml(config: dict[str, Any]) -> str:
    """A configuration as text that every reader of YAML reads alike."""
    return yaml.dump(config, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def get_init_args(section: Any) -> dict[str, Any]:
    """The arguments in a section of a configuration: its `init_args` if it names a class, else the section itself."""
    if not isinstance(section, Mapping):
        return {}
    named = "class_path" in section or "init_args" in section
    return dict((section.get("init_args") or {}) if named else section)


def class_name(section: Any) -> str:
    """The last word of a class path, given as text or as a section that has one; empty where there is none."""
    path = section.get("class_path") if isinstance(section, Mapping) else section
    return path.rsplit(".", 1)[-1] if isinstance(path, str) else ""


def read_sessions(run: Path) -> list[dict[str, Any]]:
    """What each start of a run was like; raises OSError or ValueError where the file is missing or damaged."""
    return json.loads((run / "sessions.json").read_text(encoding="utf-8"))


def write_session(run: Path, facts: dict[str, Any], new: bool = True) -> None:
    """Adds to sessions.json what a start of the run was like, command, commit, versions and machine, or how it ended.

    Args:
        facts: names and values.
        new: whether they are of another start; else they go to the last one's.
    """
    path = run / "sessions.json"
    try:
        sessions = read_sessions(run) if path.is_file() else []
    except ValueError:
        # Damaged; it is kept aside, and no reason to stop a training.
        path.rename(path.with_name("sessions.json.bad"))
        sessions = []
    if new or not sessions:
        sessions.append({})
    sessions[-1] |= facts
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(sessions, indent=2), encoding="utf-8")


def write_splits(run: Path, provenance: dict[str, Any]) -> None:
    """Writes splits.json: root, classes, and the names in each split where no folder says it."""
    with atomic_write(run / "splits.json") as partial:
        # Escapes are the one form that holds file names of any encoding.
        partial.write_text(json.dumps(provenance, indent=1), encoding="utf-8")


def git_commit() -> str | None:
    """The commit of this project's checkout, with `-dirty` where files have changed since; None outside a checkout."""
    folder = Path(__file__).parent.parent
    if not (folder / ".git").exists():
        return None
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def metrics_reader(path: Path) -> csv.DictReader[str]:
    """Reads a metrics.csv, row by row and as text; a torn last line, as an interrupted run leaves it, is left out."""
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        # A number that was cut short looks like a number; only the end of its line tells that it is whole.
        return csv.DictReader([line for line in file if line.endswith("\n")])


def is_complete_row(row: Mapping[str | None, Any]) -> bool:
    """Whether a row of `csv.DictReader` has one cell for each column."""
    return None not in row and None not in row.values()


def read_metrics_before(path: Path, step: float) -> list[dict[str, str]]:
    """The rows of a metrics.csv up to a step, for a run that goes on from there; damaged rows are left out."""
    rows = filter(is_complete_row, metrics_reader(path)) if path.is_file() else ()
    return [row for row in rows if row.get("step", "").isdecimal() and int(row["step"]) < step]
