"""Builds a model and its data module from a configuration or a checkpoint, without a Trainer."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule, LightningModule

from resnet_pl import checkpoint as ckpt
from resnet_pl._renamed import upgrade_arguments
from resnet_pl.classifier import ImageClassifier
from resnet_pl.config import PARSER_MODE, expand_arguments
from resnet_pl.data import ImageDataModule
from resnet_pl.run_dir import find_checkpoint, get_init_args, to_yaml


@contextmanager
def config_file(config: Mapping[str, Any]) -> Iterator[str]:
    """Writes a configuration to a temporary YAML file and yields its name.

    Only files given with `--config` are merged argument by argument where they name the same class.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.yaml"
        path.write_text(to_yaml(dict(config)), encoding="utf-8")
        yield str(path)


def build(config: Mapping[str, Any], options: Sequence[str] = ()) -> tuple[ImageClassifier, ImageDataModule]:
    """Returns the model and the data module of a configuration.

    Args:
        config: configuration with the sections `model` and `data`, each with a `class_path`.
        options: command-line options that take precedence, such as `--data.root=elsewhere`.
    """
    parser = ArgumentParser(exit_on_error=False, parser_mode=PARSER_MODE)
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(LightningModule, "model")
    parser.add_subclass_arguments(LightningDataModule, "data")
    with config_file({key: config[key] for key in ("model", "data") if key in config}) as file:
        # In a separate context: jsonargparse keeps references to the objects in context variables.
        args = ["--config", file, *expand_arguments(upgrade_arguments(options))]
        objects = copy_context().run(lambda: parser.instantiate_classes(parser.parse_args(args)))
    return objects["model"], objects["data"]


def load_run(
    path: str | Path, data: Mapping[str, Any] | None = None, options: Sequence[str] = ()
) -> tuple[ImageClassifier, ImageDataModule]:
    """Loads the model of a checkpoint, in evaluation mode, and its data module with the checkpoint's splits.

    Args:
        path: checkpoint, run folder, `best` or `last`.
        data: arguments of the data module that replace the checkpoint's, such as `{"root": "elsewhere"}`.
        options: the same as command-line options, such as `--data.root=elsewhere`.

    Raises:
        UserError: the checkpoint or its data was not found.
    """
    file = find_checkpoint(path)
    checkpoint = ckpt.read(file)
    config = ckpt.config_of(checkpoint, file, "test")
    if data:
        config["data"] = {**config["data"], "init_args": get_init_args(config["data"]) | dict(data)}
    model, datamodule = build(config, options)
    model.config = checkpoint[ckpt.METADATA_KEY]["config"]
    model.configure_model()
    model.load_state_dict(checkpoint["state_dict"])
    model.eval()
    if provenance := checkpoint[ckpt.METADATA_KEY]["data"]:
        datamodule.use_provenance(provenance)
    datamodule.prepare_data()
    datamodule.setup("test")
    return model, datamodule
