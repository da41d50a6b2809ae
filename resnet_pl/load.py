"""From a configuration or a checkpoint to a network and its data, without a Trainer."""

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
from resnet_pl.classifier import ImageClassifier
from resnet_pl.config import PARSER_MODE, expand_arguments
from resnet_pl.data import ImageDataModule
from resnet_pl.run_dir import find_checkpoint, get_init_args, to_yaml


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
