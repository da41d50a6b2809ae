"""Default lists in the configuration, and options that append to a list with `+`: `--trainer.callbacks+=NAME`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from jsonargparse import Namespace

from resnet_pl.command_line import CommandLine
from resnet_pl.config import default_arguments
from resnet_pl.run_dir import class_name, get_init_args

TENSORBOARD = {"class_path": "resnet_pl.callbacks.TensorBoardCurves"}


# Options that take a list of classes.
LISTS = ("trainer.callbacks", "trainer.logger", "trainer.plugins", "data.transforms", "data.batch_transforms")
LISTS += ("data.mix.transforms", "model.lr_scheduler.schedulers")


def in_order(files: Sequence[tuple[str, Mapping[str, Any]]], options: Sequence[str]) -> list[str]:
    """Returns the words that the parser reads: the files, then the options.

    A list is emptied before another one replaces it: jsonargparse merges lists of the same length, entry by entry.

    Args:
        files: name and contents of each file.
        options: the options.
    """
    words: list[str] = []
    seen: set[str] = set()
    trainers = [get_init_args(config.get("trainer")) for _, config in files]
    adds_logger = any("logger+" in trainer for trainer in trainers)
    adds_logger |= any(option.startswith("--trainer.logger+") for option in options)
    for name, config in files:
        for key in LISTS:
            value: Any = config
            for part in key.split("."):
                value = get_init_args(value).get(part)
            if isinstance(value, list):
                words += [f"--{key}=[]"] if key in seen else []
                seen.add(key)
        words += ["--config", name] if config else []
        if adds_logger and get_init_args(config.get("trainer")).get("logger", False) is None:
            words.append(f"--trainer.logger=[{TENSORBOARD['class_path']}]")  # null is the default
    for word, following in pairwise([*options, ""]):
        key, _, value = word.partition("=")
        if key.removeprefix("--").replace(".init_args", "") in LISTS and (value or following).startswith("["):
            words.append(f"{key}=[]")
        words.append(word)
    return words


def add_defaults(config: Mapping[str, Any], command_line: CommandLine) -> dict[str, Any]:
    """Returns a configuration with the default lists of the data module, and with TensorBoard if loggers are added.

    A list that the command line sets gets no default: it would be merged with one of the same length, entry by entry.

    Args:
        config: configuration of the checkpoint, or an empty one.
        command_line: the command line, with its files.
    """

    def is_unset(section: str, key: str) -> bool:
        stored = get_init_args(config.get(section)).get(key)
        return stored is None and command_line.get(f"{section}.{key}") is None

    path = (config.get("data") or {}).get("class_path") or command_line.data_class
    defaults = {key: value for key, value in default_arguments(path).items() if is_unset("data", key)}
    added: dict[str, Any] = {}
    if defaults:
        added["data"] = {"class_path": path, "init_args": get_init_args(config.get("data")) | defaults}
    if command_line.get("trainer.logger+") is not None and is_unset("trainer", "logger"):
        added["trainer"] = get_init_args(config.get("trainer")) | {"logger": [TENSORBOARD]}
    return {**config, **added}


def drop_repeated(config: Namespace, stored: Mapping[str, Any]) -> None:
    """Drops entries that a resumed command appends a second time, so that it can be the same as the first command.

    A callback with other arguments replaces the one of the first command.

    Args:
        config: the parsed configuration.
        stored: configuration of the checkpoint, which has what the first command appended.
    """
    for key, before in stored.items():
        now = config.get(key)
        if isinstance(now, Namespace) and isinstance(before, Mapping):
            drop_repeated(now, before)
        elif isinstance(now, list) and isinstance(before, list):
            first, added = now[: len(before)], now[len(before) :]
            if [_class_name(entry) for entry in first] != [class_name(entry) for entry in before]:
                continue
            added = [entry for entry in added if entry not in first or not _class_name(entry)]
            if key == "callbacks":
                first = [entry for entry in first if not any(_replaces(new, entry) for new in added)]
            config[key] = first + added


def _replaces(entry: Any, other: Any) -> bool:
    """Whether a callback is another version of one: Lightning refuses two of a class, unless their monitors differ."""
    one, two = (get_init_args(each.as_dict()).get("monitor") for each in (entry, other))
    return _class_name(entry) == _class_name(other) and one == two


def _class_name(entry: Any) -> str:
    return class_name(entry.get("class_path")) if isinstance(entry, Namespace) else ""
