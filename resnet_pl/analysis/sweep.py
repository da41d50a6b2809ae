"""Train and test every combination of option values, each in its own process, and compare the runs.

Completed runs are skipped, interrupted runs resume, and a failed run does not stop the sweep. Runs are identified by
their command line: after a change inside a configuration file, use another --name.
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
from resnet_pl.utils import counted, prog_name

PROJECT = Path(__file__).parent.parent.parent


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options of `sweep`."""
    listed = {"action": "append", "type": str, "default": []}
    config = "configuration file; later files override earlier ones, and the grid overrides files"
    parser.add_argument("--config", **listed, help=config)
    grid = (
        "an option of fit and its values, such as model.backbone.depth=20,56; values of the first --grid vary slowest"
    )
    parser.add_argument("--grid", **listed, metavar="KEY=VALUE,…", help=grid)
    parser.add_argument("--name", type=str, default="sweep", help="name of the sweep; runs are in runs/NAME/")
    parser.add_argument("--jobs", type=PositiveInt, default=1, help="number of runs in parallel")
    dry_run = "print one command line per run, for a job scheduler, and exit"
    parser.add_argument("--print", action="store_true", help=dry_run)
    parser.add_argument("options", nargs="*", type=str, help="after --: options of fit for every run")


def run(settings: Namespace) -> int:
    """Runs the command; returns 1 if a run failed or is missing in the table."""
    folder = Path("runs") / settings.name
    sweep_runs = grid_runs(settings.grid, settings.config, settings.options, folder)
    for sweep_run in sweep_runs:
        # Reports a wrong command line before anything starts.
        CommandLine(sweep_run.args)
    states = [(sweep_run, sweep_run.finished_run()) for sweep_run in sweep_runs]
    remaining = [sweep_run for sweep_run, finished in states if finished is None]
    if settings.print:
        for sweep_run in remaining:
            print(" && ".join(f"{prog_name()} {shlex.join(args)}" for args in sweep_run.steps()))
        return 0
    sweep = Sweep(remaining, folder / "logs", settings.jobs)
    for sweep_run, finished in states:
        sweep.record_duration(sweep_run, finished.seconds if finished else None)
    sweep.log(f"$ {settings.command_line}", to_stdout=False)
    skipped = f", {len(sweep_runs) - len(remaining)} already completed" if len(remaining) < len(sweep_runs) else ""
    sweep.log(f"{counted(len(sweep_runs), 'run')}{skipped}, {settings.jobs} in parallel; {sweep.estimate()}")
    failed = sweep.run()
    states = [(sweep_run, sweep_run.finished_run()) for sweep_run in sweep_runs]
    lost = [each.problem() for each, finished in states if finished is None and each.name not in failed]
    notes = [f"Skipped: {problem}" for problem in lost] + ([f"Failed: {', '.join(failed)}"] if failed else [])
    if runs := [finished.path for _, finished in states if finished]:
        compare(runs, folder, notes)
    else:
        print(*notes, sep="\n")
    if failed:
        print(f"{len(failed)} of {len(sweep_runs)} runs failed: {', '.join(failed)}")
        print("Rerun the same command to retry them.")
    return int(bool(failed or lost))


class Sweep:
    """Runs the combinations of a grid in parallel processes and reports the progress.

    Args:
        sweep_runs: the runs to perform.
        logs: folder for sweep.log and the output of each run.
        jobs: number of runs in parallel.
    """

    def __init__(self, sweep_runs: list[SweepRun], logs: Path, jobs: int) -> None:
        self.sweep_runs, self.jobs, self._logs = sweep_runs, jobs, logs
        self._remaining = [sweep_run.group_key for sweep_run in sweep_runs]
        self._durations: dict[str, list[float]] = {}
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock, self._stopping = threading.Lock(), False
        logs.mkdir(parents=True, exist_ok=True)

    def record_duration(self, sweep_run: SweepRun, seconds: float | None) -> None:
        """Records a run's duration for the time estimate; ignores None and NaN."""
        if seconds and seconds > 0:
            self._durations.setdefault(sweep_run.group_key, []).append(seconds)

    def estimate(self) -> str:
        """Returns the number of remaining runs and the estimated time for them, as text."""
        count = len(self._remaining)
        if not count:
            return "0 left"
        if not self._durations:
            return f"{count} left, no time estimate yet"
        known = list(chain(*self._durations.values()))
        total = sum(fmean(self._durations.get(group_key, known)) for group_key in self._remaining)
        return f"{count} left, about {duration(total / min(self.jobs, count))} remaining"

    def run(self) -> list[str]:
        """Performs the runs and returns the names of failed ones; stops all processes if it is interrupted."""
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        with ThreadPoolExecutor(self.jobs) as pool:
            try:
                codes = list(pool.map(self._run, self.sweep_runs))
            except BaseException:
                self._stop(pool)
                print("Interrupted. Rerun the same command to resume.", flush=True)
                raise
            finally:
                signal.signal(signal.SIGTERM, before)
        return [sweep_run.name for sweep_run, code in zip(self.sweep_runs, codes, strict=True) if code]

    def _run(self, sweep_run: SweepRun) -> int:
        """Trains and tests; returns the exit code of the first command that failed, else 0."""
        start, code, steps, log = time.monotonic(), 0, sweep_run.steps(), self._logs / f"{sweep_run.name}.log"
        resumed = steps[0] != sweep_run.args
        self.log(f"{sweep_run.name} {'resumed' if resumed else 'started'}")
        for args in steps:
            code = code or self._process(args, log)
        seconds = time.monotonic() - start
        with self._lock:
            self._remaining.remove(sweep_run.group_key)
            self.record_duration(sweep_run, None if code or resumed else seconds)
            estimate = self.estimate()
        outcome = f"failed: {_failure(log, code)}" if code else f"finished in {duration(seconds)}"
        self.log(f"{sweep_run.name} {outcome}; {estimate}")
        return code

    def log(self, line: str, to_stdout: bool = True) -> None:
        """Appends a line to sweep.log and prints it."""
        with self._lock:
            if self._stopping:
                return
            with (self._logs / "sweep.log").open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")
            if to_stdout:
                print(line, flush=True)

    def _process(self, args: list[str], log: Path) -> int:
        """Runs a command with its output in the log file; returns its exit code."""
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
                # In a new session, so that Ctrl-C reaches only the sweep, which then terminates each process cleanly.
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
        """Terminates all processes after they saved a checkpoint; a second Ctrl-C kills them."""
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
    """Returns a `preexec_fn` that kills the child if the sweep is killed, so that no two processes train one run."""
    # PR_SET_PDEATHSIG. The symbol is looked up here, because little is safe between fork and exec.
    return partial(ctypes.CDLL(None).prctl, 1, int(signal.SIGTERM)) if sys.platform == "linux" else None


def _failure(log: Path, code: int) -> str:
    """The error message of the last command in a log file, and the path of the log."""
    output = log.read_text(encoding="utf-8", errors="replace").rsplit("\n$ ", 1)[-1].splitlines()
    error = next((line.removeprefix("error: ") for line in output if line.startswith("error: ")), f"exit code {code}")
    return f"{error}; see {log}"
