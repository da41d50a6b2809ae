"""Commands in processes that can be killed: forked from one that has imported torch, so that a start costs nothing."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from resnet_pl.cli.main import main

# Seconds after which the other processes of a training are ended where one has failed, as a launcher does.
GRACE = 90
# Exit code of a process that cannot read this project without root's rights.
UNREADABLE = 77
# Linux's numbers of the rights that let root read and write every file, and of the layout that `capset` is given.
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAPABILITY_VERSION = 1, 2, 0x20080522


@dataclass
class Ended:
    """How a process, or several that are one training, ended.

    Attributes:
        code: exit code, minus the signal's number where one ended it, None where it had to be ended for its time.
        out: what was written to stdout.
        err: what was written to stderr.
        seconds: from start to end.
        codes: exit codes of all processes; `code` is the first one's.
    """

    code: int | None
    out: str
    err: str
    seconds: float
    codes: tuple[int | None, ...] = ()

    @property
    def message(self) -> list[str]:
        """The lines from `error:` on."""
        lines = [line for line in self.err.splitlines() if line.strip()]
        starts = [number for number, line in enumerate(lines) if line.startswith("error: ")]
        return lines[starts[0] :] if starts else []

    def told(self) -> bool:
        """Whether it was refused as it should be: exit code 2 and a line or two."""
        return self.code == 2 and 1 <= len(self.message) <= 2 and "Traceback" not in self.err

    def unexpected(self) -> bool:
        """Whether it ended with an error that is no mistake of the user's, told in two lines."""
        return self.code == 1 and len(self.message) == 2 and "Traceback" not in self.err


def command(
    argv: Sequence[object],
    folder: Path,
    *,
    kill: tuple[float, signal.Signals] | None = None,
    rank: int | None = None,
    seconds: float = 60,
    memory: int | None = None,
    processes: int = 1,
) -> Ended:
    """Runs a command line of ours in forked processes; see `forked`."""
    words = [str(word) for word in argv]
    return forked(
        lambda: main(words), folder, kill=kill, rank=rank, seconds=seconds, memory=memory, processes=processes
    )


def forked(
    work: Callable[[], int],
    folder: Path,
    *,
    kill: tuple[float, signal.Signals] | None = None,
    rank: int | None = None,
    seconds: float = 60,
    memory: int | None = None,
    processes: int = 1,
) -> Ended:
    """Runs work in a forked process, or in several that Lightning takes for the processes of one training.

    Args:
        work: returns the exit code.
        folder: where the processes work, and their output is kept.
        kill: after so many seconds send this signal to all processes, those that read images included.
        rank: the one process that gets the signal instead.
        seconds: of the processor's time, after which a process is ended; a busy machine is no hang.
        memory: bytes of address space a process may take beyond this process's own.
        processes: number of processes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("out", "err"):
        (folder / name).write_bytes(b"")
    start, port = time.perf_counter(), _free_port()
    children: list[int] = []
    for number in range(processes):
        child = os.fork()
        if not child:
            if processes > 1:
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": str(number)}
                rank_zero_only.rank = number
            os._exit(_run(work, folder, seconds, memory, children[0] if children else 0))
        children.append(child)
        os.setpgid(child, children[0])
    statuses = _wait(children, kill, rank, start, seconds * 10)
    found = [os.waitstatus_to_exitcode(status) if status is not None else None for status in statuses]
    codes = tuple(None if code == -signal.SIGXCPU else code for code in found)
    out, err = ((folder / name).read_text(encoding="utf-8", errors="replace") for name in ("out", "err"))
    return Ended(codes[0], out, err, time.perf_counter() - start, codes)


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def with_permissions(work: Callable[[], int]) -> Callable[[], int]:
    """The same work without root's right to read and write every file: permissions then hold for root too.

    Where the project is in a folder that is closed to root as well, the exit code is `UNREADABLE`.
    """

    def limited() -> int:
        if os.geteuid() == 0:
            libc = ctypes.CDLL(None, use_errno=True)
            header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
            # Effective, permitted and inheritable rights, the first 32 and then the others.
            rights = (ctypes.c_uint32 * 6)()
            failed = libc.capget(header, rights)
            for kind in range(3):
                rights[kind] &= ~(1 << CAP_DAC_OVERRIDE | 1 << CAP_DAC_READ_SEARCH)
            if failed or libc.capset(header, rights):
                raise OSError(ctypes.get_errno(), "cannot give up root's rights")
        return work() if os.access(__file__, os.R_OK) else UNREADABLE

    return limited


def _wait(
    children: list[int], kill: tuple[float, signal.Signals] | None, rank: int | None, start: float, patience: float
) -> list[int | None]:
    """The statuses of all processes; None for those that had to be ended for their time."""
    statuses: dict[int, int] = {}
    while len(statuses) < len(children):
        passed = time.perf_counter() - start
        for child in children:
            if child not in statuses:
                done, status = os.waitpid(child, os.WNOHANG)
                statuses |= {child: status} if done else {}
                patience = min(patience, passed + GRACE) if done and status else patience
        if kill and passed >= kill[0] and len(statuses) < len(children):
            if rank is None:
                # Power that fails, Ctrl-C and a scheduler meet its workers too.
                os.killpg(children[0], kill[1])
            elif children[rank] not in statuses:
                os.kill(children[rank], kill[1])
            kill = None
        if passed > patience:
            os.killpg(children[0], signal.SIGKILL)
            failed = bool(statuses)
            for child in children:
                if child not in statuses:
                    _, status = os.waitpid(child, 0)
                    statuses |= {child: status} if failed else {}
            break
        time.sleep(0.002)
    return [statuses.get(child) for child in children]


def _run(work: Callable[[], int], folder: Path, seconds: float, memory: int | None, group: int) -> int:
    """In the child: what a fresh process would have, then the work."""
    code = 1
    try:
        os.setpgid(0, group)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_APPEND), number)
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
