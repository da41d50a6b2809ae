"""The results file of a run: every test that was made, none overwritten by another."""

import json
import math
import warnings
from collections.abc import Mapping
from itertools import chain, count
from pathlib import Path
from typing import Any

from resnet_pl.errors import UserError
from resnet_pl.files import replacing

IDENTITY = ("protocol", "checkpoint", "data", "split")


def write_results(results: Mapping[str, Any], path: Path) -> None:
    """Add the results of one test to the file.

    The first test lies at the top level. The same test again (same protocol, checkpoint, data and split) replaces
    itself; any other goes under a key named after what differs, such as `10-crop, last.ckpt`. A file that is not JSON
    is kept beside the new one as `….bad`, with a warning.

    Args:
        results: numbers, text, lists and dicts, with NumPy scalars and arrays among them; NaN is written as null.
        path: the file, such as `results.json`.

    Raises:
        UserError: if the file cannot be read or written.
    """
    new = {**dict.fromkeys(IDENTITY), **_plain(results)}
    try:
        stored = _read(path) if path.exists() else {}
    except ValueError as error:
        stored = {}
        warnings.warn(f"{path} is not whole JSON ({error}) and is kept as {_set_aside(path)}.", stacklevel=2)
    others = {name: value for name, value in stored.items() if _is_test(value)}
    if not stored or _identity(stored) == _identity(new):
        stored = {**new, **others}
    else:
        stored[_name(new, stored)] = new
    text = json.dumps(stored, indent=2, ensure_ascii=False, allow_nan=False)
    with replacing(path) as partial:
        # Half a character pair, as from a file name that is not UTF-8, becomes the escape that JSON has for it.
        partial.write_text(f"{text}\n", encoding="utf-8", errors="backslashreplace")


def read_results(path: Path) -> dict[str, Any]:
    """Read a results file.

    Raises:
        UserError: if the file is missing, unreadable or damaged.
    """
    try:
        return _read(path)
    except ValueError as error:
        raise UserError(f"{path} is not whole JSON ({error}). Test again to write it anew.") from error


def _read(path: Path) -> dict[str, Any]:
    """Raises: ValueError if the text is not one JSON object."""
    try:
        stored = _plain(json.loads(path.read_bytes()))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}. `test` writes it.") from error
    if not isinstance(stored, dict):
        raise ValueError("not an object")
    return stored


def _set_aside(path: Path) -> Path:
    """Move the file to the first free name among `….bad`, `….bad2` and so on."""
    names = (path.with_name(f"{path.name}.bad{number if number > 1 else ''}") for number in count(1))
    return path.rename(next(name for name in names if not name.exists()))


def _plain(value: Any) -> Any:
    """The value in the types of JSON."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _is_test(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() >= set(IDENTITY)


def _identity(results: Mapping[str, Any]) -> tuple:
    return tuple(results.get(key) for key in IDENTITY)


def _name(new: Mapping[str, Any], stored: Mapping[str, Any]) -> str:
    """The key of this test: the one it has already, or a free one that says in what it differs from the first."""
    for key, value in stored.items():
        if _is_test(value) and _identity(value) == _identity(new):
            return key
    differing = [_label(key, new[key]) for key in IDENTITY if new[key] != stored.get(key)]
    name = ", ".join(differing)
    free = chain([name], (f"{name} ({number})" for number in count(2)))
    return next(key for key in free if key not in stored)


def _label(key: str, value: Any) -> str:
    return Path(str(value)).name if key == "checkpoint" else str(value)
