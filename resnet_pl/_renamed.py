"""Names of earlier versions: class paths, options and keys that were renamed keep working for one version."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from resnet_pl import __all__ as EXPORTED
from resnet_pl.utils import UserError

# Packages whose classes are found by `resnet_pl.PACKAGE.NAME`, in whatever module they are.
PACKAGES = ("classifier", "data", "models", "callbacks")
CLASSES = {
    "CentreCrop": "ResizeCenterCrop",
    "EpochLine": "EpochSummary",
    "StartReport": "RunSummary",
    "WhitenStem": "WhiteningInit",
}
# Keys whose value names a class by its last word.
CLASS_KEYS = ("class_path", "callbacks", "callbacks+", "crop")
# Renamed options and YAML keys; the last part is the new name.
KEYS = {
    "views": "tta",
    "beside": "compare",
    "data.scan": "verify_images",
    "dashboard.every_seconds": "min_interval_seconds",
    "trainer.callbacks.up_to": "last_frozen",
}
# Renamed values of an option, by its new name.
VALUES = {"tta": {"single": "none"}, "data.cache": {"decoded": True, "null": False, None: False}}
# Columns of metrics.csv.
RENAMED_METRICS = {
    "epoch_seconds": "throughput/epoch_seconds",
    "images_per_second": "throughput/images_per_second",
}
# Removed keys: the default they had, which is dropped silently, and what to use instead.
REMOVED: dict[str, tuple[Any, str]] = {
    "keep_memory": (True, "in the environment set MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ to 1073741824"),
    "model.on_bad_loss": ("stop", "a NaN or infinite loss always stops the run; remove the key"),
    "data.decode": ("cpu", "images are decoded on the CPU; remove the key, and try --data.cache true"),
    "model.schedule.warmup_error": (None, "use --trainer.callbacks+=ErrorWarmup --trainer.callbacks.error VALUE"),
    "model.schedule.warmup_share": (0.1, "use --trainer.callbacks+=ErrorWarmup --trainer.callbacks.factor VALUE"),
    "model.schedule.warmup_limit": (4000, "use --trainer.callbacks+=ErrorWarmup --trainer.callbacks.max_iterations N"),
}


def upgrade_path(path: str) -> str:
    """The current class path for one of an earlier version; others are returned unchanged."""
    *before, name = path.split(".")
    if not before:
        return CLASSES.get(name, name)
    first, *middle = before
    if first != "resnet_pl" or not middle or middle[0] not in PACKAGES:
        return path
    name = CLASSES.get(name, name)
    # As jsonargparse writes it: the shortest import path of a class; functions have theirs in full.
    return f"resnet_pl.{name}" if name in EXPORTED and name[0].isupper() else f"resnet_pl.{middle[0]}.{name}"


def upgrade_value(value: Any, key: str = "") -> Any:
    """A configuration value with current class paths.

    Args:
        value: a value of YAML.
        key: the key that it belongs to.
    """
    if isinstance(value, dict):
        return {name: upgrade_value(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [upgrade_value(item, key) for item in value]
    named = isinstance(value, str) and (value.startswith("resnet_pl.") or key in CLASS_KEYS)
    return upgrade_path(value) if named else value


def upgrade_config(config: dict[str, Any], where: str | None, hint: bool = False) -> dict[str, Any]:
    """A configuration in the form of this version.

    Args:
        config: the contents of a YAML file or of a checkpoint.
        where: the file, for messages; None for a checkpoint, which cannot be edited: removed keys are dropped.
        hint: whether to print the new names of renamed keys.

    Raises:
        UserError: a removed key is set.
    """
    config = upgrade_value(config)
    _move_error_warmup(config)
    for key, (default, instead) in REMOVED.items():
        for section, name in _sections(config, key):
            if section.pop(name) != default and where is not None:
                raise UserError(f"{where}: {key} is no longer an option\n{instead}")
    for key, new in KEYS.items():
        for section, name in _sections(config, key):
            section[new] = section.pop(name)
            if hint:
                _hint(f"{where}: {key} is now {_renamed(key)}")
    for key, values in VALUES.items():
        for section, name in _sections(config, key):
            if section[name] in values:
                section[name] = values[section[name]]
    return config


def _sections(config: Any, key: str) -> list[tuple[dict[str, Any], str]]:
    """The mappings of a configuration that hold the last part of a dotted key, each with that part."""
    first, _, rest = key.partition(".")
    if isinstance(config, list):
        return [found for item in config for found in _sections(item, key)]
    if not isinstance(config, dict):
        return []
    if isinstance(config.get("init_args"), dict):
        config = config["init_args"]
    if not rest:
        return [(config, first)] if first in config else []
    return [found for name in (first, f"{first}+") for found in _sections(config.get(name), rest)]


def upgrade_arguments(args: Sequence[str]) -> list[str]:
    """A command line with the current names of options; raises UserError for an option that was removed."""
    upgraded: list[str] = []
    for word in args:
        option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        key = option.removeprefix("--").replace(".init_args", "")
        if key in REMOVED:
            raise UserError(f"--{key} is no longer an option\n{REMOVED[key][1]}")
        if key in KEYS:
            _hint(f"--{key} is now --{_renamed(key)}")
            option = option.removesuffix(key.rpartition(".")[2]) + KEYS[key]
            key = _renamed(key)
        elif not option and upgraded and upgraded[-1].startswith("--"):
            key = upgraded[-1].removeprefix("--").replace(".init_args", "")
        if value in VALUES.get(key, {}):
            value = str(VALUES[key][value]).lower()
        upgraded.append(f"{option}{equals}{value}")
    return upgraded


def _renamed(key: str) -> str:
    before, dot, _ = key.rpartition(".")
    return f"{before}{dot}{KEYS[key]}"


def _hint(text: str) -> None:
    print(f"note: {text}; the old name works in this version only", file=sys.stderr)


def _move_error_warmup(config: dict[str, Any]) -> None:
    """The warm-up by training error was a part of the schedule, and is a callback."""
    model = config.get("model")
    model = model.get("init_args", model) if isinstance(model, dict) else {}
    schedule = model.get("schedule")
    if not isinstance(schedule, dict) or schedule.get("warmup_error") is None:
        return
    names = {"warmup_error": "error", "warmup_share": "factor", "warmup_limit": "max_iterations"}
    init_args = {new: schedule.pop(old) for old, new in names.items() if old in schedule}
    trainer = config["trainer"] = dict(config.get("trainer") or {})
    # A file that says nothing of callbacks keeps those of the files below it.
    key = "callbacks" if "callbacks" in trainer else "callbacks+"
    given = trainer.get(key) or []
    callback = {"class_path": "resnet_pl.callbacks.ErrorWarmup", "init_args": init_args}
    trainer[key] = [*(given if isinstance(given, list) else [given]), callback]


def upgrade_checkpoint(checkpoint: dict[str, Any]) -> None:
    """Brings a checkpoint of an earlier format to the current one, in place; others are not changed."""
    own = checkpoint.get("resnet_pl")
    if not isinstance(own, dict):
        return
    if own.get("format") == 1:
        _upgrade_format_1(checkpoint, own)
    if own.get("format") == 2:
        _upgrade_format_2(checkpoint, own)


def _upgrade_format_1(checkpoint: dict[str, Any], own: dict[str, Any]) -> None:
    config = own["config"] or {}
    own["format"] = 2
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
        # It was saved when the next batch had been fetched already.
        total = fit_loop["epoch_loop.batch_progress"]["total"]
        total["ready"] = total["completed"]
        for position in fit_loop["state_dict"].pop("combined_loader", []):
            data = (config.get("data") or {}).get("class_path", "")
            checkpoint[data.rsplit(".", 1)[-1]] = dict(position)


def _upgrade_format_2(checkpoint: dict[str, Any], own: dict[str, Any]) -> None:
    own["format"], own["config"] = 3, upgrade_config(own["config"], None) if own["config"] else None
    hparams = {"model": checkpoint.get("hyper_parameters") or {}}
    checkpoint["hyper_parameters"] = upgrade_config(hparams, None)["model"]
    checkpoint["state_dict"] = {
        f"criterion.{key.removeprefix('loss.')}" if key.startswith("loss.") else key: value
        for key, value in checkpoint["state_dict"].items()
    }
    names = {"waited": "num_bad_validations", "reductions": "num_decays"}
    for scheduler in checkpoint.get("lr_schedulers") or []:
        scheduler |= {new: scheduler.pop(old) for old, new in names.items() if old in scheduler}
