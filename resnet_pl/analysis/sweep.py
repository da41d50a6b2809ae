"""Train and test every combination of a grid, each in processes of its own, and compare them.

What is done is skipped, what was stopped goes on, and a run that fails stops no other. A run is known by its command
line: after a change inside a configuration file give the sweep another --name.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import fmean

from jsonargparse import ArgumentParser, Namespace

from resnet_pl.analysis.compare import compare
from resnet_pl.analysis.grid import SweepRun, grid_runs
from resnet_pl.command_line import CommandLine
from resnet_pl.reports.run_reader import duration
from resnet_pl.types import PositiveInt
from resnet_pl.utils import prog_name

PROJECT = Path(__file__).parent.parent.parent


def add_arguments(parser: ArgumentParser) -> None:
    """See the package."""
    listed = {"action": "append", "type": str, "default": []}
    parser.add_argument("--config", **listed, help="configuration file; later ones win, and the grid over all")
    key = "option of fit and its values, such as model.backbone.depth=20,56; the first --grid varies slowest"
    parser.add_argument("--grid", **listed, metavar="KEY=VALUE,…", help=key)
    parser.add_argument("--name", type=str, default="sweep", help="the runs are runs/NAME/CELL/version_N")
    parser.add_argument("--jobs", type=PositiveInt, default=1, help="runs at a time")
    shown = "print the command lines, one a run, for a job scheduler; starts nothing"
    parser.add_argument("--print", action="store_true", help=shown)
    parser.add_argument("options", nargs="*", type=str, help="after --: options for every fit")


def run(settings: Namespace) -> int:
    """Runs what is not done yet; 1 if a run failed."""
    folder = Path("runs") / settings.name
    cells = grid_runs(settings.grid, settings.config, settings.options, folder)
    for cell in cells:
        # What is wrong with its command line is told before anything starts.
        CommandLine(cell.args)
    found = [(cell, cell.finished_run()) for cell in cells]
    left = [cell for cell, done in found if done is None]
    if settings.print:
        for cell in left:
            print(" && ".join(f"{prog_name()} {shlex.join(args)}" for args in cell.steps()))
        return 0
    sweep = Sweep(left, folder / "logs", settings.jobs)
    for cell, done in found:
        sweep.record_duration(cell, done.seconds if done else None)
    sweep.log(f"$ {settings.command_line}", shown=False)
    skipped = f", {len(cells) - len(left)} of them done" if len(left) < len(cells) else ""
    sweep.log(f"{len(cells)} runs{skipped}, {settings.jobs} at a time; {sweep.estimate()}")
    failed = sweep.run()
    if runs := [done.path for cell in cells if (done := cell.finished_run())]:
        compare(runs, folder)
    if failed:
        print(f"{len(failed)} of {len(cells)} runs failed: {', '.join(failed)}; the same command tries them again")
    return int(bool(failed))


class Sweep:
    """Runs cells, some at a time, and tells how far it is.

    Args:
        cells: what is to be done.
        logs: folder for what it and the processes say.
        jobs: how many run at a time.
    """

    def __init__(self, cells: list[SweepRun], logs: Path, jobs: int) -> None:
        self.cells, self.jobs, self._logs = cells, jobs, logs
        self._left = [cell.group_key for cell in cells]
        self._durations: dict[str, list[float]] = {}
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock, self._stopping = threading.Lock(), False
        logs.mkdir(parents=True, exist_ok=True)

    def record_duration(self, cell: SweepRun, seconds: float | None) -> None:
        """Keeps how long a cell took, where that tells of others: neither None nor not a number."""
        if seconds and seconds > 0:
            self._durations.setdefault(cell.group_key, []).append(seconds)

    def estimate(self) -> str:
        """How long the rest takes, as far as finished runs tell."""
        if not self._left:
            return "nothing is left to do"
        if not self._durations:
            return f"{len(self._left)} left; the first to finish tells how long it takes"
        known = list(chain(*self._durations.values()))
        seconds = sum(fmean(self._durations.get(group_key, known)) for group_key in self._left) / min(
            self.jobs, len(self._left)
        )
        return f"{len(self._left)} left, about {duration(seconds)} by those that are done"

    def run(self) -> list[str]:
        """Runs the cells; returns the names of those that failed. Leaves no process behind, however it ends."""
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        with ThreadPoolExecutor(self.jobs) as pool:
            try:
                codes = list(pool.map(self._run, self.cells))
            except BaseException:
                self._stop(pool)
                print("stopped; the same command goes on", flush=True)
                raise
            finally:
                signal.signal(signal.SIGTERM, before)
        return [cell.name for cell, code in zip(self.cells, codes, strict=True) if code]

    def _run(self, cell: SweepRun) -> int:
        """Trains and tests; returns the exit code of the first process that failed."""
        start, code, steps, log = time.monotonic(), 0, cell.steps(), self._logs / f"{cell.name}.log"
        resumed = steps[0] != cell.args
        self.log(f"{cell.name} {'goes on' if resumed else 'starts'}")
        for args in steps:
            code = code or self._process(args, log)
        seconds = time.monotonic() - start
        with self._lock:
            self._left.remove(cell.group_key)
            self.record_duration(cell, None if code or resumed else seconds)
            left = self.estimate()
        how = f"failed: {_reason(log, code)}" if code else f"finished in {duration(seconds)}"
        self.log(f"{cell.name} {how}; {left}")
        return code

    def log(self, line: str, shown: bool = True) -> None:
        """Prints a line and keeps it in sweep.log."""
        with self._lock:
            if self._stopping:
                return
            with (self._logs / "sweep.log").open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")
            if shown:
                print(line, flush=True)

    def _process(self, args: list[str], log: Path) -> int:
        """Runs a command line to its end, what it says going to the log; returns its exit code."""
        paths = [str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        if self.jobs > 1:
            env.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self.jobs)))
        with log.open("ab") as file:
            file.write(f"$ {prog_name()} {shlex.join(args)}\n".encode())
            file.flush()
            with self._lock:
                if self._stopping:
                    return 130
                # A session of its own: Ctrl-C reaches the sweep alone, which asks each process to end in good order.
                command = [sys.executable, "-m", "resnet_pl", *args]
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=env,
                    start_new_session=True, preexec_fn=_kill_with_parent(),
                )  # fmt: skip
                self._running.add(process)
            code = process.wait()
        self._running.discard(process)
        return code

    def _stop(self, pool: ThreadPoolExecutor) -> None:
        """Lets every process write its checkpoint and end; a second Ctrl-C kills them."""
        with self._lock:
            self._stopping = True
        try:
            for process in list(self._running):
                process.terminate()
            pool.shutdown(cancel_futures=True)
        except BaseException:
            for process in list(self._running):
                process.kill()
            raise


def _kill_with_parent() -> partial[int] | None:
    """What a new process calls so that the system ends it when the sweep is killed; two must not train one run."""
    # PR_SET_PDEATHSIG; looked up here, as little as possible may happen between fork and exec.
    return partial(ctypes.CDLL(None).prctl, 1, int(signal.SIGTERM)) if sys.platform == "linux" else None


def _reason(log: Path, code: int) -> str:
    """Why the last process failed: its error if it told one, and where all it said is."""
    said = log.read_text(encoding="utf-8", errors="replace").rsplit("\n$ ", 1)[-1].splitlines()
    error = next((line.removeprefix("error: ") for line in said if line.startswith("error: ")), f"exit code {code}")
    return f"{error}; see {log}"
