"""Which classes and functions the configuration in a checkpoint may name.

Loading a checkpoint runs no code of it (`weights_only=True`). But its configuration names classes, and jsonargparse
imports and calls them. It imports a string only if that is a dotted name, for an argument whose type is a class, a
callable, a type or a module; the string can also be YAML text that contains one. The types depend on the classes, so
nothing is assumed about the place of a name:

1. `check_names` looks at every dotted name in every string, before other code is imported. A name of the standard
   library is refused, also by way of a library in `TRUSTED` (`torch.os.system`). Other packages are printed: importing
   them runs their code.
2. `check_objects` looks at what the names stand for, after parsing, before anything is called. An object of the
   standard library is refused, by whatever name it was reached. The libraries in `TRUSTED` also contain functions and
   classes that start programs; of these libraries only `KINDS` are accepted.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, get_type_hints

import yaml
from lightning.fabric.plugins import ClusterEnvironment
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import CheckpointIO, LayerSync, Precision
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import Strategy
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import Dataset, Sampler
from torchmetrics import Metric

from resnet_pl.utils import UserError, rank_zero_print

# Libraries that are imported without a note.
TRUSTED = frozenset({"lightning", "resnet_pl", "timm", "torch", "torchmetrics", "torchvision"})
STANDARD_LIBRARY = sys.stdlib_module_names | {"test"}  # Python's own tests, which that list does not have
# What a configuration may take from the trusted libraries: classes of these kinds, and functions that return them.
KINDS = (
    *(nn.Module, Optimizer, LRScheduler, Metric, LightningDataModule, Dataset, Sampler, Callback, Logger, Profiler),
    *(Strategy, Accelerator, Precision, ClusterEnvironment, CheckpointIO, LayerSync),
)  # fmt: skip
# Parts of a file's path have a slash or a hyphen next to them: they are not import paths.
DOTTED_NAME = re.compile(r"(?<![\w./\\-])[^\W\d]\w*(?:\.[^\W\d]\w*)+(?![\w/\\-])")


def check_names(config: Any, path: Path) -> None:
    """Checks all strings of a checkpoint's configuration, without an import that could run code.

    Args:
        config: the configuration and hyperparameters, plain types.
        path: the checkpoint, for messages.

    Raises:
        UserError: a string names an object of the standard library.
    """
    names = refuse_names(config, path)
    foreign = {name.partition(".")[0] for name in names} - TRUSTED - STANDARD_LIBRARY
    if found := sorted(root for root in foreign if _is_importable(root)):
        rank_zero_print(f"note: {path} uses code of {', '.join(found)}")


def refuse_names(config: Any, path: Path) -> list[str]:
    """Returns the dotted names in a configuration; raises UserError if one is of the standard library."""
    names = sorted({name for text in _strings(config) for name in DOTTED_NAME.findall(text)})
    for name in names:
        root = name.partition(".")[0]
        if (root in STANDARD_LIBRARY and _exists(name)) or (root in TRUSTED and _leads_to_standard_library(name)):
            raise _refusal(path, name)
    return names


def check_objects(config: Any, path: Path) -> None:
    """Checks what the names in a parsed configuration stand for, before anything is called.

    Args:
        config: the parsed configuration as nested mappings and lists.
        path: the checkpoint, for messages.

    Raises:
        UserError: a class or function is of the standard library, or of a trusted library but not of the known kinds.
    """
    for name, value in _objects(config):
        if not _is_accepted(value):
            raise _refusal(path, name)


def _refusal(path: Path, name: str) -> UserError:
    return UserError(
        f"{path} is refused: its configuration names {name}, which could execute any code\n"
        f"if you trust the file, use its weights only: --model.weights {path}"
    )


def _strings(value: Any) -> Iterator[str]:
    """Yields all strings: keys and values, and those in a text that is YAML."""
    if isinstance(value, str):
        yield value
        # In double quotes, and only there, YAML has escapes that can hide a name.
        with suppress(yaml.YAMLError, ValueError):
            # This loader leaves all scalars as text: a wrong date, for example, is not an error.
            if '"' in value and (inner := yaml.load(value, yaml.BaseLoader)) != value:
                yield from _strings(inner)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(key)
            # Names of classes are text. Where code asks for something else, `check_objects` sees it.
            if key != "class_names":
                yield from _strings(item)
    elif isinstance(value, Iterable):
        for item in value:
            yield from _strings(item)


def _exists(name: str) -> bool:
    """Whether the standard library has an object of this name: `email.message`, but not `email.jpg`.

    Some modules act when they are imported, such as `antigravity`. Those that are not loaded yet are only read.
    """
    module, *attributes = name.split(".")
    spec = find_spec(module)
    while spec is not None and attributes and spec.submodule_search_locations is not None:
        inner = PathFinder.find_spec(f"{module}.{attributes[0]}", spec.submodule_search_locations)
        if inner is None:
            break
        module, spec = f"{module}.{attributes.pop(0)}", inner
    if spec is None or not attributes:
        return spec is not None
    if module in sys.modules:
        return hasattr(sys.modules[module], attributes[0])
    source = getattr(spec.loader, "get_source", lambda name: None)(module)
    return source is None or "import *" in source or attributes[0] in re.findall(r"\w+", source)


def _leads_to_standard_library(name: str) -> bool:
    """Whether a name of a trusted library is an object of the standard library, which that library has imported."""
    with suppress(Exception):  # it does not exist
        return any(_module(value).partition(".")[0] in STANDARD_LIBRARY for _, value in _objects([_resolve(name)]))
    return False


def _resolve(name: str) -> Any:
    """Returns the object that jsonargparse imports: of `torchvision.models.alexnet` the function, not the module."""
    parent, _, last = name.rpartition(".")
    try:
        return getattr(resolve_name(parent), last)
    except AttributeError:  # a module that its package does not import
        return resolve_name(name)


def _is_importable(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # `__main__` has no specification
        return module in sys.modules


def _objects(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the classes, functions and modules in a parsed configuration, each with its name."""
    if isinstance(value, Mapping):
        path = value.get("class_path")
        if isinstance(path, str) and DOTTED_NAME.fullmatch(path):
            # Imported when it was parsed; for an argument of any type, this is what jsonargparse imports later.
            with suppress(ImportError, AttributeError):
                yield path, _resolve(path)
        for item in value.values():
            yield from _objects(item)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from _objects(item)
    elif isinstance(value, partial):
        yield from _objects([value.func, *value.args, *value.keywords.values()])
    elif inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value):
        yield name or f"{_module(value)}.{getattr(value, '__qualname__', '')}".rstrip("."), value


def _module(value: Any) -> str:
    return value.__name__ if inspect.ismodule(value) else str(getattr(value, "__module__", None) or "")


def _is_accepted(value: Any) -> bool:
    module = _module(value)
    root = module.partition(".")[0]
    if root == "" or root in STANDARD_LIBRARY or inspect.ismodule(value):
        return False
    if root not in TRUSTED or (inspect.isclass(value) and root == "resnet_pl") or module.startswith("torch.nn."):
        return True
    if not inspect.isclass(value):
        with suppress(Exception):  # an annotation can be a name that does not exist at run time
            value = get_type_hints(value).get("return")
    return inspect.isclass(value) and issubclass(value, KINDS)
