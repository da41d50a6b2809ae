"""Spoilt configuration files and command lines: they run, or are refused in a line or two, and no key goes unread."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from jsonargparse._loaders_dumpers import get_yaml_default_loader

from resnet_pl.cli import train
from resnet_pl.cli.main import main
from resnet_pl.cli.parser import ProjectCLI
from resnet_pl.run_dir import to_yaml
from tests.conftest import write_photos
from tests.faults.forks import Ended, forked

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
# What can be trained on here; what the others ask for is built, and no more.
TRAINED = {"digits.yaml", "folder.yaml"}
REAL = 0.06  # share of the commands that are processes of their own
ONE_STEP = [
    *["--trainer.max_steps", 1, "--trainer.limit_val_batches", 1, "--trainer.default_root_dir", "runs"],
    *["--trainer.accelerator", "cpu"],
]
NUMBERS = [0, -1, 1e-30, 1e30, 10**12, 2**63, float("nan"), float("inf"), -0.0, 1.5]
WORDS = [
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
OTHERS: list[Any] = [None, True, [], {}, [1, 2], ["x"], {"a": 1}, [[[]]], {"class_path": "os.system"},
                     {"class_path": "torch.nn.Module", "init_args": {"x": 1}}]  # fmt: skip
OPTIONS = """
    model.backbone model.backbone.depth model.optimizer model.optimizer.lr model.schedule.shape model.schedule.warmup
    model.label_smoothing model.weights model.num_classes model.on_bad_loss data data.batch_size data.image_size
    data.val_split data.mix data.mean data.crop trainer.max_epochs trainer.devices trainer.precision trainer.callbacks
    trainer.gradient_clip_val trainer.accumulate_grad_batches name seed_everything tf32 checkpoint.every_n_steps
    checkpoint.every_minutes dashboard.images ckpt_path config
""".split()


def prepare(folder: Path) -> Path:
    """Writes photos for the configurations that train on some."""
    return write_photos(folder / "photos", count=6)


def trial(photos: Path, rng: random.Random, folder: Path) -> dict[str, Any]:
    """Starts a run with something spoilt.

    Returns:
        `file` and `kind` of the mutation; `outcome`: ran, refused, or what went wrong; `failed`, in words or None.
    """
    folder.mkdir(parents=True)
    path = rng.choice(FILES)
    kind = rng.choice([*TREE, *TREE, *TEXT, "option", "option"])
    text, detail = _spoilt(path, photos, kind, rng)
    (folder / "spoilt.yaml").write_bytes(text)
    argv = ["fit", "--config", "spoilt.yaml", *ONE_STEP]
    words = _option(rng) if kind == "option" else []
    if words:
        argv, detail = [*argv, *words], " ".join(map(repr, words))
    trained = path.name in TRAINED
    if path.parent.name == "recipes" and not path.name.startswith("cifar10"):
        argv[1:1], trained = _base(path, photos), True
    elif path.name == "imagenet.yaml":
        argv += ["--data.root", photos.resolve()]
    # A process of its own is given no words with a zero byte in them by any system.
    real = rng.random() < REAL and not any("\0" in str(word) for word in argv)
    ended = (_process if real else _fork)([str(word) for word in argv], folder, trained)
    outcome = _outcome(ended)
    found = {"file": path.name, "kind": kind, "detail": detail[:300], "outcome": outcome, "failed": None, "real": real}
    if outcome == "ran" and (
        unread := "a key that there is not" if kind == "unknown key" else _unread(argv, words, folder)
    ):
        found["outcome"], found["failed"] = "unread", f"{path.name}: {detail}: it ran without {unread}"
    elif outcome not in ("ran", "refused"):
        last = " ".join(ended.message or ended.err.splitlines()[-3:])
        found["failed"] = f"{path.name}: {detail[:200]}: {outcome}, exit code {ended.code}: {last[:400]}"
    found["said"] = " ".join(ended.message)[:300]
    shutil.rmtree(folder)
    return found


def _fork(argv: list[str], folder: Path, trained: bool) -> Ended:
    """Runs a command line in a forked process; what cannot be trained on is built only."""

    def keep(cli: ProjectCLI) -> None:
        Path("resolved.yaml").write_text(to_yaml(cli.plain_config), encoding="utf-8")
        if trained:
            fit(cli)

    def work() -> int:
        train.run = keep
        return main(argv)

    fit = train.run
    return forked(work, folder, seconds=60, memory=6 * 2**30)


def _process(argv: list[str], folder: Path, trained: bool) -> Ended:
    """Runs a command line as a person does; what cannot be trained on is parsed only."""
    words = [sys.executable, str(CONFIGS.parent / "cli.py"), *argv, *([] if trained else ["--print_config"])]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    for path in folder.rglob("config.yaml") if trained else []:
        path.rename(folder / "resolved.yaml")
    if not trained and not done.returncode:
        (folder / "resolved.yaml").write_text(done.stdout, encoding="utf-8")
    return Ended(done.returncode, done.stdout, done.stderr, 0.0)


def _unread(argv: Sequence[object], option: Sequence[str], folder: Path) -> str | None:
    """What was given, and is not in the configuration that a run came to; None where everything is."""
    resolved = yaml.safe_load((folder / "resolved.yaml").read_text(encoding="utf-8"))
    names = [str(word)[2:].partition("=")[0] for word in argv if str(word).startswith("--")]
    line = [name.removesuffix("+").removesuffix(".class_path") for name in names]
    given = yaml.load((folder / "spoilt.yaml").read_bytes(), Loader=get_yaml_default_loader())
    for path, value in _leaves(given):
        # The command line wins.
        if not any(f"{path}.".startswith(f"{key}.") for key in line) and not _holds(resolved, path.split("."), value):
            return f"{path} = {value!r}"
    name, _, value = "=".join(option)[2:].partition("=")
    taken = not value or name in ("config", "ckpt_path") or _holds(resolved, name.removesuffix("+").split("."), value)
    return None if taken else f"--{name} {value}"


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value in mappings that is none itself, and its keys, as options are written."""
    if not isinstance(tree, dict):
        yield path, tree
        return
    for key, value in tree.items():
        inner = f"{path}.{key}".removesuffix("+").lstrip(".")
        yield from _leaves(value, path if key in ("init_args", "class_path") else inner)


def _holds(resolved: Any, path: Sequence[str], value: Any) -> bool:
    """Whether a value is where it belongs, in any of the forms that the parser gives it."""
    if path:
        holder = resolved if isinstance(resolved, dict) else {}
        inner = holder if path[0] in holder else holder.get("init_args") or {}
        return path[0] in inner and _holds(inner[path[0]], path[1:], value)
    if value == resolved:
        return True
    with suppress(yaml.YAMLError):
        value = yaml.safe_load(value) if isinstance(value, str) else value
    if isinstance(value, dict):
        return all(_holds(resolved, [key for key in keys.split(".") if key], leaf) for keys, leaf in _leaves(value))
    if isinstance(value, str) and isinstance(resolved, dict):
        resolved = resolved.get("class_path")
    if isinstance(value, list) and isinstance(resolved, list):
        # Those of a list that is added to come last.
        pairs = list(zip(value[::-1], resolved[::-1], strict=False))
        leaves = [(own, keys, leaf) for each, own in pairs for keys, leaf in _leaves(each)]
        return len(pairs) == len(value) and all(
            _holds(own, keys.split(".") if keys else [], v) for own, keys, v in leaves
        )
    try:
        return float(value) == float(resolved) or value != value
    except (TypeError, ValueError):
        return resolved == value or f".{resolved}".endswith(f".{value}")


def _base(recipe: Path, photos: Path) -> list[object]:
    """What a recipe is laid over."""
    text = recipe.read_text(encoding="utf-8")
    if "crop:" not in text and "transforms:" not in text:
        return ["--config", CONFIGS / "digits.yaml", "--model.backbone.depth", 8]
    net = ["--model.backbone", "cifar_resnet", "--model.backbone.depth", 8, "--model.weights", "null"]
    data = ["--data.root", photos.resolve(), "--data.image_size", 16, "--data.num_workers", 0, "--data.batch_size", 4]
    return ["--config", CONFIGS / "folder.yaml", *net, *data]


def _outcome(ended: Ended) -> str:
    if ended.code == 0 or ended.told():
        return "ran" if ended.code == 0 else "refused"
    if ended.code is None:
        return "too long"
    if ended.unexpected():
        return "unforeseen"
    return "traceback" if "Traceback" in ended.err else "killed" if ended.code < 0 else "wordy"


# ------------------------------------------------------------------------------------ mutations
Place = tuple[dict[Any, Any], Any]


def _places(tree: Any) -> Iterator[Place]:
    """Every mapping in a tree with each of its keys."""
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


def _word(place: Place, rng: random.Random) -> str:
    place[0][place[1]] = value = rng.choice(WORDS)
    return f"= {value[:40]!r}"


def _other(place: Place, rng: random.Random) -> str:
    place[0][place[1]] = value = rng.choice(OTHERS)
    return f"= {value!r}"


def _deep(place: Place, rng: random.Random) -> str:
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
    "removed": _delete,
    "number": _number,
    "word": _word,
    "other type": _other,
    "nested": _deep,
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


def _cut(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def _twice(data: bytearray, rng: random.Random) -> None:
    lines = bytes(data).splitlines(keepends=True)
    at = rng.randrange(len(lines))
    data[:] = b"".join([*lines[: at + 1], *lines[at:]])


TEXT = {"bits flipped": _flip, "character": _character, "cut": _cut, "line twice": _twice}


def _spoilt(path: Path, photos: Path, kind: str, rng: random.Random) -> tuple[bytes, str]:
    """The mutated file, and what was done, in words."""
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
    detail = "as it is"
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


def _option(rng: random.Random) -> list[str]:
    """A word or two that make no sense, or might."""
    name = f"--{rng.choice(OPTIONS)}"
    if rng.random() < 0.2:
        name += rng.choice(["x", ".x", "+", ".0", ".class_path", ".init_args.x", "=", " ", "."])
    value = rng.choice([*map(str, NUMBERS), *WORDS, "[1", '{"a": 1}', "[]", "{", "\0", "!!python/object:os.system"])
    way = rng.choice(["two", "two", "joined", "alone"])
    return {"two": [name, value], "joined": [f"{name}={value}"], "alone": [name]}[way]


def summary(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Figures, as lines of Markdown."""
    names = ["ran", "refused", "unforeseen", "wordy", "traceback", "too long", "killed", "unread"]
    heads = ["ran", "refused in a line or two", "unforeseen, in two lines", "in more lines", "traceback",
             "over a minute", "killed", "key unread"]  # fmt: skip
    lines = [f"| mutation | tried | {' | '.join(heads)} |", "|---" * (len(heads) + 2) + "|"]
    for kind in [*TREE, *TEXT, "option"]:
        outcomes = Counter(row["outcome"] for row in rows if row["kind"] == kind)
        lines.append(f"| {kind} | {outcomes.total():,} | {' | '.join(f'{outcomes[name]:,}' for name in names)} |")
    return [*lines, "", f"{sum(row['real'] for row in rows):,} of them as processes of their own, the others forked."]
