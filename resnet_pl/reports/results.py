"""results.json of a run: the results of all its tests."""

import json
import math
import warnings
from collections.abc import Container, Mapping
from itertools import chain, count
from pathlib import Path
from typing import Any

from resnet_pl.utils import UserError, atomic_write, lock

SINGLE_VIEW = "single view"
IDENTITY = ("protocol", "checkpoint", "data", "split")


def write_results(results: Mapping[str, Any], path: Path) -> None:
    """Adds the results of one test to the file.

    The first single-view test on the data of the training is stored at the top level; before that, the first test. A
    repeated test (same protocol, checkpoint, data and split) replaces its earlier result. Any other test is stored
    under a key that names the difference, for example `10-crop, last.ckpt`. A damaged file is renamed to `….bad`, with
    a warning.

    Args:
        results: numbers, strings, lists and dicts, also NumPy scalars and arrays; NaN is written as null.
        path: the file, `results.json`.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        # Without the lock, the later of two processes would remove the result of the other.
        with lock(path.with_name(f".{path.name}.lock"), f"the results in {path}", "writes"):
            _write(results, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}\nchoose another place") from error


def _write(results: Mapping[str, Any], path: Path) -> None:
    new = {**dict.fromkeys(IDENTITY), **as_json(results)}
    try:
        stored = read_results(path) if path.exists() else {}
    except UserError as error:
        stored, renamed = {}, path.replace(path.with_name(f"{path.name}.bad"))
        warnings.warn(f"{error} Renamed to {renamed}.", stacklevel=2)
    nested = {name: value for name, value in stored.items() if isinstance(value, dict) and value.keys() >= {*IDENTITY}}
    first = {name: value for name, value in stored.items() if name not in nested}
    tests = [*([{**dict.fromkeys(IDENTITY), **first}] if stored else []), *nested.values()]
    if any(_same(test, new) for test in tests):
        tests = [new if _same(test, new) else test for test in tests]
    else:
        tests.append(new)
    top = min(tests, key=_distance)  # the first of equal ones
    stored = dict(top)
    for test in tests:
        if test is not top:
            stored[_name(test, top, stored)] = test
    text = json.dumps(stored, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_write(path) as partial:
        # A lone surrogate, from a file name that is not UTF-8, becomes a JSON escape.
        partial.write_text(f"{text}\n", encoding="utf-8", errors="backslashreplace")


def read_results(path: Path) -> dict[str, Any]:
    """Returns the contents of a results file; raises UserError if it is missing, unreadable or damaged."""
    try:
        stored = as_json(json.loads(path.read_bytes()))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}. It is written by `test`.") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}).") from error
    if not isinstance(stored, dict):
        raise UserError(f"{path} is not valid JSON (not an object).")
    return stored


def as_json(value: Any) -> Any:
    """Returns a value with JSON types only; NaN and infinity become None."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(one.get(key) == other.get(key) for key in IDENTITY)


def _distance(test: Mapping[str, Any]) -> int:
    """How much a test differs from a single-view test of all images, on the data of the training: the ordinary one."""
    protocol = str(test.get("protocol"))
    if test.get("other_data"):
        return 3
    return 0 if protocol == SINGLE_VIEW else 1 if protocol.startswith(SINGLE_VIEW) else 2


def _name(test: Mapping[str, Any], top: Mapping[str, Any], used: Container[str]) -> str:
    """A key that names the differences of a test from the one at the top level."""
    shown = {**test, "checkpoint": Path(str(test["checkpoint"])).name}
    name = ", ".join(str(shown[key]) for key in IDENTITY if test[key] != top.get(key))
    return next(key for key in chain([name], (f"{name} ({number})" for number in count(2))) if key not in used)
