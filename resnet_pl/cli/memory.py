"""What Python and the C library do with memory while a process starts and trains."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Names of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST = 2**30


@contextmanager
def importing() -> Iterator[None]:
    """For the import of torch and all that goes with it: nobody looks for garbage meanwhile, nor later in what it made.

    Imports make half a million objects to stay. Python would search the growing heap for cyclic garbage a thousand
    times, and once more at the process's end: two of the six seconds of a short command. Workers, which begin as
    copies of the process, share the pages that no search touches. Where torch is there already, nothing is changed.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def keep_freed_memory() -> bool:
    """Has the C library keep what a step frees for the next one, as torch does on a GPU; returns whether it does.

    By default glibc gives large blocks back at once, and the kernel clears every page anew when the next step asks for
    it. Blocks over a GiB still go back. Another C library is left as it is.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    # An older glibc refuses the first; the second alone would have it give back even small blocks.
    return mallopt is not None and bool(mallopt(M_MMAP_THRESHOLD, LARGEST)) and bool(mallopt(M_TRIM_THRESHOLD, -1))
