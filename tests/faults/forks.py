"""Commands in processes that can be killed: forked from one that has imported torch, so that a start costs nothing."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from resnet_pl.cli.main import main

NOBODY = 65534


@dataclass
class Ended:
    """How a process ended.

    Attributes:
        code: exit code, minus the signal's number where one ended it, None where it had to be ended for its time.
        err: what it wrote to stderr.
        seconds: from start to end.
    """

    code: int | None
    out: str
    err: str
    seconds: float

    @property
    def message(self) -> list[str]:
        """The lines from `error:` on."""
        lines = [line for line in self.err.splitlines() if line.strip()]
        starts = [number for number, line in enumerate(lines) if line.startswith("error: ")]
        return lines[starts[0] :] if starts else []

    def told(self) -> bool:
        """Whether it was refused as it should be: exit code 2 and a line or two."""
        return self.code == 2 and 1 <= len(self.message) <= 2 and "Traceback" not in self.err


def command(
    argv: Sequence[object],
    folder: Path,
    *,
    kill: tuple[float, signal.Signals] | None = None,
    seconds: float = 60,
    memory: int | None = None,
) -> Ended:
    """Runs a command line of ours in a forked process; see `forked`."""
    words = [str(word) for word in argv]
    return forked(lambda: main(words), folder, kill=kill, seconds=seconds, memory=memory)


def forked(
    work: Callable[[], int],
    folder: Path,
    *,
    kill: tuple[float, signal.Signals] | None = None,
    seconds: float = 60,
    memory: int | None = None,
) -> Ended:
    """Runs work in a forked process.

    Args:
        work: returns the exit code.
        folder: where the process works, and its output is kept.
        kill: after so many seconds send this signal.
        seconds: of the processor's time, after which it is ended; a busy machine is no hang.
        memory: bytes of address space it may take beyond this process's own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("out", "err"):
        (folder / name).write_bytes(b"")
    start = time.perf_counter()
    child = os.fork()
    if not child:
        os._exit(_run(work, folder, seconds, memory))
    os.setpgid(child, child)
    status = _wait(child, kill, start, seconds * 10)
    code = os.waitstatus_to_exitcode(status) if status is not None else None
    out, err = ((folder / name).read_text(encoding="utf-8", errors="replace") for name in ("out", "err"))
    return Ended(None if code == -signal.SIGXCPU else code, out, err, time.perf_counter() - start)


def as_nobody(work: Callable[[], int]) -> Callable[[], int]:
    """The same work as a user without rights, for root may read everything; where we are not root, as we are."""

    def dropped() -> int:
        if not os.getuid():
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        return work()

    return dropped


def _wait(child: int, kill: tuple[float, signal.Signals] | None, start: float, patience: float) -> int | None:
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        passed = time.perf_counter() - start
        if kill and passed >= kill[0]:
            # Power that fails, Ctrl-C and a scheduler meet its workers too.
            os.killpg(child, kill[1])
            kill = None
        if passed > patience:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.002)


def _run(work: Callable[[], int], folder: Path, seconds: float, memory: int | None) -> int:
    """In the child: what a fresh process would have, then the work."""
    code = 1
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout = open(1, "w", encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", errors="replace", closefd=False, buffering=1)  # noqa: SIM115
        spent = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(spent.ru_utime + spent.ru_stime + seconds)
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        if memory:
            size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + memory, resource.RLIM_INFINITY))
        os.chdir(folder)
        code = work()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return code
