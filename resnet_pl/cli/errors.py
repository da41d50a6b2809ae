"""The parser's messages and the most common errors of torch and Lightning, in a line or two."""

from __future__ import annotations

import difflib
import inspect
import re
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path
from pydoc import locate

from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.optim import Optimizer

from resnet_pl import models
from resnet_pl.data import BatchTransform, Crop, ImageDataModule

LIBRARIES = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))
# What can be named by its last word alone.
NAMEABLE = (ImageDataModule, BatchTransform, Crop, Callback, Logger, Optimizer)

# What jsonargparse puts around the lines that matter.
WRAPPING = (
    "Does not validate", "Subtypes:", "Errors:", "Given value", "Problem with given class_path", "Expected a path",
    "Expected a <class 'NoneType'>", "Not a valid subclass", "Subclass types", "a class path", "a dict with",
)  # fmt: skip
KEY = re.compile(r'Parser key "([\w.+]+)":?')
UNKNOWN_OPTION = re.compile(r"(?:[Oo]ption '(?:init_args\.)?|[Kk]ey '|unrecognized arguments: --)([\w.]+)")
CLASS_PATH = re.compile(r"class_path[ =]'([\w.]+)'")
UNKNOWN_CLASS = re.compile(r"Expected a dot import path string: (\S+)")
# Type and message of an error, and what is said instead.
COMMON = {
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


def parser_message(message: str, options: Iterable[str] = ()) -> str:
    """What jsonargparse says of a wrong command line or configuration: the key, and the lines that matter.

    Args:
        message: its message, of any length.
        options: the options of the command line, for a suggestion.
    """
    key = ".".join(dict.fromkeys(KEY.findall(message)))
    lines = [KEY.sub("", line).strip().removeprefix("- ") for line in message.splitlines()]
    # Of what a class for a callable is given, one line says everything, the whole value at its end.
    lines = [line.rpartition("callable class:")[2].partition(". Got value: Namespace")[0].strip() for line in lines]
    lines = [line for line in lines if line and not line.startswith(WRAPPING)]
    lines = list(dict.fromkeys(lines)) or [message.partition("\n")[0]]
    hint = ""
    if found := UNKNOWN_OPTION.search(message):
        before, rest = message[: found.start()], message[found.start() :].partition("\n")[0]
        owner = CLASS_PATH.findall(rest)[:1] or CLASS_PATH.findall(before)
        known = arguments_of(owner[-1]) if owner else [option.rpartition(".")[2] for option in options]
        hint = _near(found[1], known)
    elif all(unknown := [UNKNOWN_CLASS.match(line) for line in lines]):
        name = unknown[0][1]
        names = [cls.__name__ for base in NAMEABLE for cls in _subclasses(base)]
        lines = [f"there is no {name}"]
        hint = _near(name, [*names, *models.NETWORKS]) or "\ngive the full path, such as package.module.Class"
    what = "\n".join(lines[:2])
    return f"{key}: {what}{hint}" if key else f"{what}{hint}"


def common_message(error: Exception) -> str | None:
    """What to say of an error of torch or Lightning; None for one that is not known."""
    place = getattr(error, "filename", None) or next(iter(getattr(error, "__notes__", [])), None)
    for pattern, message in COMMON.items():
        if re.search(pattern, f"{type(error).__name__}: {error}", re.DOTALL):
            return message.format(place=f": {place} cannot be written" if place else "")
    if isinstance(error, MisconfigurationException):
        return f"trainer: {str(error).splitlines()[0]}"
    return None


def unexpected_message(error: Exception) -> str:
    """Two lines on any other error: what it is, and the innermost line that is not a library's."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
    # The message of an error in a worker process is that process's traceback.
    what = lines[-1] if "in DataLoader worker" in lines[0] else lines[0]
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(("<", *LIBRARIES))] or frames[-1:]
    where = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {what}{where}\nadd --debug to see the whole traceback"


def arguments_of(class_path: str) -> list[str]:
    """Names of the arguments of a class, those of its parents included, or of a function."""
    if not callable(named := locate(class_path)):
        return []
    found = list(inspect.signature(named).parameters)
    if not isinstance(named, type) and "kwargs" in found:
        # A function that passes on its arguments, to the class it returns.
        named = inspect.signature(named, eval_str=True).return_annotation
    for owner in getattr(named, "__mro__", ()):
        found += inspect.signature(owner.__init__).parameters
    return [name for name in dict.fromkeys(found) if name not in ("self", "args", "kwargs")]


def _subclasses(base: type) -> Iterable[type]:
    for cls in base.__subclasses__():
        yield cls
        yield from _subclasses(cls)


def _near(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word.rpartition(".")[2], [name for name in known if not name.startswith("_")], n=1)
    return f", did you mean {near[0]}?" if near else ""
