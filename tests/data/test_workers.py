"""Worker processes: what they outlast, and when they end."""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from resnet_pl.data import workers
from resnet_pl.data.workers import BatchReader

PROJECT = Path(__file__).parents[2]
PLAN = [[(epoch, index) for index in range(start, start + 2)] for epoch in (0, 1) for start in (0, 2, 4, 6)]
PROGRAM = """
import multiprocessing, os, signal, sys, weakref
# Registered before torch's and multiprocessing's own functions for the exit, and thus called after them.
weakref.finalize(sys, int)
from tests.data.test_workers import PLAN, Keys, BatchReader
batches = BatchReader(Keys(), 2, False, list).read(PLAN)
reader = BatchReader(Keys(), 2, False, list)
batches = [batches, reader.read(PLAN)]
print([next(each) for each in batches], *[worker.pid for worker in multiprocessing.active_children()], sep="\\n")
sys.stdout.flush()
"""


class Keys:
    """A data set whose samples are their keys, but for one that cannot be read."""

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, int]:
        if key == (2, 0):
            raise KeyError(key)
        return key


def started(count: int = 2) -> tuple[BatchReader, Any, list[BaseProcess]]:
    """A reader in the middle of its plan, and its worker processes."""
    before = multiprocessing.active_children()
    reader = BatchReader(Keys(), count, False, list)
    batches = reader.read(PLAN)
    assert next(batches) == PLAN[0]
    return reader, batches, [worker for worker in multiprocessing.active_children() if worker not in before]


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def test_the_same_workers_read_every_plan() -> None:
    reader, batches, processes = started()
    assert list(batches) == PLAN[1:]
    assert [list(reader.read(PLAN[start:])) for start in (0, 3, 8)] == [PLAN, PLAN[3:], []]
    # Left in the middle, they begin the next plan cleanly.
    next(reader.read(PLAN[2:]))
    assert list(reader.read(PLAN)) == PLAN
    assert len(processes) == 2 and all(map(BaseProcess.is_alive, processes))
    assert list(BatchReader(Keys(), 0, False, list).read(PLAN)) == PLAN


def test_workers_outlast_a_ctrl_c_and_the_end_of_a_job_but_not_their_parents_word() -> None:
    reader, _, (worker,) = started(1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
        sender = multiprocessing.get_context("fork").Process(target=os.kill, args=(worker.pid, number))
        sender.start()
        sender.join()
        assert list(reader.read(PLAN)) == PLAN
    os.kill(worker.pid, signal.SIGTERM)
    worker.join(30)
    assert worker.exitcode == 0


def test_a_worker_that_has_just_begun_outlasts_them_too(monkeypatch: pytest.MonkeyPatch) -> None:
    ignore = workers._ignore_signals

    def at_once(worker: int) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        ignore(worker)

    monkeypatch.setattr(workers, "_ignore_signals", at_once)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    _, batches, _ = started()
    assert list(batches) == PLAN[1:]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_batches_are_enough_to_keep_the_workers() -> None:
    assert list(BatchReader(Keys(), 1, False, list).read(PLAN)) == PLAN


@pytest.mark.parametrize("case", ["dropped", "in a cycle", "in a cycle with an error"])
def test_workers_end_with_their_reader(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # torch terminates the workers that have not ended after five seconds.
    terminated: list[BaseProcess] = []
    terminate = BaseProcess.terminate
    monkeypatch.setattr(BaseProcess, "terminate", lambda self: (terminated.append(self), terminate(self)))
    reader, batches, processes = started()
    cycle: dict[str, Any] = {"reader": reader, "batches": batches}
    if "error" in case:
        try:
            list(reader.read([[(2, 0)]]))
        except KeyError as error:
            cycle["error"] = error
        assert "error" in cycle
    if "cycle" in case:
        cycle["self"] = cycle
    del reader, batches, cycle
    gc.collect()
    assert [worker.exitcode for worker in processes] == [0, 0] and not terminated


def test_workers_end_with_a_process_that_is_not_the_main_one() -> None:
    def train() -> None:
        reader, batches, processes = started()
        # As in the arguments of a process that a Trainer starts: nothing frees it before the end.
        gc.callbacks.append(lambda *_: (reader, batches))
        told.send([worker.pid for worker in processes])

    context = multiprocessing.get_context("fork")
    heard, told = context.Pipe(duplex=False)
    process = context.Process(target=train)
    process.start()
    pids = heard.recv()
    process.join(60)
    assert process.exitcode == 0
    assert len(pids) == 2 and not any(map(is_running, pids))


@pytest.mark.process
@pytest.mark.parametrize(
    ("end", "code"),
    [("", 0), ("list(batches[1])\nlist(reader.read([[(2, 0)]]))", 1), ("os.kill(os.getpid(), signal.SIGKILL)", -9)],
)
def test_no_worker_is_left_behind_by_a_program(end: str, code: int) -> None:
    words = [sys.executable, "-c", PROGRAM + end]
    done = subprocess.run(words, cwd=PROJECT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stderr
    first, *pids = done.stdout.splitlines()
    assert first == str([PLAN[0], PLAN[0]]) and len(pids) == 4
    # After a SIGKILL they look every five seconds whether the program still runs.
    for _ in range(300 if code == -9 else 0):
        if not any(map(is_running, map(int, pids))):
            break
        time.sleep(0.1)
    assert not any(map(is_running, map(int, pids)))
