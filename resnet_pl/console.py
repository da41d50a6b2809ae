"""The one place for progress bars and for a word to the user."""

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Literal


def program() -> str:
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


def command_line(args: Sequence[str]) -> str:
    """This command with these arguments, as a shell takes it."""
    return shlex.join([*program().split(), *args])


def on_rank_zero(function: Callable[..., object], *args: object) -> None:
    """Calls a function in one process, however many there are."""
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    if rank_zero_only.rank == 0:
        function(*args)


def tell(message: str) -> None:
    """Prints a line, once however many processes there are."""
    on_rank_zero(partial(print, flush=True), message)
