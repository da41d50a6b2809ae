"""Worker processes: which signals they ignore, and when they end."""

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

from resnet_pl.data.workers import BatchReader, ignore_signals

PROJECT = Path(__file__).parents[2]
PLAN = [[(epoch, index) for index in range(start, start + 2)] for epoch in (0, 1) for start in (0, 2, 4, 6)]
PROGRAM = """
import multiprocessing, os, signal, sys, weakref
# Registered before the exit functions of torch and multiprocessing, and therefore called after them.
weakref.finalize(sys, int)
from tests.data.test_workers import PLAN, Keys, BatchReader
# A second program that is killed: a fork, because the imports take seconds.
if child := os.fork():
    killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
batches = BatchReader(Keys(), 2, False, list).read(PLAN)
reader = BatchReader(Keys(), 2, False, list)
batches = [batches, reader.read(PLAN)]
print([next(each) for each in batches], *[worker.pid for worker in multiprocessing.active_children()], sep="\\n")
sys.stdout.flush()
if child == 0:
    os.kill(os.getpid(), signal.SIGKILL)
print(killed, flush=True)
"""


class Keys:
    """A data set that returns the keys as samples; one key raises KeyError."""

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, int]:
        if key == (2, 0):
            raise KeyError(key)
        return key


def start_reader(count: int = 2) -> tuple[BatchReader, Any, list[BaseProcess]]:
    """Returns a reader, its unfinished batches and its worker processes."""
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


def test_workers_are_reused() -> None:
    reader, batches, processes = start_reader()
    assert list(batches) == PLAN[1:]
    assert [list(reader.read(PLAN[start:])) for start in (0, 3, 8)] == [PLAN, PLAN[3:], []]
    # After an incomplete plan, they start the next one correctly.
    next(reader.read(PLAN[2:]))
    assert list(reader.read(PLAN)) == PLAN
    assert len(processes) == 2 and all(map(BaseProcess.is_alive, processes))
    assert list(BatchReader(Keys(), 0, False, list).read(PLAN)) == PLAN


def test_workers_ignore_signals_except_sigterm_from_their_parent() -> None:
    reader, _, (worker,) = start_reader(1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
        sender = multiprocessing.get_context("fork").Process(target=os.kill, args=(worker.pid, number))
        sender.start()
        sender.join()
        assert list(reader.read(PLAN)) == PLAN
    os.kill(worker.pid, signal.SIGTERM)
    worker.join(30)
    assert worker.exitcode == 0


def test_signals_are_blocked_while_workers_start() -> None:
    def send_signals() -> None:
        for number in signals:
            os.kill(os.getpid(), number)

    # Called in every process that is forked from now on; without effect after this test.
    signals = [signal.SIGTERM, signal.SIGINT]
    os.register_at_fork(after_in_child=send_signals)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        _, batches, _ = start_reader()
    finally:
        signals.clear()
    assert list(batches) == PLAN[1:]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_the_batches_hold_a_reference_to_the_workers() -> None:
    assert list(BatchReader(Keys(), 1, False, list).read(PLAN)) == PLAN


@pytest.mark.parametrize("case", ["dropped", "in a cycle", "in a cycle with an error"])
def test_workers_end_with_their_reader(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # torch terminates workers that have not ended after five seconds.
    terminated: list[BaseProcess] = []
    terminate = BaseProcess.terminate
    monkeypatch.setattr(BaseProcess, "terminate", lambda self: (terminated.append(self), terminate(self)))
    reader, batches, processes = start_reader()
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


def test_workers_end_with_a_child_process() -> None:
    def train() -> None:
        reader, batches, processes = start_reader()
        # As in a process that a Trainer starts: nothing frees the reader before the process ends.
        gc.callbacks.append(lambda *_: (reader, batches))
        sender.send([worker.pid for worker in processes])

    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=train)
    process.start()
    pids = receiver.recv()
    process.join(60)
    assert process.exitcode == 0
    assert len(pids) == 2 and not any(map(is_running, pids))


@pytest.mark.skipif(not hasattr(signal, "sigtimedwait"), reason="needs sigtimedwait")
def test_a_worker_that_starts_after_the_program_was_killed_ends() -> None:
    def work(program: int) -> None:
        while os.getppid() == program:
            time.sleep(0.01)
        ignore_signals(0)
        time.sleep(600)

    def train() -> None:
        worker = context.Process(target=work, args=(os.getpid(),))
        worker.start()
        sender.send(worker.pid)
        os.kill(os.getpid(), signal.SIGKILL)

    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    program = context.Process(target=train)
    program.start()
    pid = receiver.recv()
    program.join()
    for _ in range(100):
        if not is_running(pid):
            return
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("the worker waits for a program that does not exist")


@pytest.mark.process
@pytest.mark.parametrize(
    ("end", "code"),
    [pytest.param("", 0, marks=pytest.mark.slow), ("list(batches[1])\nlist(reader.read([[(2, 0)]]))", 1)],
)
def test_workers_end_with_the_program(end: str, code: int) -> None:
    words = [sys.executable, "-c", PROGRAM + end]
    done = subprocess.run(words, cwd=PROJECT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 11 and lines[0] == lines[5] == str([PLAN[0], PLAN[0]]) and lines[10] == "-9"
    assert not any(map(is_running, map(int, lines[6:10])))
    # After a SIGKILL, workers notice the end of the program within five seconds.
    for _ in range(300):
        if not any(map(is_running, map(int, lines[1:5]))):
            break
        time.sleep(0.1)
    assert not any(map(is_running, map(int, lines[1:5])))
