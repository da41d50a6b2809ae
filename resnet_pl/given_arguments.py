"""Which arguments of a parsed configuration are passed on: those that are given, and defaults that YAML can hold."""

from __future__ import annotations

import inspect
import json
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from pydoc import ErrorDuringImport, locate
from typing import Any

from jsonargparse import ArgumentParser, Namespace

# Arguments of the Trainer that are a number of batches, or a fraction of all.
BATCHES = [f"limit_{stage}_batches" for stage in ("train", "val", "test", "predict")]
BATCHES += ["overfit_batches", "val_check_interval"]
# What jsonargparse writes in the place of a value that it cannot write.
NOT_WRITTEN = "Unable to serialize instance"


def parse(parser: ArgumentParser, args: Sequence[str]) -> Namespace:
    """Parses a command line and drops defaults that must not be passed on.

    1. The parser adds defaults of a signature that a function may pass its `**kwargs` to. The function can have other
       defaults: torchvision's wide ResNets do. Such arguments are passed only if they are given.
    2. A default without a form in YAML, such as a `functools.partial`, would be text in config.yaml and in checkpoints.

    Raises:
        ArgumentError: a value is wrong.
    """
    config = parser.parse_args(args)
    if any(_passes_on(section) for section in _sections(config)):
        # With the classes first: without defaults, the options of a class have no class.
        classes = [f"--{key}={path}" for key in ("model", "data") if (path := _class_path(config.get(key)))]
        _keep_given(config, parser.parse_args([*classes, *args], defaults=False))
    if any(not isinstance(value, str | int | float | None) for value in _leaves(config)):
        with warnings.catch_warnings(action="ignore"):
            written = json.loads(parser.dump(config, format="json", skip_validation=True, skip_none=False))
        _drop_not_written(config, written)
    return config


def keep_whole_numbers(config: Any, given: Callable[[str], Any]) -> None:
    """Restores numbers of batches that were read as fractions: 1 is one batch, 1.0 is all of them.

    Python stores `Optional[Union[int, float]]` once in a process, in the order of its first use. If another library has
    written `Union[float, int]` before, jsonargparse reads 1 as 1.0.

    Args:
        config: the Trainer's arguments, a dictionary or a Namespace.
        given: returns what the user has written for an argument.
    """
    for name in BATCHES:
        if isinstance(config.get(name), float) and re.fullmatch(r"\d+", text := str(given(name))):
            config[name] = int(text)


def names_other_packages(config: Namespace) -> bool:
    """Whether a model or data is of another package than this one, Lightning and torch."""
    sections = [section for key in ("model", "data") for section in _sections(config.get(key))]
    known = ("resnet_pl", "lightning", "torch", "torchmetrics")
    return any(str(_class_path(section)).partition(".")[0] not in known for section in sections)


def _class_path(section: Any) -> str | None:
    return section.get("class_path") if isinstance(section, Namespace) else None


def _sections(value: Any) -> Iterator[Namespace]:
    """Yields all sections of a configuration that name a class or a function."""
    if isinstance(value, Namespace) and "class_path" in value:
        yield value
    for item in _items(value):
        yield from _sections(item)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Namespace | dict | list):
        for item in _items(value):
            yield from _leaves(item)
    else:
        yield value


def _items(value: Any) -> list[Any]:
    if isinstance(value, Namespace | dict):
        return list(vars(value).values() if isinstance(value, Namespace) else value.values())
    return value if isinstance(value, list) else []


def _passes_on(section: Namespace) -> set[str]:
    """Returns the arguments of a section that are behind the `**kwargs` of a function of another package."""
    path = str(_class_path(section))
    try:
        function = None if path.startswith("resnet_pl.") else locate(path)  # the defaults of our own are right
    except ErrorDuringImport:
        function = None
    if not inspect.isfunction(function):
        return set()
    return set(vars(section.get("init_args") or Namespace())) - inspect.signature(function).parameters.keys()


def _keep_given(config: Any, given: Any) -> None:
    """Removes what functions would pass on and is not given."""
    known = vars(given) if isinstance(given, Namespace) else {}
    if isinstance(config, Namespace):
        if "class_path" in config:
            arguments = vars(known.get("init_args") or Namespace())
            for name in _passes_on(config) - arguments.keys():
                del config.init_args[name]
        for name, item in vars(config).items():
            _keep_given(item, known.get(name))
    elif isinstance(config, list):
        others: list[Any] = given if isinstance(given, list) and len(given) == len(config) else [None] * len(config)
        for item, other in zip(config, others, strict=True):
            _keep_given(item, other)


def _drop_not_written(config: Any, written: Any) -> None:
    """Removes values that have no form in YAML: they are defaults, as what is given comes from YAML."""
    if isinstance(config, Namespace) and isinstance(written, dict):
        for name, item in list(vars(config).items()):
            text = written.get(name)
            if isinstance(text, str) and not isinstance(item, str) and text.startswith(NOT_WRITTEN):
                del config[name]
            else:
                _drop_not_written(item, text)
    elif isinstance(config, list) and isinstance(written, list) and len(config) == len(written):
        for item, text in zip(config, written, strict=True):
            _drop_not_written(item, text)
