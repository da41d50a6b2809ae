"""Parses the command line and its YAML files before torch is imported."""

from __future__ import annotations

import argparse
import re
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from resnet_pl import run_dir
from resnet_pl._renamed import is_own
from resnet_pl.config_files import config_names, find_config, read_config, read_section
from resnet_pl.utils import UserError, expand_words, shell_command

# Options of other training scripts, and what to use here. A value is appended where the option here takes the same one.
OTHER_OPTIONS = {
    **dict.fromkeys(["epochs", "num_epochs", "max_epochs"], "--trainer.max_epochs"),
    **dict.fromkeys(["lr", "learning_rate"], "--model.optimizer.lr"),
    **dict.fromkeys(["weight_decay", "wd"], "--model.optimizer.weight_decay"),
    **dict.fromkeys(["batch_size", "batch", "bs"], "--data.batch_size"),
    **dict.fromkeys(["imgsz", "img_size", "image_size"], "--data.image_size"),
    **dict.fromkeys(["workers", "num_workers"], "--data.num_workers"),
    **dict.fromkeys(["data.path", "data.dir", "data_dir", "data_path", "root"], "--data.root"),
    **dict.fromkeys(["devices", "gpus"], "--trainer.devices"),
    **dict.fromkeys(["arch", "backbone"], "--model.backbone"),
    "momentum": "--model.optimizer.momentum",
    "optimizer": "--model.optimizer",
    "seed": "--seed_everything",
}
# The same for options that take another value here, or none.
OTHER_SWITCHES = {
    "device": "--trainer.accelerator gpu --trainer.devices 1, or --trainer.accelerator cpu",
    "resume": "--ckpt_path last",
    **dict.fromkeys(["pretrained", "weights"], "--model.weights, such as --model.weights IMAGENET1K_V1"),
    **dict.fromkeys(["amp", "fp16"], "--trainer.precision 16-mixed, or bf16-mixed"),
}
# Sections that can be separate files.
SECTIONS = {"model", "data", "trainer"}
CLASS_HELP = re.compile(r"--([\w.]+)\.help(?:=(.*))?")


class CommandLine:
    """Arguments, configuration files and checkpoint of a subcommand.

    Args:
        args: arguments, the subcommand first.
        bare: whether `fit` may have neither a configuration file nor a model or data: Python code can pass objects.

    Raises:
        UserError: a file is missing or not YAML, or an option is unknown, removed or missing.

    Attributes:
        args: the arguments.
        subcommand: the first argument.
        help: whether `--help` is given.
        class_help: key and class name of `--KEY.help NAME`, with an empty name for `--KEY.help`; None without it.
        checkpoint: the file behind `--ckpt_path`, with `best` and `last` resolved.
        exported: the same if it is an exported network, for `predict`, which then has no checkpoint.
        files: the configuration files, in order.
        contents: what they hold.
        options: the other arguments. They override the files, in whatever order they are given.
    """

    def __init__(self, args: Sequence[str], bare: bool = False) -> None:
        self.args, self.subcommand = expand_words(args), args[0]
        self.checkpoint: Path | None = None
        self.exported: Path | None = None
        self._settings: dict[str, Any] = {}
        self.contents: list[dict[str, Any]] = []
        files, self.options = split_option(self.args[1:], "--config", "-c")
        self.files = [self._from_pipe(find_config(file)) for file in files]
        self.help = bool({"-h", "--help"} & set(args))
        self.class_help = _class_help(self.options)
        if self.help or self.class_help:
            return
        for path in self.files:
            config = read_config(Path(path))
            for section in SECTIONS & config.keys():
                config[section] = read_section(config[section], Path(path).parent)
            self.contents.append(config)
            self._settings = _deep_merge(self._settings, config)
        _check_options(self.options, own_data=is_own(self.data_class) or bool(self.get("ckpt_path")))
        for section in SECTIONS:
            if (file := self._given(section)) and Path(file).is_file():
                self._settings = _deep_merge(self._settings, {section: read_config(Path(file))})
        self.checkpoint = self._find_checkpoint(self.get("ckpt_path") or self._given("ensemble"))
        if self.subcommand == "predict" and self.checkpoint is not None and self.checkpoint.suffix == ".onnx":
            self.exported, self.checkpoint = self.checkpoint, None
        if self.trains and self.checkpoint is None and not self.files and not bare:
            _check_not_bare(self.options, self.subcommand)

    @property
    def trains(self) -> bool:
        """Whether the subcommand trains a model."""
        return self.subcommand in ("fit", "doctor")

    def _from_pipe(self, file: str) -> str:
        """Copies a configuration that can be read only once, such as `<(…)` or /dev/stdin, to a temporary file."""
        path = Path(file)
        if not path.exists() or path.is_file() or path.is_dir():
            return file
        if not (text := path.read_text(encoding="utf-8")).strip():
            raise UserError(
                f"{file} is empty\na pipe is read once: for several processes, save the configuration in a file"
            )
        folder = Path(tempfile.mkdtemp())
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        copy = folder / f"{path.name}.yaml"
        copy.write_text(text, encoding="utf-8")
        return str(copy)

    def _given(self, key: str) -> str | None:
        """The value of a dotted key on the command line, the last one if it is given several times."""
        section, _, remainder = key.partition(".")
        values, _ = split_option(self.options, f"--{key}", f"--{section}.init_args.{remainder}")
        return values[-1] if values else None

    def get(self, key: str) -> Any:
        """Returns the value of a dotted key, from the command line or else from the configuration files."""
        return self.in_files(key) if (given := self._given(key)) is None else given

    def in_files(self, key: str) -> Any:
        """Returns the value of a dotted key in the configuration files; None if they have none."""
        value: Any = self._settings
        for part in key.split("."):
            value = run_dir.get_init_args(value).get(part)
        return value

    def _find_checkpoint(self, path: Any) -> Path | None:
        if path is not None and not isinstance(path, str):
            raise UserError(f"ckpt_path: {path} is not a path\ngive the path of a checkpoint, or best or last")
        root, name = Path(str(self.get("trainer.default_root_dir") or "runs")), self.get("name")
        if self.subcommand == "doctor":
            if path is not None:
                raise UserError(
                    "ckpt_path: doctor measures the start of a new run\n"
                    "remove it; to start from the weights of a checkpoint use --model.weights"
                )
            return None
        if path is not None:
            order = ("last", "best") if self.subcommand == "fit" else ("best", "last")
            return run_dir.find_checkpoint(path, root, None if name is None else str(name), order)
        if self.subcommand == "fit":
            return run_dir.find_interrupted_run(root, str(name or "resnet"), shell_command(self.args))
        # Published weights are evaluated without a checkpoint; a network can load its own, as those of timm do.
        if self.get("model.weights") or (self.subcommand == "probe" and self.get("model.backbone")):
            return None
        if self.subcommand == "probe":
            raise UserError("probe needs pretrained weights\ngive --model.weights WEIGHTS, or --ckpt_path PATH")
        raise UserError(
            f"{self.subcommand} needs a checkpoint\n"
            "give --ckpt_path PATH, or --ckpt_path best for the best checkpoint of the newest run"
        )

    @property
    def data_class(self) -> str:
        """The data module's class, as its name or import path; empty if none is given."""
        given = self._given("data.class_path") or self._given("data")
        # `--data data.yaml` names a file with the section.
        data = self._settings.get("data") if given is None or Path(given).is_file() else {"class_path": given}
        path = data.get("class_path") if isinstance(data, dict) else None
        return path if isinstance(path, str) else ""


def split_option(args: Sequence[str], *names: str) -> tuple[list[str], list[str]]:
    """Extracts all values of one option.

    Args:
        args: the arguments.
        names: names of the option, such as `--config` and `-c`.

    Returns:
        The values and the remaining arguments, both in order.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument(*names, action="append", default=[], dest="values")
    try:
        given, others = parser.parse_known_args(args)
    except argparse.ArgumentError as error:
        raise UserError(f"{names[0]} needs a value") from error
    return given.values, others


def _class_help(options: Sequence[str]) -> tuple[str, str] | None:
    """Key and class name of `--KEY.help NAME`."""
    for option, following in pairwise([*options, "-"]):
        if match := CLASS_HELP.fullmatch(option):
            name = match[2] or ("" if following.startswith("-") else following)
            return match[1].replace(".init_args", ""), name
    return None


def _check_options(options: Sequence[str], own_data: bool = False) -> None:
    """Answers options of other training scripts with the option to use here.

    Args:
        options: the options.
        own_data: whether the data module is or can be the user's own, which can have options of any name.
    """
    for option, following in pairwise([*options, "-"]):
        name, _, value = option.partition("=")
        if not name.startswith("--"):
            continue
        value = value or ("" if following.startswith("-") else following)
        key = name.removeprefix("--").replace("-", "_")
        if (instead := OTHER_OPTIONS.get(key)) and not (own_data and key.startswith("data.")):
            raise UserError(f"unknown option {name}\nuse {f'{instead} {value}'.rstrip()}")
        if instead := OTHER_SWITCHES.get(key):
            raise UserError(f"unknown option {name}\nuse {instead}")
        if key in ("data", "model") and value.endswith(".py"):
            module = value.removesuffix(".py").replace("/", ".")
            raise UserError(f"--{key}: {value} is a file\ngive the class in it: --{key} {module}.CLASS")
        is_path = "/" in value and not value.startswith("{")
        if key == "data" and (is_path or Path(value).is_dir()) and value and not Path(value).is_file():
            raise UserError(f"--data: {value} is not a data module\nuse --data ImageFolder --data.root {value}")


def _check_not_bare(options: Sequence[str], subcommand: str) -> None:
    """Names the configurations to start from if neither data nor a model is given."""
    names = [option.partition("=")[0] for option in options]
    if any(name in ("--data", "--data.class_path", "--print_config") or name.startswith("--model") for name in names):
        return
    configs = sorted((name for name in config_names() if "/" not in name), key=lambda name: name != "folder")
    listed = ", ".join(f"{name} (your own images)" if name == "folder" else name for name in configs)
    raise UserError(f"{subcommand} needs a configuration\nstart from --config {listed}")


def _deep_merge(lower: dict[str, Any], upper: dict[str, Any]) -> dict[str, Any]:
    """Merges two mappings key by key; `upper` wins."""
    both = {
        key: _deep_merge(lower[key], upper[key])
        for key in lower.keys() & upper.keys()
        if isinstance(lower[key], dict) and isinstance(upper[key], dict)
    }
    return lower | upper | both
