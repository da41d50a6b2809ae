"""How jsonargparse reads our configurations: short names of networks, names of earlier versions, short messages."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence
from pydoc import locate
from typing import Any

import yaml
from jsonargparse import get_loader, set_dumper, set_loader
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
from torch.optim import Optimizer

from resnet_pl import models
from resnet_pl._renamed import upgrade_config, upgrade_value
from resnet_pl.data import BatchTransform, Crop, ImageDataModule
from resnet_pl.run_dir import to_yaml
from resnet_pl.utils import similar

# jsonargparse's name for the way configurations are read here.
PARSER_MODE = "resnet_pl"


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


def full_name(name: Any) -> Any:
    """The path of one of our networks, which are functions: jsonargparse finds only classes by their name alone."""
    return f"resnet_pl.models.{name}" if isinstance(name, str) and name in models.NETWORKS else name


def _expand(value: Any, key: str = "") -> Any:
    """Writes the names of our networks in full, wherever a backbone or a class is named."""
    if isinstance(value, dict):
        return {name: _expand(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_expand(item) for item in value]
    return full_name(value) if key in ("backbone", "class_path") else value


_load_yaml = get_loader("yaml")


def _load(text: str) -> Any:
    value = _load_yaml(text)
    return _expand(upgrade_config(value, "configuration") if isinstance(value, dict) else upgrade_value(value))


set_loader(PARSER_MODE, _load, exceptions=(yaml.YAMLError,))
set_dumper(PARSER_MODE, to_yaml)


def expand_arguments(args: Sequence[str]) -> list[str]:
    """A command line with today's class paths, and the names of our networks in full: `--model.backbone resnet50`."""
    expanded: list[str] = []
    for word in args:
        key, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        named = key if equals else expanded[-1] if expanded else ""
        value = upgrade_value(value, named.rpartition(".")[2].rstrip("+"))
        if named.endswith((".backbone", "--backbone", ".class_path")):
            value = full_name(value)
        expanded.append(f"{key}{equals}{value}")
    return expanded


# ---------------------------------------------------------------------------------------- messages
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
    near = similar(word.rpartition(".")[2], [name for name in known if not name.startswith("_")])
    return f", did you mean {near[0]}?" if near else ""
