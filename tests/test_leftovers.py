"""A training, however it ends, leaves no process, open file, thread or shared memory; its memory does not grow."""

from __future__ import annotations

import gc
import os
import re
import resource
import signal
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback

from resnet_pl.cli import main
from tests.tiny import Tiny, classifier, trainer


class InjectFault(Callback):
    """Ends a training in its second step, in the way that the environment variable FAULT names.

    Attributes:
        workers: PIDs of the data loader workers of all trainings.
    """

    workers: ClassVar[set[str]] = set()

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        InjectFault.workers.update(child_pids())
        fault = os.environ["FAULT"]
        if trainer.global_step == 2 and fault == "error":
            raise RuntimeError("fault")
        if trainer.global_step == 2 and fault != "none":
            os.kill(os.getpid(), signal.Signals[fault])


def child_pids() -> list[str]:
    """PIDs of the child processes of this process."""
    return " ".join(path.read_text() for path in Path("/proc/self/task").glob("*/children")).split()


def held_resources() -> dict[str, Counter[str]]:
    """Resources that this process and its workers hold, by kind."""
    gc.collect()
    files = Counter[str]()
    for path in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the folder is itself open while it is listed, and another thread may close a file
            files[str(path.readlink())] += 1
    # Other processes use shared memory, too.
    own = {str(os.getpid()), *InjectFault.workers}
    shared = [path.name for path in Path("/dev/shm").iterdir() if (match := re.match(r"torch_(\d+)_", path.name))
              and match[1] in own]  # fmt: skip
    return {
        "files": files,
        "children": Counter(child_pids()),
        "shared memory": Counter(shared),
        "threads": Counter(thread.name for thread in threading.enumerate()),
    }


def settled() -> dict[str, Counter[str]]:
    """Resources that are held once the threads of the first run's data loader have ended, after a minute at most."""
    end = time.monotonic() + 60
    while (now := held_resources())["threads"]["QueueFeederThread"] and time.monotonic() < end:
        time.sleep(0.1)
    return now


def new_resources(before: dict[str, Counter[str]]) -> dict[str, list[str]]:
    """Resources that were not held before; waits up to a minute until there are none, as threads need time to end."""
    end = time.monotonic() + 60
    while True:
        now = held_resources()
        new = {kind: sorted((now[kind] - before[kind]).elements()) for kind in now if now[kind] - before[kind]}
        if not new or time.monotonic() > end:
            return new
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
def test_nothing_is_left_behind(photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = ["--model.backbone", "cifar_resnet", "--model.backbone.depth", "8"]
    data = ["--data", "ImageFolder", "--data.root", str(photo_folder), "--data.image_size", "16"]
    data += ["--data.batch_size", "4", "--data.num_workers", "2"]
    options = ["--trainer.max_epochs", "2", "--trainer.callbacks+=tests.test_leftovers.InjectFault"]
    before = None
    for fault, code in [("none", 0), ("error", 1), ("SIGTERM", 143), ("SIGINT", 130), ("none", 0)]:
        monkeypatch.setenv("FAULT", fault)
        try:
            ended = main.main(["fit", *model, *data, *options])
        except SystemExit as end:
            ended = end.code
        assert ended == code, fault
        if before is None:
            # The first run opens files and starts threads that later runs use, too.
            before = settled()
        assert not new_resources(before), fault
    assert len(InjectFault.workers) >= 10


@pytest.mark.slow
def test_memory_does_not_grow_in_ten_thousand_steps() -> None:
    class RecordMemory(Callback):
        def __init__(self) -> None:
            self.sizes: list[int] = []

        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step % 100 == 0:
                pages = int(Path("/proc/self/statm").read_text().split()[1])
                self.sizes.append(pages * resource.getpagesize())

    memory = RecordMemory()
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, 2), torch.nn.BatchNorm2d(4), torch.nn.Flatten())
    model.extend([torch.nn.Dropout(0.1), torch.nn.Linear(36, 4)])
    fit = trainer(callbacks=[memory], max_steps=10_000, max_epochs=-1, check_val_every_n_epoch=100)
    fit.fit(classifier(backbone=model, num_classes=4), datamodule=Tiny(count=1040))
    assert len(memory.sizes) == 100
    slope = np.polyfit(np.arange(0, 8000, 100), memory.sizes[20:], 1)[0]
    # A tensor that is not freed takes at least 64 bytes, with its Python object some hundreds.
    assert slope < 32, f"{slope:.0f} bytes per step: {memory.sizes}"
