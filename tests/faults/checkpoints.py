"""Corrupted and malicious checkpoints are rejected with a short message, or have no effect; they execute nothing.

Corrupted bytes are always detected. Changed content in an intact file can cause an error within Lightning, which is
reported in two lines, too.
"""

from __future__ import annotations

import copy
import json
import os
import pickle
import random
import shutil
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.faults.forks import ProcessResult, run_command
from tests.faults.kills import CONFIGS

FIT = [
    *["fit", "--config", CONFIGS / "digits.yaml", "--model.backbone.depth", 8, "--trainer.max_epochs", 1],
    *["--trainer.limit_train_batches", 3, "--trainer.default_root_dir", "runs"],
]
JUNK: list[Any] = [None, -1, 10**12, float("nan"), "", "junk", "../../x", [], {}, [[]], {"a": {"b": 1}}, True, b"x"]


@dataclass
class Reference:
    """An intact checkpoint and its test results."""

    path: Path
    data: bytes
    content: dict[str, Any]
    results: dict[str, Any]


class Malicious:
    """An object that creates a file when it is unpickled.

    Args:
        mark: the file.
    """

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def prepare(folder: Path) -> Reference:
    """Trains the intact checkpoint and tests it."""
    fitted = run_command(FIT, folder)
    path = folder / "runs/digits/version_0/checkpoints/best.ckpt"
    if fitted.code or (tested := _test(path, folder / "test")).code:
        raise SystemExit(fitted.err or tested.err)
    content = torch.load(path, weights_only=True)
    return Reference(path, path.read_bytes(), content, _results(folder / "test"))


def trial(reference: Reference, rng: random.Random, folder: Path) -> dict[str, Any]:
    """Tests with a mutated checkpoint.

    Returns:
        `kind` and `detail` of the mutation; `outcome`: rejected, error, same or different results; `failed`: the
        reason or None.
    """
    folder.mkdir(parents=True)
    path, mark = folder / "a.ckpt", folder / "executed"
    kind = rng.choice([*BYTES, *BYTES, "entry changed", "malicious pickle"])
    detail = _write(kind, reference, rng, path, mark)
    result = _test(path, folder)
    row = {"kind": kind, "detail": detail, "failed": None}
    if result.code == 0:
        same = _results(folder) == reference.results
        row["outcome"] = "same" if same else "different"
        if not same and kind != "entry changed":
            row["failed"] = f"{detail}: different results without a message"
    elif result.rejected():
        row["outcome"], row["message"] = "rejected", result.message[0]
    elif kind == "entry changed" and result.unexpected_error():
        row["outcome"], row["message"] = "error", result.message[0]
    else:
        row["outcome"], row["failed"] = "failed", f"{detail}: exit code {result.code}: {result.err[-600:]}"
    if mark.exists():
        row["failed"] = f"{detail}: it was executed"
    shutil.rmtree(folder)
    return row


def _test(path: Path, folder: Path) -> ProcessResult:
    return run_command(["test", "--ckpt_path", path.resolve(), "--output", "."], folder, memory=8 * 2**30)


def _results(folder: Path) -> dict[str, Any]:
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return {key: results[key] for key in ("top1", "loss", "images", "per_class")}


# ------------------------------------------------------------------------------------ mutations
def _flip(data: bytearray, rng: random.Random, at: int, size: int) -> None:
    for _ in range(rng.choice([1, 1, 5])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _zero(data: bytearray, rng: random.Random, at: int, size: int) -> None:
    data[at : at + size] = bytes(len(data[at : at + size]))


def _noise(data: bytearray, rng: random.Random, at: int, size: int) -> None:
    data[at : at + size] = rng.randbytes(len(data[at : at + size]))


def _truncate(data: bytearray, rng: random.Random, at: int, size: int) -> None:
    del data[at:]


def _remove(data: bytearray, rng: random.Random, at: int, size: int) -> None:
    del data[at : at + size]


def _insert(data: bytearray, rng: random.Random, at: int, size: int) -> None:
    data[at:at] = rng.randbytes(size)


def _extend(data: bytearray, rng: random.Random, at: int, size: int) -> None:
    data.extend(rng.randbytes(size))


BYTES = {
    "bits flipped": _flip,
    "bytes zeroed": _zero,
    "bytes overwritten": _noise,
    "truncated": _truncate,
    "bytes removed": _remove,
    "bytes inserted": _insert,
    "bytes appended": _extend,
}


def _write(kind: str, reference: Reference, rng: random.Random, path: Path, mark: Path) -> str:
    """Writes the mutated checkpoint; returns a description of the mutation."""
    if kind in BYTES:
        data = bytearray(reference.data)
        # Near the end are the archive's directory and padding, where damage is hardest to detect.
        at = rng.choice([rng.randrange(len(data)), len(data) - rng.randrange(1, 4000)])
        size = rng.choice([1, 16, 512, 50_000])
        BYTES[kind](data, rng, at, size)
        path.write_bytes(data)
        return f"{kind} at byte {at}, {size} bytes"
    content = copy.deepcopy(reference.content)
    if kind == "entry changed":
        detail = _corrupt(content, rng)
        torch.save(content, path)
        return detail
    form = rng.choice(["entry", "archive", "pickle", "legacy"])
    malicious = Malicious(mark)
    if form == "entry":
        content[rng.choice([*content, "more"])] = malicious
    if form == "pickle":
        path.write_bytes(pickle.dumps(malicious))
    elif form == "archive":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(malicious))
            archive.writestr("archive/version", "3")
    else:
        content["hyper_parameters"] = malicious if form == "legacy" else content["hyper_parameters"]
        torch.save(content, path, _use_new_zipfile_serialization=form != "legacy")
    return f"malicious {form}"


def _corrupt(content: dict[str, Any], rng: random.Random) -> str:
    """Removes or replaces a random entry of a checkpoint; returns a description."""
    path, place = [], content
    while True:
        key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
        path.append(str(key))
        inner = place[key]
        if not isinstance(inner, dict | list) or not inner or rng.random() < 0.4:
            break
        place = inner
    if rng.random() < 0.5:
        del place[key]
        return f"{'.'.join(path)} removed"
    place[key] = rng.choice(JUNK)
    return f"{'.'.join(path)} = {place[key]!r}"


def summary(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Lines of Markdown with the figures."""
    heads = ["Rejected, 1 or 2 lines", "Error in 2 lines", "No effect", "Different results", "Failed"]
    lines = [f"| Corruption | Trials | {' | '.join(heads)} |", "| --- " * (len(heads) + 2) + "|"]
    for kind in [*BYTES, "entry changed", "malicious pickle"]:
        of_kind = [row for row in rows if row["kind"] == kind]
        outcomes = Counter(row["outcome"] for row in of_kind)
        failed = sum(row["failed"] is not None for row in of_kind)
        cells = [len(of_kind), *(outcomes[name] for name in ("rejected", "error", "same", "different")), failed]
        lines.append(f"| {kind} | {' | '.join(f'{cell:,}' for cell in cells)} |")
    executed = sum("executed" in (row["failed"] or "") for row in rows)
    return [*lines, "", f"Malicious objects executed: {executed}."]
