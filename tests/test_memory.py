"""What a step frees is there for the next."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import numpy as np
from resnet_pl.memory import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "kept" else False
for _ in range(2):
    np.ones(16 * 2**20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    np.ones(16 * 2**20)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> tuple[str, int]:
    """Whether freed memory is kept, and pages that four arrays of 128 MiB, one after another, had to ask for."""
    words = [sys.executable, "-c", FAULTS, how]
    kept, pages = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    return kept, int(pages)


@pytest.mark.process
@pytest.mark.skipif("glibc" not in (os.confstr("CS_GNU_LIBC_VERSION") or ""), reason="needs glibc")
def test_freed_memory_is_kept() -> None:
    (kept, few), (given_back, many) = faults("kept"), faults("given back")
    assert (kept, given_back) == ("True", "False")
    assert few < 100 < many
