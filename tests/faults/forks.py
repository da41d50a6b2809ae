"""Commands in processes that can be killed; they are forked after torch is imported, so that they start quickly."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from resnet_pl.cli.main import main

# Seconds after which the other processes of a training are killed when one has failed, as a launcher does.
GRACE_SECONDS = 90
# Exit code of a process that cannot read this project without root's privileges.
UNREADABLE = 77
# Linux constants: the capabilities that let root access every file, and the version of the structure for `capset`.
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAPABILITY_VERSION = 1, 2, 0x20080522


@dataclass
class ProcessResult:
    """Result of a process, or of the processes of one training.

    Attributes:
        code: exit code, the negative signal number after a signal, None after a time-out.
        out: stdout.
        err: stderr.
        seconds: wall time.
        codes: exit codes of all processes; `code` is that of the first.
    """

    code: int | None
    out: str
    err: str
    seconds: float
    codes: tuple[int | None, ...] = ()

    @property
    def message(self) -> list[str]:
        """The lines of the error message: those from `error:` on, without Python warnings of worker processes."""
        text = re.sub(r"^.*\.py:\d+: \w+Warning: .*\n(?:  .*\n)?", "", self.err, flags=re.MULTILINE)
        lines = [line for line in text.splitlines() if line.strip()]
        starts = [number for number, line in enumerate(lines) if line.startswith("error: ")]
        return lines[starts[0] :] if starts else []

    def rejected(self) -> bool:
        """Whether it ended with exit code 2 and a message of at most two lines, as for a user's mistake."""
        return self.code == 2 and 1 <= len(self.message) <= 2 and "Traceback" not in self.err

    def unexpected_error(self) -> bool:
        """Whether it ended with exit code 1 and a message of two lines, as for an unexpected error."""
        return self.code == 1 and len(self.message) == 2 and "Traceback" not in self.err


def run_command(
    argv: Sequence[object],
    folder: Path,
    *,
    kill: tuple[float, signal.Signals] | None = None,
    rank: int | None = None,
    seconds: float = 60,
    memory: int | None = None,
    processes: int = 1,
) -> ProcessResult:
    """Runs a command line of this project in forked processes; for the arguments see `forked`."""
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
) -> ProcessResult:
    """Calls a function in a forked process, or in several processes that form one distributed training.

    Args:
        work: returns the exit code.
        folder: working directory; the output is saved there, too.
        kill: seconds, and the signal that all processes receive after them, data loader workers included.
        rank: the only process that receives the signal; None for all.
        seconds: time-out of a process in CPU time, so that a busy machine does not matter.
        memory: bytes of address space that a process may use in addition to those of this process.
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
    ended = [os.waitstatus_to_exitcode(status) if status is not None else None for status in statuses]
    codes = tuple(None if code == -signal.SIGXCPU else code for code in ended)
    out, err = ((folder / name).read_text(encoding="utf-8", errors="replace") for name in ("out", "err"))
    return ProcessResult(codes[0], out, err, time.perf_counter() - start, codes)


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def without_root_privileges(work: Callable[[], int]) -> Callable[[], int]:
    """Wraps a function so that file permissions apply to it, even if root runs the tests.

    The exit code is `UNREADABLE` if the project or its packages are then not readable.
    """

    def restricted() -> int:
        if os.geteuid() == 0:
            libc = ctypes.CDLL(None, use_errno=True)
            header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
            # Effective, permitted and inheritable capabilities: the first 32, then the others.
            capabilities = (ctypes.c_uint32 * 6)()
            failed = libc.capget(header, capabilities)
            for kind in range(3):
                capabilities[kind] &= ~(1 << CAP_DAC_OVERRIDE | 1 << CAP_DAC_READ_SEARCH)
            if failed or libc.capset(header, capabilities):
                raise OSError(ctypes.get_errno(), "cannot drop root's capabilities")
        readable = all(os.access(path, os.R_OK) for path in (__file__, os.__file__, np.__file__))
        return work() if readable else UNREADABLE

    return restricted


def _wait(
    children: list[int], kill: tuple[float, signal.Signals] | None, rank: int | None, start: float, timeout: float
) -> list[int | None]:
    """Waits for all processes; returns their statuses, None for those that were killed after a time-out."""
    statuses: dict[int, int] = {}
    while len(statuses) < len(children):
        passed = time.perf_counter() - start
        for child in children:
            if child not in statuses:
                done, status = os.waitpid(child, os.WNOHANG)
                statuses |= {child: status} if done else {}
                timeout = min(timeout, passed + GRACE_SECONDS) if done and status else timeout
        if kill and passed >= kill[0] and len(statuses) < len(children):
            if rank is None:
                # Ctrl-C and a scheduler signal the workers, too.
                os.killpg(children[0], kill[1])
            elif children[rank] not in statuses:
                os.kill(children[rank], kill[1])
            kill = None
        if passed > timeout:
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
    """In the child process: restores the state of a new process, then calls the function."""
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
