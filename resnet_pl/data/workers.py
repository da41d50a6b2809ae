"""Worker processes that read batches: torch's DataLoader with workers that end with their owner, and only then."""

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
    """Reads the batches of an epoch, which are known before it begins.

    Args:
        images: data set that is indexed by (epoch, index).
        num_workers: processes that read, kept from one epoch to the next; 0 reads in this process.
        pin_memory: whether batches are copied to pinned memory, from which a GPU fetches them faster.
        collate: makes a batch of a list of samples.
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
            worker_init_fn=_ignore_signals,
            # Making an iterator must not draw from the global generator: a resumed run would differ from then on.
            generator=torch.Generator(),
        )

    def read(self, batches: list[list[Key]]) -> Iterator[Any]:
        """Yields these batches in order; as a generator it keeps the reader, and thus the workers, until it ends."""
        self._plan.batches = batches
        with _signals_blocked():
            read = iter(_DATA_LOADERS[self])
        yield from read


# The DataLoader of each reader. Workers end when their DataLoader is freed. In a reference cycle, as in a Trainer, the
# garbage collector would close the queues first, and torch would then wait five seconds for each worker. Only this
# dictionary refers to the DataLoaders, so that none is part of a cycle.
_DATA_LOADERS: WeakKeyDictionary[BatchReader, DataLoader] = WeakKeyDictionary()


class _BatchList:
    """The batches of the coming epoch, as torch's DataLoader asks for them."""

    batches: list[list[Key]] = []

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def _ignore_signals(worker: int) -> None:
    """Makes a worker end only when the training process tells it to.

    Ctrl-C and the end of a job send signals to all processes, but the training process still needs its workers then.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        # A signal handler in Python is not told who sent the signal; a thread that waits for the signal is.
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
        threading.Thread(target=_end_with_parent, daemon=True).start()
    elif hasattr(signal, "pthread_sigmask"):  # macOS: SIGTERM ends a worker, whoever sends it
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)


def _end_with_parent() -> None:
    """Ends a worker at a SIGTERM of its parent: multiprocessing sends it at exit, and torch to a worker that hangs."""
    parent = multiprocessing.parent_process().pid
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    # With any other status torch reports an error in the worker.
    os._exit(0)


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Inside the block signals wait, so that none meets a worker that is not prepared for them yet."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING) if hasattr(signal, "pthread_sigmask") else None
    try:
        yield
    finally:
        if before is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
