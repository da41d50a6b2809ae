"""Damaged and hostile checkpoints: refused in a line or two, or harmless; nothing in them is ever executed.

Bytes that were damaged are always noticed. Content that was changed and saved again can be an error within Lightning,
which is told in two lines too.
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

from tests.faults.forks import Ended, command
from tests.faults.kills import CONFIGS

FIT = [
    *["fit", "--config", CONFIGS / "digits.yaml", "--model.backbone.depth", 8, "--trainer.max_epochs", 1],
    *["--trainer.limit_train_batches", 3, "--trainer.default_root_dir", "runs"],
]
JUNK: list[Any] = [None, -1, 10**12, float("nan"), "", "junk", "../../x", [], {}, [[]], {"a": {"b": 1}}, True, b"x"]


@dataclass
class Reference:
    """A sound checkpoint and what its test gives."""

    path: Path
    data: bytes
    content: dict[str, Any]
    results: dict[str, Any]


class Hostile:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def prepare(folder: Path) -> Reference:
    """Trains the checkpoint and tests it."""
    ended = command(FIT, folder)
    path = folder / "runs/digits/version_0/checkpoints/best.ckpt"
    if ended.code or (tested := _test(path, folder / "test")).code:
        raise SystemExit(ended.err or tested.err)
    content = torch.load(path, weights_only=True)
    return Reference(path, path.read_bytes(), content, _results(folder / "test"))


def trial(reference: Reference, rng: random.Random, folder: Path) -> dict[str, Any]:
    """Tests with a mutated checkpoint.

    Returns:
        `kind` of the mutation; `outcome`: refused, an error, same or other results; `failed`, in words or None.
    """
    folder.mkdir(parents=True)
    path, mark = folder / "a.ckpt", folder / "executed"
    kind = rng.choice([*BYTES, *BYTES, "content", "hostile"])
    detail = _write(kind, reference, rng, path, mark)
    ended = _test(path, folder)
    found = {"kind": kind, "detail": detail, "failed": None}
    if ended.code == 0:
        same = _results(folder) == reference.results
        found["outcome"] = "same" if same else "other"
        if not same and kind != "content":
            found["failed"] = f"{detail}: other results, and not a word"
    elif ended.told():
        found["outcome"], found["said"] = "refused", ended.message[0]
    elif kind == "content" and ended.unexpected():
        found["outcome"], found["said"] = "error", ended.message[0]
    else:
        found["outcome"], found["failed"] = "failed", f"{detail}: exit code {ended.code}: {ended.err[-600:]}"
    if mark.exists():
        found["failed"] = f"{detail}: it was executed"
    shutil.rmtree(folder)
    return found


def _test(path: Path, folder: Path) -> Ended:
    return command(["test", "--ckpt_path", path.resolve(), "--output", "."], folder, memory=8 * 2**30)


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


def _cut_out(data: bytearray, rng: random.Random, at: int, size: int) -> None:
    del data[at : at + size]


def _insert(data: bytearray, rng: random.Random, at: int, size: int) -> None:
    data[at:at] = rng.randbytes(size)


def _extend(data: bytearray, rng: random.Random, at: int, size: int) -> None:
    data.extend(rng.randbytes(size))


BYTES = {
    "bits flipped": _flip,
    "zeroed": _zero,
    "overwritten": _noise,
    "truncated": _truncate,
    "cut out": _cut_out,
    "inserted": _insert,
    "extended": _extend,
}


def _write(kind: str, reference: Reference, rng: random.Random, path: Path, mark: Path) -> str:
    """Writes the mutated checkpoint; returns what was done, in words."""
    if kind in BYTES:
        data = bytearray(reference.data)
        # Near the end are the archive's directory and the padding, which is where damage hides.
        at = rng.choice([rng.randrange(len(data)), len(data) - rng.randrange(1, 4000)])
        size = rng.choice([1, 16, 512, 50_000])
        BYTES[kind](data, rng, at, size)
        path.write_bytes(data)
        return f"{kind} at byte {at}, {size} bytes"
    content = copy.deepcopy(reference.content)
    if kind == "content":
        detail = _spoil(content, rng)
        torch.save(content, path)
        return detail
    way = rng.choice(["entry", "whole", "bare", "legacy"])
    evil = Hostile(mark)
    if way == "entry":
        content[rng.choice([*content, "more"])] = evil
    if way == "bare":
        path.write_bytes(pickle.dumps(evil))
    elif way == "whole":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(evil))
            archive.writestr("archive/version", "3")
    else:
        content["hyper_parameters"] = evil if way == "legacy" else content["hyper_parameters"]
        torch.save(content, path, _use_new_zipfile_serialization=way != "legacy")
    return f"hostile {way}"


def _spoil(content: dict[str, Any], rng: random.Random) -> str:
    """Removes or replaces something somewhere in a checkpoint's content."""
    where, place = [], content
    while True:
        key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
        where.append(str(key))
        inner = place[key]
        if not isinstance(inner, dict | list) or not inner or rng.random() < 0.4:
            break
        place = inner
    if rng.random() < 0.5:
        del place[key]
        return f"{'.'.join(where)} removed"
    place[key] = rng.choice(JUNK)
    return f"{'.'.join(where)} = {place[key]!r}"


def summary(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Figures, as lines of Markdown."""
    heads = ["refused in a line or two", "an error in two lines", "without effect", "other results", "not survived"]
    lines = [f"| damage | tried | {' | '.join(heads)} |", "|---" * (len(heads) + 2) + "|"]
    for kind in [*BYTES, "content", "hostile"]:
        of_kind = [row for row in rows if row["kind"] == kind]
        outcomes = Counter(row["outcome"] for row in of_kind)
        failed = sum(row["failed"] is not None for row in of_kind)
        cells = [len(of_kind), *(outcomes[name] for name in ("refused", "error", "same", "other")), failed]
        lines.append(f"| {kind} | {' | '.join(f'{cell:,}' for cell in cells)} |")
    executed = sum("executed" in (row["failed"] or "") for row in rows)
    return [*lines, "", f"Hostile objects executed: {executed}."]
