"""What a training leaves behind, however it ends: no process, open file, thread or shared memory; and no memory."""

from __future__ import annotations

import gc
import os
import re
import resource
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback

from resnet_pl.cli import main
from tests.tiny import Tiny, classifier, trainer


class Trouble(Callback):
    """Ends a training in its second step, in the way that TROUBLE names."""

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        how = os.environ["TROUBLE"]
        if trainer.global_step == 2 and how == "error":
            raise RuntimeError("fault")
        if trainer.global_step == 2 and how != "nothing":
            os.kill(os.getpid(), signal.Signals[how])


def held() -> dict[str, list[str]]:
    """What this process holds of the machine."""
    gc.collect()
    links = [path for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return {
        "files": sorted(str(path.readlink()) for path in links),
        "children": sorted(" ".join(path.read_text() for path in Path("/proc/self/task").glob("*/children")).split()),
        "shared memory": sorted(shared_memory()),
        "threads": sorted(thread.name for thread in threading.enumerate()),
    }


def shared_memory() -> Iterator[str]:
    """The names of shared memory of ours, without that of other processes that are still alive."""
    for path in Path("/dev/shm").iterdir():
        owner = re.match(r"torch_(\d+)_", path.name)
        ours = owner is None or int(owner[1]) == os.getpid() or not Path("/proc", owner[1]).exists()
        with suppress(FileNotFoundError):  # one of another process
            if ours and path.stat().st_uid == os.getuid():
                yield path.name


def settled(before: dict[str, list[str]] | None) -> dict[str, list[str]]:
    """What is held once that is as before, or after ten seconds: threads that end need a moment on a busy machine."""
    for _ in range(100):
        found = held()
        if found == before or (before is None and "QueueFeederThread" not in found["threads"]):
            break
        time.sleep(0.1)
    return found


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
def test_nothing_is_left_behind(photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    net = ["--model.backbone", "cifar_resnet", "--model.backbone.depth", "8"]
    data = ["--data", "ImageFolder", "--data.root", str(photo_folder), "--data.image_size", "16"]
    data += ["--data.batch_size", "4", "--data.num_workers", "2"]
    options = ["--trainer.max_epochs", "2", "--trainer.callbacks+=tests.test_leftovers.Trouble"]
    before = None
    for how, code in [("nothing", 0), ("error", 1), ("SIGTERM", 143), ("SIGINT", 130), ("nothing", 0)]:
        monkeypatch.setenv("TROUBLE", how)
        try:
            ended = main.main(["fit", *net, *data, *options])
        except SystemExit as end:
            ended = end.code
        assert ended == code, how
        # The first run opens what is opened once.
        before = before or settled(None)
        assert settled(before) == before, how


@pytest.mark.slow
def test_memory_stays_flat_over_ten_thousand_steps() -> None:
    class Memory(Callback):
        def __init__(self) -> None:
            self.sizes: list[int] = []

        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step % 100 == 0:
                pages = int(Path("/proc/self/statm").read_text().split()[1])
                self.sizes.append(pages * resource.getpagesize())

    memory = Memory()
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, 2), torch.nn.BatchNorm2d(4), torch.nn.Flatten())
    net.extend([torch.nn.Dropout(0.1), torch.nn.Linear(36, 4)])
    fit = trainer(callbacks=[memory], max_steps=10_000, max_epochs=-1, check_val_every_n_epoch=100)
    fit.fit(classifier(backbone=net, num_classes=4), datamodule=Tiny(count=1040))
    assert len(memory.sizes) == 100
    slope = np.polyfit(np.arange(0, 8000, 100), memory.sizes[20:], 1)[0]
    # A tensor kept in each step would be 64 bytes at the least, with its Python object some hundreds.
    assert slope < 32, f"{slope:.0f} bytes a step: {memory.sizes}"
