"""Mutations of configuration files and command lines."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

NUMBERS = [0, -1, 1e-30, 1e30, 10**12, 2**63, float("nan"), float("inf"), -0.0, 1.5]
STRINGS = [
    "",
    " ",
    "junk",
    "žluťoučký 🦆",
    "null",
    "../../etc",
    "a" * 5000,
    "\u202e",
    "1e",
    "0x10",
    "resnet18",
    "@",
    "%s",
    "{}",
]
OTHER_TYPES: list[Any] = [None, True, [], {}, [1, 2], ["x"], {"a": 1}, [[[]]], {"class_path": "os.system"},
                     {"class_path": "torch.nn.Module", "init_args": {"x": 1}}]  # fmt: skip
OPTIONS = """
    model.backbone model.backbone.depth model.optimizer model.optimizer.lr model.schedule.shape model.schedule.warmup
    model.label_smoothing model.weights model.num_classes model.on_bad_loss data data.batch_size data.image_size
    data.val_split data.mix data.mean data.crop trainer.max_epochs trainer.devices trainer.precision trainer.callbacks
    trainer.gradient_clip_val trainer.accumulate_grad_batches name seed_everything tf32 checkpoint.every_n_steps
    checkpoint.every_minutes dashboard.images ckpt_path config
""".split()

# A mapping and one of its keys.
Place = tuple[dict[Any, Any], Any]


def _places(tree: Any) -> Iterator[Place]:
    """Yields every mapping in a tree with each of its keys."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield tree, key
            yield from _places(value)
    elif isinstance(tree, list):
        for item in tree:
            yield from _places(item)


def _delete(place: Place, rng: random.Random) -> str:
    del place[0][place[1]]
    return "removed"


def _number(place: Place, rng: random.Random) -> str:
    place[0][place[1]] = value = rng.choice(NUMBERS)
    return f"= {value!r}"


def _string(place: Place, rng: random.Random) -> str:
    place[0][place[1]] = value = rng.choice(STRINGS)
    return f"= {value[:40]!r}"


def _other(place: Place, rng: random.Random) -> str:
    place[0][place[1]] = value = rng.choice(OTHER_TYPES)
    return f"= {value!r}"


def _nested(place: Place, rng: random.Random) -> str:
    value: Any = place[0][place[1]]
    depth = rng.choice([1, 2, 30, 300])
    for _ in range(depth):
        value = {place[1]: value} if rng.random() < 0.5 else [value]
    place[0][place[1]] = value
    return f"nested {depth} deep"


def _unknown(place: Place, rng: random.Random) -> str:
    tree, key = place
    name = rng.choice([f"{key}_x", str(key)[:-1] + "q", "žluť", "init_arg", str(key).upper()])
    tree[name] = tree.pop(key) if rng.random() < 0.5 else 1
    return f"and {name}"


TREE = {
    "key removed": _delete,
    "replaced by a number": _number,
    "replaced by a string": _string,
    "replaced by another type": _other,
    "value nested": _nested,
    "unknown key": _unknown,
}


def _flip(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice([1, 3])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _character(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    data[at:at] = rng.choice(
        [b"\0", b"\t", b"{", b"]", b": ", b"&a ", b"*a", b"!!python/object:os.system ", b"\xff", b"\n"]
    )


def _truncate(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def _duplicate_line(data: bytearray, rng: random.Random) -> None:
    lines = bytes(data).splitlines(keepends=True)
    at = rng.randrange(len(lines))
    data[:] = b"".join([*lines[: at + 1], *lines[at:]])


TEXT = {
    "bits flipped": _flip,
    "character inserted": _character,
    "truncated": _truncate,
    "line duplicated": _duplicate_line,
}


def mutate(path: Path, photos: Path, kind: str, rng: random.Random) -> tuple[bytes, str]:
    """Mutates a configuration file.

    Args:
        path: the file.
        photos: folder of images for configs/folder.yaml.
        kind: one of `TREE` or `TEXT`; another one leaves the file unchanged.
        rng: random numbers.

    Returns:
        The new content, and a description of the mutation.
    """
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.name == "digits.yaml":
        tree["model"]["backbone"]["init_args"]["depth"] = 8
    if path.name == "folder.yaml":
        tree["model"] |= {"weights": None, "backbone": {"class_path": "cifar_resnet", "init_args": {"depth": 8}}}
        tree["data"]["init_args"] |= {
            "root": str(photos.resolve()),
            "image_size": 16,
            "num_workers": 0,
            "batch_size": 4,
        }
    detail = "unchanged"
    if kind in TREE:
        place = rng.choice(list(_places(tree)))
        detail = f"{place[1]} {TREE[kind](place, rng)}"
    data = bytearray(yaml.dump(tree, sort_keys=False, allow_unicode=True).encode("utf-8", "surrogatepass"))
    if kind in TEXT:
        before = bytes(data)
        TEXT[kind](data, rng)
        changed = [line for line in bytes(data).splitlines() if line not in before.splitlines()]
        detail = f"{kind}: {changed[:2]}"
    return bytes(data), detail


def random_option(rng: random.Random) -> list[str]:
    """Returns the words of a command-line option with a random value; most are invalid."""
    name = f"--{rng.choice(OPTIONS)}"
    if rng.random() < 0.2:
        name += rng.choice(["x", ".x", "+", ".0", ".class_path", ".init_args.x", "=", " ", "."])
    value = rng.choice([*map(str, NUMBERS), *STRINGS, "[1", '{"a": 1}', "[]", "{", "\0", "!!python/object:os.system"])
    form = rng.choice(["two words", "two words", "one word", "no value"])
    return {"two words": [name, value], "one word": [f"{name}={value}"], "no value": [name]}[form]
