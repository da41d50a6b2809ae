"""Errors that a value or the code of the user's brings up deep inside torch and Lightning, said in a line or two."""

from __future__ import annotations

import re
import sysconfig
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resnet_pl.utils import UserError

LIBRARIES = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))
# Words of an error, its type among them, and what is said instead; {0} is the first group of the pattern.
FORESEEN = {
    r"ValueError: (\S+) is not in bounds, numpy accepts from (\d+) to (\d+)":
        "seed_everything: {0} is out of range, it must be from {1} to {2}",
    r"`val_check_interval` \((\S+)\) must be less than or equal to the number of the training batches \((\d+)\)":
        "trainer.val_check_interval: {0} is more than the {1} batches of an epoch\n"
        "lower it, or count over epochs with --trainer.check_val_every_n_epoch null",
    r"Early stopping conditioned on metric (\S+) which is not available.*following: (.+)":
        "trainer.callbacks: EarlyStopping monitors {0}, which is not logged\ngive one of these: {1}",
    r"ModelCheckpoint\(monitor='(\S+)'\)` could not find .* returned metrics: \[(.+?)\]":
        "trainer.callbacks: ModelCheckpoint monitors {0}, which is not logged\ngive one of these: {1}",
    r"When using the learning rate finder":
        "trainer.callbacks: LearningRateFinder cannot change the learning rate of this net's optimiser\n"
        "leave it out, and compare runs with other --model.optimizer.lr",
    r"Trainer\(barebones=True":
        "trainer.barebones: logs, checkpoints and reports are part of every run here\nleave it out",
    r"invalid strategy name: `strategy='(.*)'`.*choices: (.+?), \.":
        "trainer.strategy: there is no {0}\ngive one such as {1}",
    r"strategy `(\S+)` requires a GPU":
        "trainer.strategy: {0} needs a GPU\nleave it out, or give another",
    r"invalid accelerator name: `accelerator='(.*)'`\. Available names are: (.+)\.":
        "trainer.accelerator: there is no {0}\nit is one of {1}",
    r"No supported \w+ backend found|`(?:CUDA|MPS)Accelerator` can not run on your system":
        "trainer.accelerator: torch finds no such device on this machine\n"
        "leave it out to take what there is, or give --trainer.accelerator cpu",
    r"`devices` selected with|Trainer\(devices=\S*\)` value is not a valid":
        "trainer.devices: the value does not suit the accelerator\ngive a number from 1, or auto",
    r"You requested gpu: (.+?)\n.*only has: (.+)":
        "trainer.devices: GPUs {0} are asked for, this machine has {1}\ngive fewer, or auto",
    r"Requirement '(\S+)' not met":
        "a package is asked for that is not installed: {0}\nleave out what needs it, or pip install '{0}'",
    r"Found more than one stateful callback of type `(\w+)`":
        "trainer.callbacks: {0} is given more than once, and its state is kept for one\ngive it once",
    r"Expected more than 1 value per channel":
        "data.batch_size: BatchNorm cannot learn from one image where the net has shrunk it to 1×1\n"
        "raise --data.batch_size to 2 or more, or --data.image_size",
    r"No working C\+\+ compiler found|Cannot find a working triton":
        "model.compile: torch finds no compiler for this device\n"
        "install one, g++ for a processor and triton for a GPU, or leave model.compile out",
    r"Storage size calculation overflowed":
        "a size is given that no memory can hold\nlower --data.image_size, or what else is so large",
    r"stack expects each tensor to be equal size":
        "data.transforms: the images of a batch differ in size\na crop or transform must keep to --data.image_size",
    r"(?:gloo|NCCL).*(?:Connection (?:closed|reset) by peer|[Tt]imed out|[Tt]imeout|Broken pipe|remote process exited)"
    "|timeout caused pair closure":
        "another process has ended, its message tells why, or can no longer be reached\n"
        "checkpoints written before are whole, a training goes on with fit --ckpt_path last",
    r"shared memory|</torch_|DataLoader worker .*(?:killed by signal|exited unexpectedly)":
        "the processes that read images ran out of memory, or were ended from outside\n"
        "lower --data.num_workers or --data.batch_size; in a container raise its shared memory",
    r"out of memory|can't allocate memory|MemoryError|CUBLAS_STATUS_ALLOC_FAILED|find a valid cuDNN algorithm":
        "out of memory\nlower --data.batch_size and raise --trainer.accumulate_grad_batches by as much;"
        " in evaluation lower --data.eval_batch_size",
    r"No space left on device|Disk quota exceeded|iostream error|PytorchStreamWriter|unexpected pos \d+ vs \d+":
        "the disk is full{place}\nmake room; checkpoints written before are whole, go on with fit --ckpt_path last",
}  # fmt: skip


def foreseen(error: Exception) -> str | None:
    """What to say of an error in torch, Lightning or the user's own code; None where it can be a fault of ours."""
    place = getattr(error, "filename", None) or next(iter(getattr(error, "__notes__", [])), None)
    for pattern, told in FORESEEN.items():
        if found := re.search(pattern, f"{type(error).__name__}: {error}", re.DOTALL):
            groups = [re.sub(r"[`']", "", group) for group in found.groups()]
            return told.format(*groups, place=f": {place} cannot be written" if place else "")
    if isinstance(error, NotImplementedError) and not str(error):
        method = traceback.extract_tb(error.__traceback__)[-1].name
        return f"a class is named that leaves {method} to others\nname one that derives from it, as Digits for data"
    return _own_code(error) or _restoring(error)


def _restoring(error: Exception) -> str | None:
    """What fails where Lightning takes a checkpoint apart, which is whole as a file."""
    frames = traceback.extract_tb(error.__traceback__)
    if any(f.filename.endswith("checkpoint_connector.py") and "dump" not in f.name for f in frames):
        what = next(iter(str(error).splitlines()), "")
        return f"the checkpoint cannot be restored: {type(error).__name__}: {what}\nuse another one"
    return None


def _own_code(error: Exception) -> str | None:
    """What fails in a file that is neither ours nor a library's, or in a transform that we call."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    what, frames = f"{type(error).__name__}: {lines[0]}", traceback.extract_tb(error.__traceback__)
    places = [(frame.filename, frame.lineno) for frame in frames]
    if "in DataLoader worker" in lines[0]:
        # The worker's traceback is in the message.
        what, places = lines[-1], re.findall(r'File "(.+?)", line (\d+)', str(error))
    if isinstance(error, SyntaxError):
        places.append((error.filename, error.lineno))
    for number, (name, line) in enumerate(reversed(places)):
        if Path(name).is_relative_to(Path(__file__).parent.parent):
            transform = Path(name).name == "dataset.py" and number
            return f"data.transforms: {what}\na transform or crop does not take these images" if transform else None
        if not name.startswith(("<", *LIBRARIES)):
            return f"{name}, line {line}: {what}\nthis is code of your own; --debug shows the whole traceback"
    return None


def check_trainer(settings: Mapping[str, Any]) -> None:
    """Refuses what Lightning takes, and fails at or misreads much later."""
    for key in ("accumulate_grad_batches", "limit_train_batches", "val_check_interval", "check_val_every_n_epoch"):
        value = settings[key]
        if isinstance(value, int | float) and value <= 0:
            way_out = "\nto train without validation give --trainer.limit_val_batches 0" if "val" in key else ""
            raise UserError(f"trainer.{key}: {value} is out of range, it must be above 0{way_out}")
    for key in ("max_epochs", "max_steps"):
        if settings[key] == 0:
            raise UserError(f"trainer.{key}: 0 trains nothing\nraise it, or give -1 for no such end")
