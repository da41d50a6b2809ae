"""What a step frees is there for the next; imports are searched for garbage neither while they go on nor later."""

from __future__ import annotations

import gc
import os
import subprocess
import sys

import pytest

from resnet_pl.cli.memory import importing

FAULTS = """
import resource, sys
import numpy as np
from resnet_pl.cli.memory import keep_freed_memory
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


IMPORTED = """
import gc, sys
searched = []
gc.callbacks.append(lambda phase, _: searched.append("torch" in sys.modules))
from resnet_pl.cli.main import main
main(["summary", "nowhere"])
print(sum(searched), gc.isenabled(), gc.get_freeze_count())
"""


@pytest.mark.process
def test_imports_are_not_searched_for_garbage() -> None:
    words = [sys.executable, "-c", IMPORTED]
    searched, enabled, frozen = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    # A thousand where nothing is done; the command itself makes objects too.
    assert int(searched) < 100 and enabled == "True" and int(frozen) > 100_000


def test_with_torch_there_already_nothing_is_changed() -> None:
    before = gc.get_freeze_count()
    with importing():
        assert gc.isenabled()
    assert (gc.get_freeze_count(), gc.isenabled()) == (before, True)
