"""Names of earlier versions: renamed classes, options, keys and columns work for one more version, with a hint."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from resnet_pl import __all__ as EXPORTED
from resnet_pl.utils import UserError

PACKAGE = __name__.partition(".")[0]
# Packages that this one is a renamed copy of, see scripts/new_project.py: their checkpoints and files are read.
FORMER_PACKAGES: tuple[str, ...] = ()
# Their classes are found by `resnet_pl.SUBPACKAGE.NAME`, in whatever module they are.
SUBPACKAGES = ("classifier", "data", "models", "callbacks")
CLASSES = {
    "CentreCrop": "ResizeCenterCrop",
    "EpochLine": "EpochSummary",
    "StartReport": "RunSummary",
    "WhitenStem": "WhiteningInit",
}
# Keys whose value is a class, given by its name or path.
CLASS_KEYS = ("class_path", "callbacks", "crop")
# Options and keys of YAML files.
KEYS = {
    "views": "tta",
    "beside": "compare",
    "data.scan": "data.verify_images",
    "dashboard.every_seconds": "dashboard.min_interval_seconds",
    "trainer.callbacks.up_to": "trainer.callbacks.last_frozen",
}
# Values, by the new name of their key; the command line has text only.
VALUES: dict[str, dict[Any, Any]] = {
    "tta": {"single": "none"},
    "data.cache": {"decoded": True, "null": False, None: False},
}
# Columns of metrics.csv.
RENAMED_METRICS = {
    "epoch_seconds": "throughput/epoch_seconds",
    "images_per_second": "throughput/images_per_second",
}
# Removed keys, each with its default, which is ignored, and the fix for other values.
REMOVED: dict[str, tuple[Any, str]] = {
    "keep_memory": (True, "in the environment set MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ to 1073741824"),
    "model.on_bad_loss": ("stop", "a NaN or infinite loss always stops the run; remove the key"),
    "data.decode": ("cpu", "images are decoded on the CPU; remove the key, and try --data.cache true"),
    "model.schedule.warmup_error": (None, "use --trainer.callbacks+=ErrorWarmup --trainer.callbacks.error VALUE"),
    "model.schedule.warmup_share": (0.1, "use --trainer.callbacks+=ErrorWarmup --trainer.callbacks.factor VALUE"),
    "model.schedule.warmup_limit": (4000, "use --trainer.callbacks+=ErrorWarmup --trainer.callbacks.max_iterations N"),
}
# Removed files of configs/recipes/, each with what to use.
REMOVED_RECIPES = {
    "adam.yaml": "use recipes/adamw.yaml, or for the constant learning rate of 1e-4 see tutorial.yaml",
    "plateau.yaml": "use --model.schedule.shape plateau --model.schedule.patience 5, or recipes/early-stopping.yaml",
    "random-resized-crop.yaml": "use --data.crop RandomResizedCrop",
}


def _ignore(note: str) -> None:
    pass


def is_own(path: Any) -> bool:
    """Whether a class path names a class outside of this package: the user's own, or one of a library."""
    return isinstance(path, str) and "." in path and path.partition(".")[0] not in (PACKAGE, *FORMER_PACKAGES)


def upgrade_path(path: str) -> str:
    """Returns the current path or name of a class for one of an earlier version; others are returned unchanged."""
    *before, name = path.split(".")
    if not before:
        return CLASSES.get(name, name)
    first, *middle = before
    if first in FORMER_PACKAGES:
        first, path = PACKAGE, ".".join([PACKAGE, *middle, name])
    if first != PACKAGE or not middle or middle[0] not in SUBPACKAGES:
        return path
    name = CLASSES.get(name, name)
    # As jsonargparse writes it: the shortest import path for a class, the full path for a function.
    return f"{PACKAGE}.{name}" if name in EXPORTED and name[0].isupper() else f"{PACKAGE}.{middle[0]}.{name}"


def upgrade_value(value: Any, key: str = "", report: Callable[[str], None] = _ignore) -> Any:
    """Returns a configuration value with the current names of classes.

    Args:
        value: value of a YAML file or of an option.
        key: last part of its key.
        report: called with a note for each class that was renamed.
    """
    if isinstance(value, dict):
        return {name: upgrade_value(item, name, report) for name, item in value.items()}
    if isinstance(value, list):
        return [upgrade_value(item, key, report) for item in value]
    if not isinstance(value, str):
        return value
    if value.partition(".")[0] not in (PACKAGE, *FORMER_PACKAGES) and key.rstrip("+") not in CLASS_KEYS:
        return value
    # Text can contain several names: a list of callbacks is written [A, B] on the command line.
    return re.sub(r"[\w.]+", lambda match: _upgrade_class(match[0], report), value)


def _upgrade_class(path: str, report: Callable[[str], None]) -> str:
    new = upgrade_path(path)
    old_name, new_name = path.rpartition(".")[2], new.rpartition(".")[2]
    if old_name != new_name:
        report(f"{old_name} is now {new_name}")
    return new


def _upgrade_setting(key: str, value: Any, report: Callable[[str], None], prefix: str = "") -> tuple[str, Any]:
    """Returns the current dotted key and value of a setting; `prefix` is that of an option on the command line."""
    new_key, new_value = KEYS.get(key, key), value
    old, new = f"{prefix}{key}", f"{prefix}{new_key}"
    values = VALUES.get(new_key, {})
    if isinstance(value, str | None) and value in values:
        new_value = values[value]
        separator = " " if prefix else ": "
        report(f"{old}{separator}{_to_text(value)} is now {new}{separator}{_to_text(new_value)}")
    elif new_key != key:
        report(f"{old} is now {new}")
    return new_key, new_value


def _to_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def upgrade_config(config: dict[str, Any], where: str | None, hint: bool = False) -> dict[str, Any]:
    """Returns a configuration with the names of this version.

    Args:
        config: contents of a YAML file or of a checkpoint.
        where: the file, for messages; None for a checkpoint, which users cannot edit: its removed keys are ignored.
        hint: whether to print a hint for each renamed key, value and class.

    Raises:
        UserError: a removed key is set, or a key is set under both its names.
    """
    notes: list[str] = []
    config = upgrade_value(config, report=notes.append)
    _move_error_warmup(config, notes.append)
    for key, (default, fix) in REMOVED.items():
        for section, name in _sections(config, key):
            if section.pop(name) != default and where is not None:
                raise UserError(f"{where}: {key} was removed\n{fix}")
    for key in (*KEYS, *VALUES):
        for section, name in _sections(config, key):
            new_key, value = _upgrade_setting(key, section.pop(name), notes.append)
            new_name = new_key.rpartition(".")[2]
            if new_name in section and where is not None:
                raise UserError(f"{where}: {key} and {new_key} are the same key\nremove {key}, the old name")
            section.setdefault(new_name, value)
    if hint:
        _print_hints(f"{where}: {note}" for note in notes)
    return config


def _sections(config: Any, key: str) -> list[tuple[dict[str, Any], str]]:
    """Returns the mappings that contain the last part of a dotted key, each with that part."""
    if not isinstance(config, dict):
        return []
    first, _, remainder = key.partition(".")
    if not remainder:
        return [(config, first)] if first in config else []
    sections = []
    for section in (config.get(first), config.get(f"{first}+")):
        for item in section if isinstance(section, list) else [section]:
            init_args = item.get("init_args") if isinstance(item, dict) else None
            inherited = {"split_seed", "optimizer"} & (init_args or {}).keys()
            if isinstance(item, dict) and is_own(item.get("class_path")) and not inherited:
                continue  # the arguments of a user's class
            sections += _sections(init_args if isinstance(init_args, dict) else item, remainder)
    return sections


def upgrade_arguments(args: Sequence[str]) -> list[str]:
    """Returns a command line with the names of this version, and prints a hint for each old name.

    Raises:
        UserError: a removed option is given.
    """
    words, notes, own = list(args), list[str](), set[str]()
    for index, word in enumerate(words):
        if not word.startswith("--"):
            continue
        option, equals, value = word.partition("=")
        following = not equals and index + 1 < len(words) and not words[index + 1].startswith("--")
        key = option.removeprefix("--").replace(".init_args", "")
        if following:
            value = words[index + 1]
        if (section := key.rstrip("+")) in ("data", "trainer.callbacks"):
            (own.add if is_own(value) else own.discard)(section)
        if any(key.startswith(f"{section}.") for section in own):
            continue  # an argument of a user's class
        if key in REMOVED:
            raise UserError(f"--{key} was removed\n{REMOVED[key][1]}")
        new_key, value = _upgrade_setting(key, value, notes.append, "--")
        value = _to_text(upgrade_value(value, key.rpartition(".")[2], notes.append))
        if new_key != key:
            option = option.removesuffix(key.rpartition(".")[2]) + new_key.rpartition(".")[2]
        words[index : index + 1 + following] = [option, value] if following else [f"{option}{equals}{value}"]
    _print_hints(notes)
    return words


def _print_hints(notes: Iterable[str]) -> None:
    # Lightning starts the same command again for the other processes.
    for note in dict.fromkeys(notes) if os.environ.get("LOCAL_RANK", "0") == "0" else ():
        print(f"note: {note}; the old name works in this version only", file=sys.stderr)


def _move_error_warmup(config: dict[str, Any], report: Callable[[str], None]) -> None:
    """Replaces the warm-up by training error, an earlier part of the schedule, by its callback."""
    model = config.get("model")
    model = model.get("init_args", model) if isinstance(model, dict) else {}
    schedule = model.get("schedule")
    if not isinstance(schedule, dict) or schedule.get("warmup_error") is None:
        return
    names = {"warmup_error": "error", "warmup_share": "factor", "warmup_limit": "max_iterations"}
    init_args = {new: schedule.pop(old) for old, new in names.items() if old in schedule}
    trainer = config["trainer"] = dict(config.get("trainer") or {})
    # A file without callbacks adds to those of earlier files.
    key = "callbacks" if "callbacks" in trainer else "callbacks+"
    others = trainer.get(key) or []
    callback = {"class_path": f"{PACKAGE}.callbacks.ErrorWarmup", "init_args": init_args}
    trainer[key] = [*(others if isinstance(others, list) else [others]), callback]
    report("model.schedule.warmup_error is now the callback ErrorWarmup")


def adopt_checkpoint(checkpoint: dict[str, Any]) -> None:
    """Converts a checkpoint of a former package to one of this package, in place; others are unchanged."""
    for former in {*FORMER_PACKAGES} & checkpoint.keys():
        checkpoint[PACKAGE] = checkpoint.pop(former)
        for section in (PACKAGE, "hyper_parameters"):
            checkpoint[section] = upgrade_value(checkpoint.get(section))


def upgrade_checkpoint(checkpoint: dict[str, Any]) -> None:
    """Converts a checkpoint of an earlier format to the current one, in place; others are unchanged."""
    metadata = checkpoint.get(PACKAGE)
    if not isinstance(metadata, dict):
        return
    if metadata.get("format") == 1:
        _upgrade_format_1(checkpoint, metadata)
    if metadata.get("format") == 2:
        _upgrade_format_2(checkpoint, metadata)
    # Before this option existed, all images were decoded in full; a run resumes with the pixels of its start.
    data = (metadata.get("config") or {}).get("data") or {}
    arguments = data.get("init_args") or {}
    if str(data.get("class_path")).startswith(f"{PACKAGE}.") and "verify_images" in arguments:
        arguments.setdefault("scaled_decoding", False)


def _upgrade_format_1(checkpoint: dict[str, Any], metadata: dict[str, Any]) -> None:
    config = metadata["config"] or {}
    metadata["format"] = 2
    callbacks: dict[str, Any] = {}
    for key, state in (checkpoint.get("callbacks") or {}).items():
        if key.startswith("BestCheckpoint{"):
            score = state["best_model_score"]
            callbacks["BestCheckpoint"] = {"score": None if score is None else float(score)}
        elif not key.startswith("LastCheckpoint{"):
            callbacks[key] = state
    callbacks["Dashboard"] = {"best": (callbacks.get("BestCheckpoint") or {}).get("score") or 0.0}
    callbacks["TrainLog"] = {"sums": checkpoint.pop("exact_resume", None)}
    for scheduler in checkpoint.get("lr_schedulers") or []:
        callbacks["ErrorWarmup"] = {"errors": scheduler.pop("errors", None)}
    checkpoint["callbacks"] = callbacks
    fit_loop = (checkpoint.get("loops") or {}).get("fit_loop")
    if fit_loop:
        # Format 1 was saved after the next batch had been fetched.
        total = fit_loop["epoch_loop.batch_progress"]["total"]
        total["ready"] = total["completed"]
        for position in fit_loop["state_dict"].pop("combined_loader", []):
            data = (config.get("data") or {}).get("class_path", "")
            checkpoint[data.rsplit(".", 1)[-1]] = dict(position)


def _upgrade_format_2(checkpoint: dict[str, Any], metadata: dict[str, Any]) -> None:
    metadata["format"] = 3
    metadata["config"] = upgrade_config(metadata["config"], None) if metadata["config"] else None
    hparams = {"model": checkpoint.get("hyper_parameters") or {}}
    checkpoint["hyper_parameters"] = upgrade_config(hparams, None)["model"]
    # With averaged weights, Lightning saves the current ones as `current_model_state`.
    for key in {"state_dict", "current_model_state"} & checkpoint.keys():
        state = checkpoint[key]
        checkpoint[key] = {re.sub(r"^loss\.", "criterion.", name): value for name, value in state.items()}
    names = {"waited": "num_bad_validations", "reductions": "num_decays"}
    for scheduler in checkpoint.get("lr_schedulers") or []:
        scheduler |= {new: scheduler.pop(old) for old, new in names.items() if old in scheduler}
