"""Short messages for known exceptions of torch and Lightning, and filters for their warnings."""

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
from lightning.fabric.utilities.exceptions import MisconfigurationException

from resnet_pl.utils import UserError

# Files of Python itself and of packages, also of those that a user or another environment has installed.
STANDARD_LIBRARY = "|".join(re.escape(sysconfig.get_paths()[name]) for name in ("stdlib", "platstdlib"))
LIBRARIES = re.compile(rf"<|{STANDARD_LIBRARY}|.*[/\\](?:site|dist)-packages[/\\]")
# Pattern of an exception's type and message, and the message that replaces it.
MESSAGES = {
    r"out of memory|can't allocate memory|MemoryError|CUBLAS_STATUS_ALLOC_FAILED":
        "out of memory\nlower --data.batch_size and raise --trainer.accumulate_grad_batches by the same factor;"
        " in evaluation lower --data.eval_batch_size",
    r"No supported \w+ backend found|`(?:CUDA|MPS)Accelerator` can not run on your system":
        "trainer.accelerator: torch finds no such device on this machine\n"
        "remove the option to use an available device, or use --trainer.accelerator cpu",
    r"No space left on device|Disk quota exceeded|iostream error|PytorchStreamWriter|unexpected pos \d+ vs \d+":
        "the disk is full{place}\n"
        "free some space, then resume with fit --ckpt_path last; existing checkpoints are intact",
    r"Error\(s\) in loading state_dict":
        "the checkpoint holds a different network than model.backbone\n"
        "remove model.backbone and its arguments, or start a new run from the weights with --model.weights",
    r"shared memory|</torch_|DataLoader worker .*(?:killed by signal|exited unexpectedly)":
        "a data loader worker was killed or ran out of shared memory\n"
        "lower --data.num_workers or --data.batch_size; in a container raise its shared memory (--shm-size)",
    r"(?:gloo|NCCL).*(?:closed|reset|[Tt]imed out|[Tt]imeout|Broken pipe)|timeout caused pair closure":
        "lost the connection to another process of this run; see its error message\n"
        "existing checkpoints are intact, resume with fit --ckpt_path last",
    r"When using the learning rate finder":
        "LearningRateFinder is not supported\n"
        "try several learning rates with sweep --grid model.optimizer.lr=0.03,0.1,0.3",
    r"Trainer\(barebones=True":
        "trainer.barebones: not supported, because runs have loggers and checkpoints\n"
        "use --trainer.logger false --trainer.enable_progress_bar false instead",
    r"is not in bounds, numpy accepts":
        "seed_everything: {error}",
}  # fmt: skip

# Warnings of Lightning that do not apply to this project.
IGNORED_WARNINGS = [
    "LeafSpec", r"isinstance\(treespec", "does not have many workers", "configure_model.*shard", "sync_dist",
    "across ranks is zero", "smaller than the logging interval", "in eval mode at the start of training",
    "callbacks used to create the checkpoint need",
]  # fmt: skip


def translate_exception(error: Exception) -> str | None:
    """Returns the message for a known exception of torch or Lightning, None for any other."""
    place = getattr(error, "filename", None) or next(iter(getattr(error, "__notes__", [])), None)
    for pattern, message in MESSAGES.items():
        if re.search(pattern, f"{type(error).__name__}: {error}", re.DOTALL):
            return message.format(place=f": {place} cannot be written" if place else "", error=error)
    if isinstance(error, MisconfigurationException):
        return f"trainer: {str(error).splitlines()[0]}"
    return None


def format_unexpected_error(error: Exception) -> str:
    """Formats any other exception in two lines, with the innermost line of code that is not a library's."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
    what = f"{type(error).__name__}: {lines[0]}"
    places = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if "in DataLoader worker" in lines[0]:
        # The message of an error in a worker process is that process's traceback: `File "a.py", line 3, in f`.
        what = lines[-1]
        files = [line for line in lines if line.startswith('File "')]
        places = [(line.split('"')[1], line.rpartition(", line ")[2].partition(",")[0]) for line in files]
    own = [place for place in places if not LIBRARIES.match(place[0])] or places[-1:]
    where = f" ({Path(own[-1][0]).name}, line {own[-1][1]})" if own else ""
    return f"{what}{where}\nadd --debug to see the traceback"


def check_trainer(settings: Namespace) -> None:
    """Rejects values of the Trainer that Lightning accepts, and fails at or misinterprets later.

    Args:
        settings: arguments of the Trainer.

    Raises:
        UserError: a value is out of range.
    """
    for key in ("accumulate_grad_batches", "limit_train_batches", "val_check_interval", "check_val_every_n_epoch"):
        value = settings[key]
        if isinstance(value, int | float) and value <= 0:
            hint = "\nto train without validation use --trainer.limit_val_batches 0" if "val" in key else ""
            raise UserError(f"trainer.{key}: {value} is out of range, must be above 0{hint}")
    for key in ("max_epochs", "max_steps"):
        if settings[key] == 0:
            raise UserError(f"trainer.{key}: 0 trains nothing\nraise it, or use -1 for no limit")


def silence_warnings() -> None:
    """Hides warnings and log lines that Lightning prints at every start."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in IGNORED_WARNINGS:
        warnings.filterwarnings("ignore", message=f".*{message}.*")
    # A thread hands its error to the main thread, which reports it: TensorBoard's writer, if the disk is full.
    threading.excepthook = lambda args: print(f"note: {args.exc_type.__name__}: {args.exc_value}", file=sys.stderr)
