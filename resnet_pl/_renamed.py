"""What earlier versions called it: class paths, keys and checkpoints of theirs keep working for one version."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from resnet_pl import __all__ as EXPORTED
from resnet_pl.utils import UserError

# Keys that are gone: the default they had, which is dropped without a word, and what to use instead.
REMOVED: dict[str, tuple[Any, str]] = {
    "keep_memory": (True, "in the environment set MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ to 1073741824"),
    "model.on_bad_loss": ("stop", "a loss that is not finite always stops the run; remove the key"),
    "data.decode": ("cpu", "photos are decoded on the CPU; remove the key, and try --data.cache decoded"),
    "model.schedule.warmup_error": (None, "use --trainer.callbacks+=ErrorWarmup --trainer.callbacks.error VALUE"),
    "model.schedule.warmup_share": (0.1, "use --trainer.callbacks+=ErrorWarmup --trainer.callbacks.factor VALUE"),
    "model.schedule.warmup_limit": (4000, "use --trainer.callbacks+=ErrorWarmup --trainer.callbacks.max_iterations N"),
}
# Packages whose classes are known by `resnet_pl.PACKAGE.NAME`, whatever module they are in.
PACKAGES = ("classifier", "data", "models", "callbacks")


def upgrade_path(path: str) -> str:
    """The class path of today for one of an earlier version; others come back as they are."""
    first, *middle, name = path.split(".")
    if first != "resnet_pl" or not middle or middle[0] not in PACKAGES:
        return path
    # As jsonargparse writes it: the shortest path of a class; functions have theirs in full.
    return f"resnet_pl.{name}" if name in EXPORTED and name[0].isupper() else f"resnet_pl.{middle[0]}.{name}"


def upgrade_value(value: Any) -> Any:
    """A value of a configuration with today's class paths."""
    if isinstance(value, dict):
        return {key: upgrade_value(item) for key, item in value.items()}
    if isinstance(value, str) and value.startswith("resnet_pl."):
        return upgrade_path(value)
    return [upgrade_value(item) for item in value] if isinstance(value, list) else value


def upgrade_config(config: dict[str, Any], where: str | None) -> dict[str, Any]:
    """A configuration as this version takes it.

    Args:
        config: what a YAML file or a checkpoint holds.
        where: the file, for messages; None for a checkpoint, which nobody can edit: what is gone is dropped.

    Raises:
        UserError: a key is set that is gone.
    """
    config = upgrade_value(config)
    _move_error_warmup(config)
    for key, (default, instead) in REMOVED.items():
        *path, name = key.split(".")
        section: Any = config
        for part in path:
            section = section.get(part) if isinstance(section, dict) else None
            section = section["init_args"] if isinstance(section, dict) and "init_args" in section else section
        if isinstance(section, dict) and name in section and section.pop(name) != default and where is not None:
            raise UserError(f"{where}: {key} is no longer an option\n{instead}")
    return config


def check_arguments(args: Sequence[str]) -> None:
    """Raises UserError where the command line sets a key that is gone."""
    for word in args:
        key = word.removeprefix("--").split("=")[0].replace(".init_args", "")
        if word.startswith("--") and key in REMOVED:
            raise UserError(f"--{key} is no longer an option\n{REMOVED[key][1]}")


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
    """Brings a checkpoint of format 1 to format 2, in place; one of another project is left alone."""
    own = checkpoint.get("resnet_pl")
    if not isinstance(own, dict) or own.get("format") != 1:
        return
    config = own["config"] or {}
    own["format"], own["config"] = 2, upgrade_config(config, None) if config else None
    hparams = {"model": checkpoint.get("hyper_parameters") or {}}
    checkpoint["hyper_parameters"] = upgrade_config(hparams, None)["model"]
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
