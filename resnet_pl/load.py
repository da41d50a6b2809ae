"""Builds a model and its data module from a configuration or a checkpoint, without a Trainer."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import Context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities.seed import isolate_rng

from resnet_pl import checkpoint as ckpt
from resnet_pl._renamed import upgrade_arguments
from resnet_pl.classifier import ImageClassifier
from resnet_pl.config import expand_arguments, instantiate, keep_short_names, parser_message
from resnet_pl.data import ImageDataModule
from resnet_pl.data.loaders import as_data_module
from resnet_pl.evaluation.classify import Preprocessing
from resnet_pl.given_arguments import parse
from resnet_pl.import_paths import check_objects, refuse_names
from resnet_pl.run_dir import find_checkpoint, get_init_args, to_yaml
from resnet_pl.utils import UserError, import_from_working_folder
from resnet_pl.yaml_forms import PARSER_MODE


@contextmanager
def config_file(config: Mapping[str, Any]) -> Iterator[str]:
    """Writes a configuration to a temporary YAML file and yields its name.

    Only files given with `--config` are merged argument by argument where they name the same class.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.yaml"
        path.write_text(to_yaml(dict(config), ascii_only=True), encoding="utf-8")
        yield str(path)


def build(
    config: Mapping[str, Any],
    options: Sequence[str] = (),
    checkpoint: Path | None = None,
    skip: Collection[str] = (),
) -> tuple[Any, Any]:
    """Returns the model and the data module of a configuration.

    Args:
        config: configuration with the sections `model` and `data`, each with a `class_path`.
        options: command-line options that take precedence, such as `--data.root=elsewhere`.
        checkpoint: the file that the configuration is from, if any.
        skip: sections, `model` or `data`, that are not built; None is returned for them.

    Raises:
        UserError: a value is wrong, or the configuration of a checkpoint names code that it must not name.
    """
    parser, parsed = _parse(config, options, checkpoint, skip)
    # In an empty context: jsonargparse keeps references to the objects in context variables, and Lightning the
    # hyperparameters of a module whose constructor calls this function.
    objects = Context().run(lambda: instantiate(parser, parsed))
    return objects.get("model"), objects.get("data")


def _parse(
    config: Mapping[str, Any], options: Sequence[str] = (), checkpoint: Path | None = None, skip: Collection[str] = ()
) -> tuple[ArgumentParser, Namespace]:
    parser = ArgumentParser(exit_on_error=False, parser_mode=PARSER_MODE)
    parser.add_argument("--config", action="config")
    kinds = {"model": LightningModule, "data": LightningDataModule}
    for key in kinds.keys() - set(skip):
        parser.add_subclass_arguments(kinds[key], key)
    import_from_working_folder()
    with config_file({key: config[key] for key in kinds if key in config and key not in skip}) as file:
        args = ["--config", file, *expand_arguments(upgrade_arguments(options))]
        try:
            parsed = Context().run(lambda: parse(parser, args))
        except ArgumentError as error:
            raise UserError(parser_message(str(error))) from error
    if checkpoint is not None:
        check_objects(parsed.as_dict(), checkpoint)
    keep_short_names(parsed)
    return parser, parsed


def check_reopens(config: Mapping[str, Any]) -> None:
    """Checks before a training that its checkpoints can be opened again.

    Args:
        config: configuration of the run, as it is stored.

    Raises:
        UserError: a value of the model or the data is not read back, or is refused.
    """
    given = [key for key in ("model", "data") if (config.get(key) or {}).get("class_path")]
    try:
        refuse_names({key: config[key] for key in given}, Path("config.yaml"))
        _parse(config, checkpoint=Path("config.yaml"), skip={"model", "data"} - set(given))
    except UserError as error:
        raise UserError(
            f"no checkpoint of this run could be opened again: {str(error).splitlines()[0]}\n"
            "give the argument a value that YAML can hold, or build the object inside the class"
        ) from error


def load_run(
    path: str | Path,
    data: Any = None,
    options: Sequence[str] = (),
    model: LightningModule | None = None,
    files: Sequence[Path] | None = None,
) -> tuple[Any, Any]:
    """Loads the model and the data of a checkpoint, see `api.load_run`; with `files`, the data to predict on them."""
    file = find_checkpoint(path)
    checkpoint = ckpt.read(file)
    other = None if data is None or isinstance(data, Mapping) else as_data_module(data)
    given = {key: value for key, value in (("model", model), ("data", other)) if value is not None}
    config = ckpt.config_of(checkpoint, file, "test", given)
    if isinstance(data, Mapping) and data:
        config["data"] = {**config["data"], "init_args": get_init_args(config["data"]) | dict(data)}
    with isolate_rng():
        # As in the commands: a data module can split its images with the global generator.
        seed = config.get("seed_everything")
        if isinstance(seed, int):
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
        return _load(checkpoint, config, options, file, given, files)


def load_model(path: str | Path) -> Any:
    """Loads the model of a checkpoint, see `api.load_model`."""
    file = find_checkpoint(path)
    checkpoint = ckpt.read(file)
    config = ckpt.config_of(checkpoint, file, "test", given=["data"])
    with isolate_rng():
        model, _ = build(config, checkpoint=file, skip=["data"])
    restore(model, checkpoint)
    return model


def restore(model: LightningModule, checkpoint: dict[str, Any]) -> None:
    """Loads the state of a checkpoint into a model and puts it into evaluation mode."""
    if isinstance(model, ImageClassifier):  # the constructor of a subclass need not take the classes
        hparams = checkpoint.get("hyper_parameters") or {}
        model.hparams.update({name: hparams[name] for name in ckpt.CLASS_ARGUMENTS if hparams.get(name) is not None})
    model.configure_model()
    model.on_load_checkpoint(checkpoint)
    model.load_state_dict(checkpoint["state_dict"])
    model.eval()


def _load(
    checkpoint: dict[str, Any],
    config: dict[str, Any],
    options: Sequence[str],
    file: Path,
    given: dict[str, Any],
    files: Sequence[Path] | None,
) -> tuple[Any, Any]:
    built = build(config, options, file, given)
    network: Any = given.get("model", built[0])
    datamodule: Any = given.get("data", built[1])
    restore(network, checkpoint)
    if isinstance(network, ImageClassifier) and isinstance(datamodule, ImageDataModule):
        network.preprocessing = Preprocessing.of_data(datamodule)  # an option can have changed it
    provenance = checkpoint[ckpt.METADATA_KEY]["data"]
    if provenance and isinstance(datamodule, ImageDataModule):
        datamodule.use_provenance(provenance)
    if files is not None:
        datamodule.set_predict_files(files)
    datamodule.prepare_data()
    datamodule.setup("test")
    return network, datamodule
