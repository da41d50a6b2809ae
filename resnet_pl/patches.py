"""What Lightning and jsonargparse get wrong for this job, mended in one place."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jsonargparse._typehints
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from resnet_pl import models
from resnet_pl.errors import UserError

# Words of warnings that nobody can act on here.
NOISE = [
    "LeafSpec",
    r"isinstance\(treespec",
    "does not have many workers",
    "configure_model.*shard",
    "sync_dist",
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
