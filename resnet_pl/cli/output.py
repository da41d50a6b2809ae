"""Output of a command whose reader may go away: the files of a long command must not be lost with its words."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO


class Output:
    """A text stream that discards what follows once its reader has closed it, as `| head` does.

    All other attributes are those of the stream.

    Args:
        stream: the stream.

    Attributes:
        is_closed: whether the reader has closed it.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.is_closed = stream, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Writes text; returns its length."""
        try:
            self.stream.write(text)
        except BrokenPipeError:
            self._discard()
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Writes lines."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flushes the stream."""
        try:
            self.stream.flush()
        except BrokenPipeError:
            self._discard()

    def _discard(self) -> None:
        # What the stream still holds is discarded too: Python would report the same error again at exit.
        self.is_closed = True
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.stream.fileno())
        os.close(null)


@contextmanager
def tolerant_output() -> Iterator[Output]:
    """Replaces stdout and stderr by an `Output` inside the block; yields that of stdout."""
    out, error = Output(sys.stdout), Output(sys.stderr)
    with redirect_stdout(out), redirect_stderr(error):
        yield out
