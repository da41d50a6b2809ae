"""Performs tasks in parallel processes, with one GPU each."""

from __future__ import annotations

import ctypes
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import IO, TYPE_CHECKING

from resnet_pl.analysis.tasks import Task, TaskList
from resnet_pl.reports.run_reader import duration
from resnet_pl.utils import available_cores, prog_name

if TYPE_CHECKING:
    from resnet_pl.analysis.search import Search

PROJECT = Path(__file__).parent.parent.parent
POLL_SECONDS = 1.0


def visible_gpus() -> list[str]:
    """Returns the GPUs as in CUDA_VISIBLE_DEVICES, which limits them if it is set."""
    if (given := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [gpu.strip() for gpu in given.split(",") if gpu.strip() not in ("", "-1")]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def environment(job: int, jobs: int, gpus: list[str]) -> dict[str, str]:
    """Returns the environment variables of one of several parallel jobs: its GPU, and its part of the cores.

    Args:
        job: number of the job, from 0.
        jobs: number of jobs in parallel.
        gpus: the GPUs; with fewer than jobs, several jobs share one.
    """
    threads = {"OMP_NUM_THREADS": str(max(1, available_cores() // jobs))} if jobs > 1 else {}
    gpu = {"CUDA_VISIBLE_DEVICES": gpus[job % len(gpus)]} if jobs > 1 and gpus else {}
    paths = [str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**threads, **os.environ, **gpu, "PYTHONPATH": os.pathsep.join(paths)}


class Jobs:
    """Performs tasks in parallel processes and reports the progress.

    Args:
        logs: folder for sweep.log and the output of each task.
        count: number of processes in parallel.
        command: this command line, for sweep.log.
    """

    def __init__(self, logs: Path, count: int, command: str) -> None:
        self.logs, self.count = logs, count
        self.seconds: list[float] = []  # duration of the finished tasks, for the estimate
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock, self._claiming, self._stopping = threading.Lock(), threading.Lock(), False
        self._gpus = visible_gpus() if count > 1 else []
        logs.mkdir(parents=True, exist_ok=True)
        self.log(f"$ {command}", to_stdout=False)

    def _estimate(self, left: int) -> str:
        """The number of remaining tasks and, after the first one, the estimated time for them, as text."""
        if not left or not self.seconds:
            return f"{left} left"
        return f"{left} left, about {duration(fmean(self.seconds) * left / min(self.count, left))} remaining"

    def run(self, source: TaskList | Search) -> list[str]:
        """Performs the tasks and returns the names of failed ones; stops all processes if it is interrupted."""
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        failed: list[str] = []
        with ThreadPoolExecutor(self.count) as pool:
            try:
                futures = [pool.submit(self._work, source, job, failed) for job in range(self.count)]
                for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                    future.result()
            except BaseException as error:
                self._stop(pool)
                if not isinstance(error, Exception):
                    print("Interrupted. Rerun the same command to resume.", flush=True)
                if isinstance(error, KeyboardInterrupt):
                    sys.exit(130)  # otherwise the command would say a second time that it was interrupted
                raise
            finally:
                signal.signal(signal.SIGTERM, before)
        return failed

    def _work(self, source: TaskList | Search, job: int, failed: list[str]) -> None:
        """Performs tasks until there are no more."""
        while not self._stopping:
            with self._claiming:
                claimed = source.claim()
            if claimed is None:
                return
            task, log = claimed
            with log:  # closing it releases the lock
                code = self._perform(task, log, job, source)
            if code and not task.pruned:
                failed.append(task.name)

    def _perform(self, task: Task, log: IO[bytes], job: int, source: TaskList | Search) -> int:
        """Runs the commands of a task; returns the exit code of the first one that failed, else 0."""
        start, code, how = time.monotonic(), 0, ""
        for args in task.commands():
            if not how:
                how = "test started" if args[0] == "test" else "resumed" if "--ckpt_path" in args else "started"
                self.log(f"{task.name} {how}")
            if code := self._process(task, args, log, job):
                break
        if self._stopping:
            return code
        stopped = task.pruned
        with self._claiming:
            source.finish(task, code)
        seconds = time.monotonic() - start
        self.seconds += [seconds] if how == "started" and not code else []
        outcome = f"failed: {_failure(Path(log.name), code)}" if code else f"finished in {duration(seconds)}"
        if task.pruned:
            outcome = "pruned" if stopped else f"pruned, {outcome}"
        if how:
            self.log(f"{task.name} {outcome}; {self._estimate(source.left)}")
        return code

    def log(self, line: str, to_stdout: bool = True) -> None:
        """Appends a line to sweep.log and prints it."""
        with self._lock:
            if self._stopping:
                return
            with (self.logs / "sweep.log").open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")
            if to_stdout:
                print(line, flush=True)

    def _process(self, task: Task, args: list[str], log: IO[bytes], job: int) -> int:
        """Runs a command with its output in the log file; returns its exit code."""
        log.write(f"$ {prog_name()} {shlex.join(args)}\n".encode())
        log.flush()
        with self._lock:
            if self._stopping:
                return 130
            # In a new session, so that Ctrl-C reaches only this process, which then terminates each job cleanly.
            process = subprocess.Popen(
                [sys.executable, "-m", "resnet_pl", *args], stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, env=environment(job, self.count, self._gpus),
                start_new_session=True, preexec_fn=_end_with_parent(),
            )  # fmt: skip
            self._running.add(process)
        code = _watch(process, task)
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


def _watch(process: subprocess.Popen[bytes], task: Task) -> int:
    """Waits for a process, stops it if the task asks for it, and returns its exit code."""
    pause = POLL_SECONDS
    while True:
        with suppress(subprocess.TimeoutExpired):
            return process.wait(pause)
        start = time.monotonic()
        if task.should_stop():
            process.terminate()
            code = process.wait()
            task.pruned = code != 0
            return code
        # Reading the metrics of a long run takes at most a twentieth of the time.
        pause = max(POLL_SECONDS, 20 * (time.monotonic() - start))


def _end_with_parent() -> partial[int] | None:
    """Returns a `preexec_fn` that terminates the child if this process is killed."""
    # PR_SET_PDEATHSIG. The symbol is looked up here, because little is safe between fork and exec.
    return partial(ctypes.CDLL(None).prctl, 1, int(signal.SIGTERM)) if sys.platform == "linux" else None


def _failure(log: Path, code: int) -> str:
    """The error message of the last command in a log file, and the path of the log."""
    output = log.read_text(encoding="utf-8", errors="replace").rsplit("\n$ ", 1)[-1].splitlines()
    error = next((line.removeprefix("error: ") for line in output if line.startswith("error: ")), f"exit code {code}")
    return f"{error}; see {log}"


def print_failed(failed: list[str], total: int) -> None:
    """Prints the names of failed tasks."""
    if failed:
        print(f"{len(failed)} of {total} failed: {', '.join(failed)}")
        print("Rerun the same command to retry them.")
