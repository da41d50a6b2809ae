"""Tasks that several processes share, also on several machines: whoever locks the log file of a task performs it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from resnet_pl.analysis.grid import SweepRun, record
from resnet_pl.utils import UserError


class Task:
    """Runs that are trained one after the other, with one log file.

    Args:
        name: name of the task and of its log file.
        runs: the runs.

    Attributes:
        pruned: whether `should_stop` has stopped the task, or its loss has diverged in a search.
    """

    def __init__(self, name: str, runs: list[SweepRun]) -> None:
        self.name, self.runs, self.pruned = name, runs, False

    def done(self) -> bool:
        """Whether nothing remains to do."""
        return next(self.commands(), None) is None

    def commands(self) -> Iterator[list[str]]:
        """Yields the arguments of each remaining command; the next one is asked for only after a success."""
        for run in self.runs:
            if run.trained() is None:
                folder = run.next_folder()
                yield run.command()
                # A run that was interrupted after its last step has nothing left to train, and does not record its end.
                record(folder, "ended")

    def should_stop(self) -> bool:
        """Whether the running process is to be stopped; called about once per second."""
        return False


class TaskList:
    """A list of tasks, in order.

    Args:
        tasks: the tasks.
        logs: folder of the log files.

    Attributes:
        left: number of tasks that are not finished.
    """

    def __init__(self, tasks: Iterable[Task], logs: Path) -> None:
        self._open, self._logs = [task for task in tasks if not task.done()], logs
        self.left = len(self._open)

    def claim(self) -> tuple[Task, IO[bytes]] | None:
        """Returns the first task that no other process works on, and its locked log file; None if there is none."""
        for task in [*self._open]:
            if log := lock_log(self._logs, task.name):
                self._open.remove(task)
                if not task.done():
                    return task, log
                log.close()  # another process has finished it
                self.left -= 1
        return None

    def finish(self, task: Task, code: int) -> None:
        """Records that a task has ended, with the exit code of its last command."""
        self.left -= 1


def lock_log(logs: Path, name: str, block: bool = False) -> IO[bytes] | None:
    """Opens and locks the log file of a task, for appending; returns None if another process has locked it.

    The lock belongs to the open file. A process that writes to it holds the lock too, until all of them have closed the
    file or ended, also by a signal. A task whose log is not locked therefore has no process, on any machine.

    Args:
        logs: folder of the log files.
        name: name of the task.
        block: whether to wait for the lock.

    Raises:
        UserError: the file system has no locks.
    """
    logs.mkdir(parents=True, exist_ok=True)
    file = (logs / f"{name}.log").open("ab")
    if sys.platform == "win32":
        return file
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if block else fcntl.LOCK_NB))
    except BlockingIOError:
        file.close()
        return None
    except OSError as error:
        file.close()
        raise UserError(
            f"{file.name} cannot be locked: {error.strerror}\nwork in a folder on a local disk or NFS"
        ) from error
    return file


def is_locked(logs: Path, name: str) -> bool:
    """Whether a process works on a task."""
    if log := lock_log(logs, name):
        log.close()
    return log is None
