"""The results file of a run: every test that was made, none overwritten by another."""

import json
import math
import warnings
from collections.abc import Mapping
from itertools import chain, count
from pathlib import Path
from typing import Any

from resnet_pl.utils import UserError, atomic_write

IDENTITY = ("protocol", "checkpoint", "data", "split")


def write_results(results: Mapping[str, Any], path: Path) -> None:
    """Add the results of one test to the file.

    The first test lies at the top level. The same test again (same protocol, checkpoint, data and split) replaces
    itself; any other goes under a key named after what differs, such as `10-crop, last.ckpt`. A file that is not JSON
    is kept as `….bad`, with a warning.

    Args:
        results: numbers, text, lists and dicts, with NumPy scalars and arrays among them; NaN is written as null.
        path: the file, such as `results.json`.

    Raises:
        UserError: if the file cannot be written.
    """
    new = {**dict.fromkeys(IDENTITY), **_plain(results)}
    try:
        stored = read_results(path) if path.exists() else {}
    except UserError as error:
        stored, aside = {}, path.replace(path.with_name(f"{path.name}.bad"))
        warnings.warn(f"{error} It is kept as {aside}.", stacklevel=2)
    others = {name: value for name, value in stored.items() if isinstance(value, dict) and value.keys() >= {*IDENTITY}}
    if not stored or _same(stored, new):
        stored = {**new, **others}
    else:
        stored[_name(new, stored, others)] = new
    text = json.dumps(stored, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_write(path) as partial:
        # Half a character pair, as from a file name that is not UTF-8, becomes the escape that JSON has for it.
        partial.write_text(f"{text}\n", encoding="utf-8", errors="backslashreplace")


def read_results(path: Path) -> dict[str, Any]:
    """Read a results file; raises UserError if it is missing, unreadable or damaged."""
    try:
        stored = _plain(json.loads(path.read_bytes()))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}. `test` writes it.") from error
    except ValueError as error:
        raise UserError(f"{path} is not whole JSON ({error}).") from error
    if not isinstance(stored, dict):
        raise UserError(f"{path} is not whole JSON (not an object).")
    return stored


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


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(one.get(key) == other.get(key) for key in IDENTITY)


def _name(new: Mapping[str, Any], first: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]]) -> str:
    """The key of this test: the one it has already, or a free one that says in what it differs from the first."""
    shown = {**new, "checkpoint": Path(str(new["checkpoint"])).name}
    name = ", ".join(str(shown[key]) for key in IDENTITY if new[key] != first.get(key))
    free = (key for key in chain([name], (f"{name} ({number})" for number in count(2))) if key not in first)
    return next((key for key, other in others.items() if _same(other, new)), None) or next(free)
