"""The most common errors of torch and Lightning in a line or two, and what else of theirs is shown."""

from __future__ import annotations

import logging
import re
import sys
import sysconfig
import threading
import traceback
import warnings
from pathlib import Path

from jsonargparse import Namespace
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from resnet_pl.utils import UserError

LIBRARIES = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))
# Type and message of an error, and what is said instead.
MESSAGES = {
    r"out of memory|can't allocate memory|MemoryError|CUBLAS_STATUS_ALLOC_FAILED":
        "out of memory\nlower --data.batch_size and raise --trainer.accumulate_grad_batches by as much;"
        " in evaluation lower --data.eval_batch_size",
    r"No supported \w+ backend found|`(?:CUDA|MPS)Accelerator` can not run on your system":
        "trainer.accelerator: torch finds no such device on this machine\n"
        "remove it to use what there is, or use --trainer.accelerator cpu",
    r"No space left on device|Disk quota exceeded|iostream error|PytorchStreamWriter|unexpected pos \d+ vs \d+":
        "the disk is full{place}\n"
        "make room; checkpoints written before are complete, resume with fit --ckpt_path last",
    r"Error\(s\) in loading state_dict":
        "the checkpoint holds another network than the one that was asked for\n"
        "leave model.backbone to the checkpoint, or start a new run from its weights with --model.weights",
    r"shared memory|</torch_|DataLoader worker .*(?:killed by signal|exited unexpectedly)":
        "a process that reads images has ended, or ran out of memory\n"
        "lower --data.num_workers or --data.batch_size; in a container raise its shared memory",
    r"(?:gloo|NCCL).*(?:closed|reset|[Tt]imed out|[Tt]imeout|Broken pipe)|timeout caused pair closure":
        "another process of this run has ended, its message says why, or can no longer be reached\n"
        "checkpoints written before are complete, resume with fit --ckpt_path last",
}  # fmt: skip

# Warnings of Lightning that nobody can act on here.
IGNORED_WARNINGS = [
    "LeafSpec", r"isinstance\(treespec", "does not have many workers", "configure_model.*shard", "sync_dist",
    "across ranks is zero", "smaller than the logging interval", "in eval mode at the start of training",
    "callbacks used to create the checkpoint need",
]  # fmt: skip


def translate_exception(error: Exception) -> str | None:
    """What to say of an error of torch or Lightning; None for one that is not known."""
    place = getattr(error, "filename", None) or next(iter(getattr(error, "__notes__", [])), None)
    for pattern, message in MESSAGES.items():
        if re.search(pattern, f"{type(error).__name__}: {error}", re.DOTALL):
            return message.format(place=f": {place} cannot be written" if place else "")
    if isinstance(error, MisconfigurationException):
        return f"trainer: {str(error).splitlines()[0]}"
    return None


def format_unexpected_error(error: Exception) -> str:
    """Two lines on any other error: what it is, and the innermost line that is not a library's."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
    what = f"{type(error).__name__}: {lines[0]}"
    places = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if "in DataLoader worker" in lines[0]:
        # The message of an error in a worker process is that process's traceback: `File "a.py", line 3, in f`.
        what = lines[-1]
        files = [line for line in lines if line.startswith('File "')]
        places = [(line.split('"')[1], line.rpartition(", line ")[2].partition(",")[0]) for line in files]
    own = [place for place in places if not place[0].startswith(("<", *LIBRARIES))] or places[-1:]
    where = f" ({Path(own[-1][0]).name}, line {own[-1][1]})" if own else ""
    return f"{what}{where}\nadd --debug to see the whole traceback"


def check_trainer(settings: Namespace) -> None:
    """Refuses what Lightning takes, and fails at or misreads much later."""
    for key in ("accumulate_grad_batches", "limit_train_batches", "val_check_interval", "check_val_every_n_epoch"):
        value = settings[key]
        if isinstance(value, int | float) and value <= 0:
            hint = "\nto train without validation use --trainer.limit_val_batches 0" if "val" in key else ""
            raise UserError(f"trainer.{key}: {value} is out of range, it must be above 0{hint}")
    for key in ("max_epochs", "max_steps"):
        if settings[key] == 0:
            raise UserError(f"trainer.{key}: 0 trains nothing\nraise it, or use -1 for no limit")


def silence_warnings() -> None:
    """Hides what Lightning says at every start and nobody can act on."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in IGNORED_WARNINGS:
        warnings.filterwarnings("ignore", message=f".*{message}.*")
    # A thread, such as TensorBoard's writer at a full disk, hands its error to the main thread, which reports it.
    threading.excepthook = lambda args: print(f"note: {args.exc_type.__name__}: {args.exc_value}", file=sys.stderr)
