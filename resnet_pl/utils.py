"""User errors, progress bars, rank-zero printing and atomic file writes."""

import difflib
import gc
import os
import re
import secrets
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from errno import EISDIR
from functools import partial
from importlib import import_module
from itertools import takewhile
from multiprocessing.pool import ThreadPool
from pathlib import Path
from textwrap import shorten
from types import ModuleType
from typing import Any, Literal

# The packages of each extra in pyproject.toml, for a clone that is not installed.
EXTRAS = {
    "explain": "captum cleanlab",
    "export": "onnx onnxscript onnxruntime safetensors",
    "heif": "pillow-heif",
    "hf": "datasets huggingface_hub",
    "serve": "starlette uvicorn python-multipart",
    "stream": "litdata",
    "tables": "openpyxl pyarrow",
    "tune": "optuna",
}


class UserError(Exception):
    """An error that the user can fix.

    The message has at most two lines: the problem with its place (file, key or value), then the fix. The command line
    prints it without a traceback and exits with code 2.
    """


class DivergenceError(UserError):
    """Training diverged (NaN or infinity); its state must not be saved."""


def prog_name() -> str:
    """Returns the command that started this program: `resnet-pl`, `python -m resnet_pl` or `python cli.py`."""
    program = Path(sys.argv[0])
    if program.stem == "resnet-pl":
        return "resnet-pl"
    # A clone of the project can be called resnet_pl too, with its cli.py.
    in_package = program.parent.name == "resnet_pl" and program.name != "cli.py"
    return "python -m resnet_pl" if in_package else "python cli.py"


@contextmanager
def progress(
    description: str, total: float | None = None, unit: Literal["items", "bytes"] = "items"
) -> Iterator[Callable[[float], None]]:
    """Shows a progress bar on stderr while the block runs; does nothing if stderr is not a terminal.

    Args:
        description: text before the bar.
        total: amount of work; None if it is unknown.
        unit: unit of the amounts.

    Yields:
        `advance(amount)`, to be called with the amount of work done since the last call.
    """
    if not sys.stderr.isatty():
        yield lambda amount: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    amounts = [DownloadColumn(), TransferSpeedColumn()] if unit == "bytes" else [MofNCompleteColumn()]
    # Square brackets in a file name would be markup to rich.
    columns = [TextColumn("{task.description}", markup=False), BarColumn(), *amounts, TimeRemainingColumn()]
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total)
        yield lambda amount: bar.advance(task, amount)


def shell_command(args: Sequence[str]) -> str:
    """Returns this program with these arguments as a line for a shell."""
    return shlex.join([*prog_name().split(), *args])


def run_on_rank_zero(function: Callable[..., object], *args: object) -> None:
    """Calls a function in the process of rank 0 only."""
    from lightning.pytorch.utilities import rank_zero_only

    rank_zero_only(function)(*args)


def rank_zero_print(message: str) -> None:
    """Prints a message in the process of rank 0 only."""
    run_on_rank_zero(partial(print, flush=True), message)


def partial_name(path: Path, ending: str) -> str:
    """Returns the name of a temporary file of `atomic_write`; file systems limit the length of a name."""
    return f".{path.name[:60]}.{ending}"


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Writes a file atomically: yields a temporary file that replaces `path` if the block succeeds.

    A reader sees either the old or the new content. After an error the old file is unchanged.

    Raises:
        UserError: `path` cannot be written.
    """
    partial = path.with_name(partial_name(path, secrets.token_hex(4)))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(EISDIR, "it is a folder")
        partial.touch()
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}\nchoose another place") from error
    try:
        yield partial
        # Without fsync the file can be empty after a power failure.
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except Exception as error:
        # The error of a full disk does not contain the file name.
        error.add_note(str(path))
        raise
    finally:
        partial.unlink(missing_ok=True)


def in_threads(function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """Applies a function to each item, in order, in several threads: a network drive answers many requests at once."""
    with ThreadPool(16) as pool:
        return pool.map(function, items, chunksize=64)


def available_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def require(module: str, extra: str, what: str) -> ModuleType:
    """Imports and returns a module of an optional package.

    Args:
        module: the module, such as `onnxruntime` or `safetensors.torch`.
        extra: the extra of this project that installs the package.
        what: what needs it, such as a command or a file.

    Raises:
        UserError: the package is not installed, or cannot be imported.
    """
    try:
        return import_module(module)
    except ImportError as error:
        from importlib.metadata import PackageNotFoundError, distribution

        package = module.partition(".")[0]
        reason = "" if isinstance(error, ModuleNotFoundError) else f", which cannot be imported: {error}"
        try:
            names = f"'{distribution('resnet_pl').name}[{extra}]'"
        except PackageNotFoundError:  # in a clone: pip would look for a package of this name in its index
            names = EXTRAS[extra]
        raise UserError(f"{what} needs the package {package}{reason}\npip install {names}") from error


def missing_folders(folder: Path) -> list[Path]:
    """Returns the folders that creating a folder would create: it and its parents, as far as they are missing."""
    return list(takewhile(lambda path: not path.exists(), (folder, *folder.parents)))


def remove_empty(folders: Iterable[Path]) -> None:
    """Removes those of the folders that are empty; a folder comes before its parent."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


@contextmanager
def lock(path: Path, what: str, does: str = "downloads") -> Iterator[None]:
    """Locks the file `path` inside the block.

    A process that has to wait prints once that another process `does` `what`.
    """
    from filelock import FileLock, Timeout

    created = missing_folders(path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(path).acquire(blocking=False)
    except Timeout:
        print(f"waiting for another process that {does} {what}", file=sys.stderr)
        held = FileLock(path).acquire(poll_interval=0.2)
    with held:
        try:
            yield
        finally:
            with suppress(OSError):  # Windows cannot remove an open file; filelock does it
                path.unlink()  # before the release: after it, another process may hold the lock
            remove_empty(created)


@contextmanager
def gc_paused() -> Iterator[None]:
    """Pauses garbage collection during the import of torch, and freezes the imported objects.

    The imports create half a million objects that are never freed. Scanning them a thousand times takes two of the six
    seconds of a short command. Forked workers also share the memory pages that no scan modifies. If torch has been
    imported before, nothing is changed.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def counted(number: int, noun: str) -> str:
    """Returns a number with its noun in the singular or plural: "1 epoch", "1,257 images", "2 classes"."""
    ending = "" if number == 1 else "es" if noun.endswith(("s", "tch")) else "s"
    return f"{number:,} {noun}{ending}"


def first_line(error: Exception) -> str:
    """Returns the first line of the message of an exception, at most 200 characters."""
    return shorten(next(iter(str(error).strip().splitlines()), type(error).__name__), 200)


def similar(word: str, known: Iterable[str], count: int = 1) -> list[str]:
    """Returns up to `count` known names that are similar to a word, the most similar first."""
    return difflib.get_close_matches(word, list(known), n=count)


def plain_page(text: str) -> str:
    """Removes class lists and Python's notation of types from a page of help."""
    text = re.sub(r",\s+known\s+subclasses:[^)]*\)", ")", text)
    return re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)


def import_from_working_folder() -> None:
    """Makes classes in the working folder importable, also while jsonargparse works in the folder of a config file."""
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))


def expand_path(path: str) -> str:
    """Returns a path with ~ and $NAME replaced by the home folder and the environment variable.

    A shell does not do this in `--data.root=~/photos`, and never in a YAML file.
    """
    return os.path.expanduser(os.path.expandvars(path))  # noqa: PTH111 - Path would change other text, such as URLs


def expand_values(value: Any) -> Any:
    """Returns the value of a YAML file with `expand_path` applied to all text that can be a path."""
    if isinstance(value, dict):
        return {key: expand_values(item) for key, item in value.items()}
    if isinstance(value, list):
        return [expand_values(item) for item in value]
    # Not ~ alone, which can be a delimiter.
    return expand_path(value) if isinstance(value, str) and ("$" in value or value.startswith("~/")) else value


def expand_words(words: Iterable[str]) -> list[str]:
    """Returns the words of a command line with `expand_path` applied to values that can be paths."""
    pairs = (word.partition("=") if word.startswith("-") else ("", "", word) for word in words)
    return [f"{key}{equals}{expand_values(value)}" for key, equals, value in pairs]


def as_list(value: Any) -> list[Any]:
    """Returns a value, a list of values or None as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
