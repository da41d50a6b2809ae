"""Memory of a processor's training steps, kept by the process from one step to the next."""

from __future__ import annotations

import ctypes
import os
import sys

# From malloc.h of glibc.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST = 2**30


def keep_freed_memory() -> bool:
    """Has the C library keep what a step frees for the next one, as torch does on a GPU; returns whether it does.

    By default glibc gives large blocks back at once, and the kernel clears each page anew when the next step asks for
    it: up to a fifth of a step's time. Blocks over a GiB still go back. Does nothing without glibc, and where
    MALLOC_MMAP_THRESHOLD_ or MALLOC_TRIM_THRESHOLD_ in the environment say what is wanted.
    """
    if sys.platform != "linux" or {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"} & os.environ.keys():
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # An older glibc refuses the first; the second alone would have it give back even small blocks.
    return mallopt is not None and bool(mallopt(M_MMAP_THRESHOLD, LARGEST)) and bool(mallopt(M_TRIM_THRESHOLD, -1))
