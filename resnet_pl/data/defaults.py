"""Defaults of constructor arguments that are objects, such as a list of transforms.

A class names them in its attribute `defaults`. The constructor uses them where the argument is None. The command line
puts them into the configuration, so that config.yaml contains them and `+` appends to them.
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any


def build_default(cls: type, name: str) -> Any:
    """Returns a new object, or list of objects, for an argument that is None; None if the class has no default for it.

    Args:
        cls: the class; `defaults` of the nearest base class that has the argument is used.
        name: name of the argument.
    """
    default = next((vars(owner)["defaults"][name] for owner in cls.__mro__ if name in _defaults(owner)), None)
    if default is None:
        return None
    return [make() for make in default] if isinstance(default, list) else default()


def describe_defaults(cls: type) -> dict[str, Any]:
    """Returns the defaults of a class as in a configuration file: each object as `class_path` and `init_args`.

    Where the constructor of a subclass redefines the argument, that constructor decides what None means.
    """
    found: dict[str, Any] = {}
    redefined: set[str] = set()
    for owner in cls.__mro__:
        new = {name: default for name, default in _defaults(owner).items() if name not in found.keys() | redefined}
        found |= {
            name: [_describe(make) for make in default] if isinstance(default, list) else _describe(default)
            for name, default in new.items()
        }
        if "__init__" in vars(owner):
            redefined |= inspect.signature(owner).parameters.keys()
    return found


def _defaults(owner: type) -> dict[str, Any]:
    """The defaults that this class itself names."""
    return vars(owner).get("defaults", {})


def _describe(make: Any) -> dict[str, Any]:
    cls, init_args = (make.func, make.keywords) if isinstance(make, partial) else (make, {})
    return {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": dict(init_args)}
