"""Worker processes that load batches: torch's DataLoader with workers that end exactly when their owner ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.utils.data import DataLoader

_STOPPING = (signal.SIGINT, signal.SIGTERM)

Key = tuple[int, int]  # (epoch, index)


class BatchReader:
    """Loads given batches of a data set in persistent worker processes.

    Args:
        images: data set that is indexed by (epoch, index).
        num_workers: worker processes; 0 loads in this process.
        pin_memory: whether batches are copied to pinned memory, for faster transfer to a GPU.
        collate: makes a batch from a list of samples.
    """

    def __init__(self, images: Any, num_workers: int, pin_memory: bool, collate: Callable[[list[Any]], Any]) -> None:
        self._plan = _BatchList()
        _DATA_LOADERS[self] = DataLoader(
            dataset=images,
            batch_sampler=self._plan,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=pin_memory,
            collate_fn=collate,
            worker_init_fn=ignore_signals,
            # Otherwise each iterator draws from the global generator, and a resumed run would differ from then on.
            generator=torch.Generator(),
        )

    def read(self, batches: list[list[Key]]) -> Iterator[Any]:
        """Yields these batches in order. The generator keeps a reference to the reader, and so to the workers."""
        self._plan.batches = batches
        with _signals_blocked():
            loaded = iter(_DATA_LOADERS[self])
        yield from loaded


# The DataLoader of each reader. Workers end when their DataLoader is freed. In a reference cycle, as in a Trainer, the
# garbage collector would close the queues first, and torch would then wait five seconds for each worker. Only this
# dictionary refers to the DataLoaders, so they are never part of a cycle.
_DATA_LOADERS: WeakKeyDictionary[BatchReader, DataLoader] = WeakKeyDictionary()


class _BatchList:
    """The batch sampler of the DataLoader: the batches of the next epoch."""

    batches: list[list[Key]] = []

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def ignore_signals(worker: int) -> None:
    """Makes a worker ignore SIGINT and SIGTERM, except SIGTERM from the training process.

    Ctrl-C and a scheduler send signals to all processes, but the training process still needs its workers then.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigtimedwait"):
        # A Python signal handler does not know the sender of a signal; a thread that waits for the signal does.
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
        threading.Thread(target=_end_with_parent, daemon=True).start()
    elif hasattr(signal, "pthread_sigmask"):  # macOS: SIGTERM from any process ends a worker
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)


def _end_with_parent() -> None:
    """Ends a worker on SIGTERM from its parent: multiprocessing sends it at exit, and torch to a worker that hangs.

    Also if the parent was killed before the worker had started: torch then takes another process for the parent.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has a parent"
    while parent.is_alive():
        received = signal.sigtimedwait({signal.SIGTERM}, 5)
        if received is not None and received.si_pid == parent.pid:
            break
    # torch reports any other status as an error in the worker.
    os._exit(0)


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Blocks signals inside the block, so that none reaches a worker before it ignores them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING) if hasattr(signal, "pthread_sigmask") else None
    try:
        yield
    finally:
        if before is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
