"""Errors a user can cause, progress bars, printing once, and files that are either complete or absent."""

import difflib
import gc
import os
import re
import secrets
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from errno import EISDIR
from functools import partial
from pathlib import Path
from typing import Literal


class UserError(Exception):
    """Something the user can put right.

    The message says what is wrong, where (file, key or value) and the way out, in at most two lines;
    the command line prints it without a traceback and ends with exit code 2.
    """


class DivergenceError(UserError):
    """Training that has gone wrong; its state is not worth keeping."""


def prog_name() -> str:
    """The command line's name, as it was started."""
    started = Path(sys.argv[0])
    if started.stem == "resnet-pl":
        return "resnet-pl"
    return "python -m resnet_pl" if started.parent.name == "resnet_pl" else "python cli.py"


@contextmanager
def progress(
    description: str, total: float | None = None, unit: Literal["items", "bytes"] = "items"
) -> Iterator[Callable[[float], None]]:
    """Shows a bar on stderr while the block runs; silent when stderr is no terminal.

    Args:
        description: the words before the bar.
        total: how many units there are to do; None where that is not known.
        unit: whether the amounts are things or bytes.

    Yields:
        `advance(amount)`, to be called as the work gets done.
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

    done = [DownloadColumn(), TransferSpeedColumn()] if unit == "bytes" else [MofNCompleteColumn()]
    # A file name may hold square brackets, which rich would take for markup.
    columns = [TextColumn("{task.description}", markup=False), BarColumn(), *done, TimeRemainingColumn()]
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total)
        yield lambda amount: bar.advance(task, amount)


def shell_command(args: Sequence[str]) -> str:
    """This command with these arguments, as a shell takes it."""
    return shlex.join([*prog_name().split(), *args])


def run_on_rank_zero(function: Callable[..., object], *args: object) -> None:
    """Calls a function in one process, however many there are."""
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    if rank_zero_only.rank == 0:
        function(*args)


def rank_zero_print(message: str) -> None:
    """Prints a line, once however many processes there are."""
    run_on_rank_zero(partial(print, flush=True), message)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give an empty file beside `path` to write; it takes the place of `path` when the block ends well.

    A reader sees the old file or the new one, never half of one; after an error the old file is untouched.

    Raises:
        UserError: if nothing can be written at `path`.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(EISDIR, "it is a folder")
        partial.touch()
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}. Choose another place.") from error
    try:
        yield partial
        # Without it a power cut can leave the new name with none of the new bytes.
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except Exception as error:
        # A full disk is reported without the file's name.
        error.add_note(str(path))
        raise
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def gc_paused() -> Iterator[None]:
    """For the import of torch: Python does not look for garbage meanwhile, nor later in what the import has made.

    Imports make half a million objects that stay. Python would search the growing heap a thousand times, and once more
    at the end of the process: two of the six seconds of a short command. Worker processes, which begin as copies, share
    the pages that no search touches. If torch is there already, nothing is changed.
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


def similar(word: str, known: Iterable[str], count: int = 1) -> list[str]:
    """The most similar of some names, the best first; none where nothing is similar."""
    return difflib.get_close_matches(word, list(known), n=count)


def shorten_help(text: str) -> str:
    """Help of jsonargparse without markup, and without lists of known subclasses: hundreds of lines for a network."""
    text = re.sub(r",\s+known\s+subclasses:[^)]*\)", lambda found: found[0] if len(found[0]) < 400 else ")", text)
    return re.sub(r":\w+:`~?(?:\w+\.)*(\w+)`|``", r"\1", text)
