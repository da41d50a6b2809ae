"""Hyperparameters and objects that were built in Python as plain types, as in a YAML file."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from dataclasses import asdict, is_dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule

from resnet_pl._compat import INSTANTIATOR
from resnet_pl._renamed import upgrade_path


def to_plain_hparams(hparams: MutableMapping[str, Any]) -> None:
    """Replaces objects in hyperparameters, in place, by plain types as in a YAML file.

    A module with `init_args`, a class and a `functools.partial` of a class become a `class_path` and `init_args`. Other
    objects are removed, and have to be passed to `load_from_checkpoint` again.
    """
    plain = {}
    for name, value in hparams.items():
        with suppress(TypeError):
            plain[name] = _to_plain(value)
    if "backbone" in plain:
        plain |= INSTANTIATOR
    hparams.clear()
    hparams.update(plain)


def _to_plain(value: Any) -> Any:
    """Returns a value as plain types, which `weights_only=True` loads; raises TypeError if there are none for it."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str | Path):
        return str(value)
    if isinstance(value, int | float):
        # Not a subclass, such as numpy's numbers.
        return int(value) if isinstance(value, int) else float(value)
    if isinstance(value, list | tuple):
        return [_to_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _to_plain(item) for key, item in value.items()}
    if isinstance(value, type):
        return {"class_path": _import_path(value)}
    if isinstance(value, partial) and isinstance(value.func, type) and not value.args:
        return {"class_path": _import_path(value.func), "init_args": _to_plain(value.keywords)}
    if (init_args := getattr(value, "init_args", None)) is not None:
        return {"class_path": _import_path(type(value)), "init_args": _to_plain(init_args)}
    if is_dataclass(value) and not isinstance(value, type):
        return _to_plain(asdict(value))
    raise TypeError(type(value).__name__)


def _import_path(cls: type) -> str:
    """Returns the shortest import path of a class; raises TypeError if a later command cannot import it."""
    if cls.__module__ == "__main__" or "<" in cls.__qualname__:
        raise TypeError(cls.__name__)
    packages = accumulate(cls.__module__.split("."), "{}.{}".format)
    exported = (name for name in packages if getattr(sys.modules.get(name), cls.__qualname__, None) is cls)
    return upgrade_path(f"{next(exported, cls.__module__)}.{cls.__qualname__}")


def describe(section: str, built: LightningModule | LightningDataModule) -> tuple[dict[str, Any], list[str]]:
    """Returns the configuration of an object that was built in Python, from its hyperparameters.

    Args:
        section: `model` or `data`.
        built: the object.

    Returns:
        The section, and the dotted names of the arguments that it lacks. If an object like this cannot be built from
        the section, because the class or a required argument has no plain form, the only name is that of the section.
    """
    parameters = inspect.signature(type(built)).parameters
    accepts_others = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    hparams = {name: value for name, value in built.hparams.items() if not name.startswith("_")}
    to_plain_hparams(hparams)
    init_args = {k: v for k, v in hparams.items() if (k in parameters or accepts_others) and not k.startswith("_")}
    lacking, complete = [], True
    for name, parameter in parameters.items():
        value = getattr(built, name, None)
        # The default optimizer is a function. It is the default again when the object is built again.
        is_default = hasattr(built, name) and value is parameter.default
        if name in init_args or is_default or parameter.kind is parameter.VAR_KEYWORD:
            continue
        lacking.append(f"{section}.{name}")
        if parameter.default is parameter.empty:
            complete = False
            init_args[name] = {"class_path": _qualified_name(type(value))}  # a record of what it was
    with suppress(TypeError):
        path = _import_path(type(built))
        return {"class_path": path, "init_args": init_args}, lacking if complete else [section]
    return {"class_path": _qualified_name(type(built)), "init_args": init_args}, [section]


def _qualified_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
