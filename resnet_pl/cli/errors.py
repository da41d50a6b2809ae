"""Short messages for known exceptions of torch and Lightning, and filters for their warnings."""

from __future__ import annotations

import logging
import re
import sys
import traceback
import warnings
from pathlib import Path

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_only
from typing_extensions import override

from resnet_pl.callbacks.resources import OUT_OF_MEMORY
from resnet_pl.code_version import LIBRARIES
from resnet_pl.utils import first_line

# Pattern of an exception's type and message, and the message that replaces it.
MESSAGES = {
    OUT_OF_MEMORY:
        "out of memory\nlower --data.batch_size and raise --trainer.accumulate_grad_batches by the same factor;"
        " in evaluation lower --data.eval_batch_size",
    r"No supported \w+ backend found|`(?:CUDA|MPS)Accelerator` can not run on your system":
        "trainer.accelerator: torch finds no such device on this machine\n"
        "remove the option to use an available device, or use --trainer.accelerator cpu",
    r"You requested gpu: .*\n.*But your machine only has":
        "trainer.devices: this machine has fewer GPUs than the command or the checkpoint asks for\n"
        "set --trainer.devices to their number, or to auto",
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
        "trainer.callbacks: LearningRateFinder needs a model with an attribute `lr`\n"
        "give it one that configure_optimizers uses, or try several with sweep --grid",
    r"view size is not compatible with input tensor's size and stride":
        "model.channels_last: the optimizer or a callback needs contiguous weights\nset --model.channels_last false",
    r"Target size .* must be the same as input size":
        "model.loss: it needs labels (N, K), and gets class indices (N,)\n"
        "use --data.mix MixUp, or write a loss that calls torch.nn.functional.one_hot",
    r"DataLoader implementation has an error":
        "data: a DataLoader has positional arguments\n"
        "pass all but the data set by keyword: DataLoader(dataset, batch_size=32)",
    r"TrainingSpikeException":
        "{error}\n"
        "skip_batches.json lists the batches; lower the learning rate, or raise SpikeDetection's atol and rtol",
    r"'SpikeDetection' object has no attribute 'running'":
        "trainer.callbacks: Lightning cannot resume a run with SpikeDetection\n"
        "list the other callbacks: --trainer.callbacks '[...]'",
    r"BackendCompilerFailed.*(?:file too short|invalid ELF header)":
        "model.compile: torch's cache of compiled code has a damaged file, for example of a killed process\n"
        "delete the cache: $TORCHINDUCTOR_CACHE_DIR, by default torchinductor_USER in the folder for temporary files",
    r"is not in bounds, numpy accepts":
        "seed_everything: {error}",
}  # fmt: skip

# Warnings of Lightning that do not apply to this project.
IGNORED_WARNINGS = [
    "LeafSpec", r"isinstance\(treespec", "does not have many workers", "configure_model.*shard", "sync_dist",
    "across ranks is zero", "smaller than the logging interval", "in eval mode at the start of training",
    "callbacks used to create the checkpoint need", "from an ambiguous collection",
    "Your .IterableDataset. has .__len__.", "SWA is currently only supported", r"\s+Unable to serialize instance",
    r"was called without a model\. The last model", r'ckpt_path="last"\) is set, but there is no',
]  # fmt: skip


def translate_exception(error: Exception) -> str | None:
    """Returns the message for a known exception of torch or Lightning, None for any other."""
    notes: list[str] = getattr(error, "__notes__", [])
    if notes and notes[-1].startswith("out of memory"):  # of the callback `OutOfMemory`
        return notes[-1]
    place = getattr(error, "filename", None) or next(iter(notes), None)
    for pattern, message in MESSAGES.items():
        if re.search(pattern, f"{type(error).__name__}: {error}", re.DOTALL):
            return message.format(place=f": {place} cannot be written" if place else "", error=error)
    if isinstance(error, MisconfigurationException):
        return f"trainer: {str(error).splitlines()[0]}"
    if missing := re.search(r"Requirement '([^']+)' not met", str(error)):  # of an optional package of Lightning
        return f"the package {missing[1]} is needed\ninstall it: pip install '{missing[1]}'"
    if type(error).__module__.partition(".")[0] in ("wandb", "mlflow", "comet_ml"):
        return f"trainer.logger: {first_line(error)}\ncorrect its arguments or its environment, or remove it"
    return None


def format_unexpected_error(error: Exception) -> str:
    """Formats any other exception in two lines, with the innermost line of code that is not a library's."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
    # The text of some exceptions starts with "… raised:" and continues in the next line.
    what = f"{type(error).__name__}: {' '.join(lines[:2]) if lines[0].endswith(':') else lines[0]}"
    places = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if "in DataLoader worker" in lines[0]:
        # The message of an error in a worker process is that process's traceback: `File "a.py", line 3, in f`.
        what = lines[-1]
        files = [line for line in lines if line.startswith('File "')]
        places = [(line.split('"')[1], line.rpartition(", line ")[2].partition(",")[0]) for line in files]
    own = [place for place in places if not LIBRARIES.match(place[0])] or places[-1:]
    where = f" ({Path(own[-1][0]).name}, line {own[-1][1]})" if own else ""
    if "too many values to unpack (expected 2)" in what:
        where += "\na batch of an ImageDataModule is a `Batch`: use batch.images and batch.labels"
    return f"{what}{where}\nadd --debug to see the traceback"


class LightningMessages(logging.Handler):
    """Prints the messages of Lightning's callbacks, profilers and tuner, and warnings of all its parts.

    Hidden are those of every start, such as the available devices. `print` writes above a progress bar.
    """

    SHOWN = ("callbacks", "profilers", "tuner")

    @override
    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            print(record.getMessage(), file=sys.stderr)
        elif not getattr(rank_zero_only, "rank", 0) and Path(record.pathname).parent.name in self.SHOWN:
            print(record.getMessage(), flush=True)


def silence_warnings() -> None:
    """Hides warnings and log lines that Lightning prints at every start."""
    for name in ("lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logger = logging.getLogger("lightning.pytorch")
    logger.handlers, logger.propagate = [LightningMessages(logging.INFO)], False
    logger.setLevel(logging.INFO)
    for message in IGNORED_WARNINGS:
        warnings.filterwarnings("ignore", message=f".*{message}.*")
