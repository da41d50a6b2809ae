"""What Lightning and jsonargparse get wrong for this job, mended in one place."""

from __future__ import annotations

import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jsonargparse._typehints
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

from resnet_pl import models
from resnet_pl.errors import UserError

# Words of warnings that nobody can act on here.
NOISE = [
    "LeafSpec",
    r"isinstance\(treespec",
    "does not have many workers",
    "configure_model.*shard",
    "sync_dist",
    "across ranks is zero",
    "exists and is not empty",
    "smaller than the logging interval",
    "is not resumable",
    "in eval mode at the start of training",
    "callbacks used to create the checkpoint need",
    "The dirpath has changed",
    "monitor='val/top1'.* could not find",
]


@contextmanager
def short_names() -> Iterator[None]:
    """Inside the block a builder of `resnet_pl.models` can be named by its last word.

    jsonargparse finds short names of classes alone, and our nets are built by functions.
    """
    find = jsonargparse._typehints.resolve_class_path_by_name

    def find_ours_first(cls: Any, name: str) -> str:
        return f"resnet_pl.models.{name}" if name in models.__all__ else find(cls, name)

    jsonargparse._typehints.resolve_class_path_by_name = find_ours_first
    try:
        yield
    finally:
        jsonargparse._typehints.resolve_class_path_by_name = find


@contextmanager
def told_plainly() -> Iterator[None]:
    """Turns what the trainer's set-up refuses into our errors."""
    try:
        yield
    except MisconfigurationException as error:
        raise UserError(f"trainer: {str(error).splitlines()[0]}") from error


def quieten() -> None:
    """Leaves out what Lightning says at every start and nobody can act on."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in NOISE:
        warnings.filterwarnings("ignore", message=f".*{message}.*")


@contextmanager
def stopping_between_batches(trainer: Trainer) -> Iterator[None]:
    """Inside the block the first Ctrl-C ends a training after the running batch, as SIGTERM does.

    Lightning would stop inside the batch, which is then lost when the run goes on. A second Ctrl-C stops at once. The
    exit codes are those that shells expect, 128 and the signal's number. Several processes keep Lightning's way.
    """
    stopped: list[int] = []

    def on_interrupt(number: int, frame: Any) -> None:
        if stopped:
            raise KeyboardInterrupt
        stopped.append(number)
        os.kill(os.getpid(), signal.SIGTERM)

    mendable = trainer.world_size == 1 and threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, on_interrupt) if mendable else None
    try:
        yield
    except SIGTERMException as end:
        raise SystemExit(130 if stopped else 143) from end
    finally:
        if mendable:
            signal.signal(signal.SIGINT, before)
