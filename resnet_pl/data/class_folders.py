"""The subfolders of a folder of photos that can be classes or splits: without hidden ones and output of commands."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from resnet_pl.data.image_files import is_image_name
from resnet_pl.utils import UserError

# Files that commands write to the folder of their output.
_OUTPUT = ("sessions.json", "results.json", "results-val.json", "results-val-no-test.json", "predictions.csv")
_SYSTEM_FOLDERS = {"__MACOSX", "@eaDir", "$RECYCLE.BIN"}


def class_folders(folder: Path) -> list[Path]:
    """Returns the sorted subfolders of a folder, without hidden ones and those that hold the output of a command."""
    try:
        folders = sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError as error:
        raise UserError(f"cannot list folder {folder}: {error.strerror}") from error
    ignored = {path for path in folders if path.name.startswith(".") or path.name in _SYSTEM_FOLDERS}
    return [path for path in folders if path not in ignored and not (has_results(path) or _has_runs(path))]


def has_results(folder: Path) -> bool:
    """Returns whether a command wrote its results to this folder."""
    # Without permission: the error is reported when the folder is listed.
    with suppress(PermissionError):
        return any((folder / name).is_file() for name in _OUTPUT)
    return False


def _has_runs(folder: Path, depth: int = 3) -> bool:
    """Whether run folders are below a folder: runs/NAME/version_0; NAME can be two folders."""
    with suppress(PermissionError), os.scandir(folder) as entries:
        subfolders = [Path(entry.path) for entry in entries if _is_visible_folder(entry)]
        return any(_is_run(path) or (depth > 1 and _has_runs(path, depth - 1)) for path in subfolders)
    return False


def _is_visible_folder(entry: os.DirEntry[str]) -> bool:
    with suppress(OSError):  # a link to itself
        return entry.is_dir() and not entry.name.startswith(".")
    return False


def _is_run(folder: Path) -> bool:
    is_version = re.fullmatch(r"version_\d+", folder.name)
    # A new run has no checkpoint yet, and no images.
    return bool(is_version) and (
        (folder / "checkpoints").is_dir() or not any(is_image_name(path.name) for path in folder.iterdir())
    )
