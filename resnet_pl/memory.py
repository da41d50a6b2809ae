"""Memory of a processor's training steps."""

from __future__ import annotations

import ctypes
import sys

# Names of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST = 2**30


def keep_freed_memory() -> bool:
    """Has the C library keep what a step frees for the next one, as torch does on a GPU; returns whether it does.

    By default glibc gives large blocks back at once, and the kernel clears every page anew when the next step asks for
    it. Blocks over a GiB still go back. Another C library is left as it is.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    # An older glibc refuses the first; the second alone would have it give back even small blocks.
    return mallopt is not None and bool(mallopt(M_MMAP_THRESHOLD, LARGEST)) and bool(mallopt(M_TRIM_THRESHOLD, -1))
