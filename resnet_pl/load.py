"""From a configuration or a checkpoint to a network and its data, without a Trainer."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, get_loader, set_dumper, set_loader
from lightning.pytorch import LightningDataModule, LightningModule

from resnet_pl import checkpoint as ckpt
from resnet_pl import models
from resnet_pl._renamed import upgrade_config, upgrade_value
from resnet_pl.classifier import ImageClassifier
from resnet_pl.data import ImageDataModule
from resnet_pl.run_dir import find_checkpoint, to_yaml

# jsonargparse's name for the way configurations are read here.
PARSER_MODE = "resnet_pl"


def full_name(name: Any) -> Any:
    """The path of one of our networks, which are functions: jsonargparse finds only classes by their name alone."""
    return f"resnet_pl.models.{name}" if isinstance(name, str) and name in models.NETWORKS else name


def _expand(value: Any, key: str = "") -> Any:
    """Writes the names of our networks in full, wherever a backbone or a class is named."""
    if isinstance(value, dict):
        return {name: _expand(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_expand(item) for item in value]
    return full_name(value) if key in ("backbone", "class_path") else value


_load_yaml = get_loader("yaml")


def _load(text: str) -> Any:
    value = _load_yaml(text)
    return _expand(upgrade_config(value, "configuration") if isinstance(value, dict) else upgrade_value(value))


set_loader(PARSER_MODE, _load, exceptions=(yaml.YAMLError,))
set_dumper(PARSER_MODE, to_yaml)


def expand_arguments(args: Sequence[str]) -> list[str]:
    """A command line with the names of our networks in full: `--model.backbone resnet50`."""
    expanded: list[str] = []
    for word in args:
        key, equals, value = word.partition("=")
        if equals and key.endswith((".backbone", "--backbone", ".class_path")):
            word = f"{key}={full_name(value)}"
        elif expanded and expanded[-1].endswith((".backbone", "--backbone", ".class_path")):
            word = full_name(word)
        expanded.append(word)
    return expanded


@contextmanager
def config_file(config: Mapping[str, Any]) -> Iterator[str]:
    """Gives the name of a temporary YAML file: only `--config` merges the arguments of classes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.yaml"
        path.write_text(to_yaml(dict(config)), encoding="utf-8")
        yield str(path)


def build(config: Mapping[str, Any], options: Sequence[str] = ()) -> tuple[ImageClassifier, ImageDataModule]:
    """Builds the network and the data of a configuration.

    Args:
        config: with `model` and `data`, each with a `class_path`.
        options: command-line options that win over it, such as `--data.root=elsewhere`.
    """
    parser = ArgumentParser(exit_on_error=False, parser_mode=PARSER_MODE)
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(LightningModule, "model")
    parser.add_subclass_arguments(LightningDataModule, "data")
    with config_file({key: config[key] for key in ("model", "data") if key in config}) as file:
        # In a context of its own: jsonargparse would keep what it has built alive.
        built = copy_context().run(
            lambda: parser.instantiate_classes(parser.parse_args(["--config", file, *expand_arguments(options)]))
        )
    return built.model, built.data


def load_run(
    path: str | Path, data: Mapping[str, Any] | None = None, options: Sequence[str] = ()
) -> tuple[ImageClassifier, ImageDataModule]:
    """Loads the network of a checkpoint, in evaluation mode, and its data with the checkpoint's splits.

    Args:
        path: a checkpoint, a run folder, `best` or `last`.
        data: arguments of the data module that win over the checkpoint's, such as `{"root": "elsewhere"}`.
        options: the same as command-line options, `--data.root=elsewhere`.

    Raises:
        UserError: there is no such checkpoint, or its data is not there.
    """
    file = find_checkpoint(path)
    checkpoint = ckpt.read(file)
    config = ckpt.config_of(checkpoint, file, "test")
    given = [f"--data.{key}={json.dumps(value)}" for key, value in (data or {}).items()]
    model, datamodule = build(config, [*options, *given])
    model.config = checkpoint[ckpt.KEY]["config"]
    model.configure_model()
    model.load_state_dict(checkpoint["state_dict"])
    model.eval()
    if provenance := checkpoint[ckpt.KEY]["data"]:
        datamodule.use_provenance(provenance)
    datamodule.prepare_data()
    datamodule.setup("test")
    return model, datamodule
