"""LightningCLI subclass: builds data, model and Trainer from the command line, YAML files and a checkpoint."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import copy_context
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, TypeVar

import torch
import yaml
from jsonargparse import ArgumentError
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from typing_extensions import override

from resnet_pl import checkpoint as ckpt
from resnet_pl import run_dir
from resnet_pl.callbacks.access import get_callbacks
from resnet_pl.callbacks.finders import keep_found
from resnet_pl.cli.arguments import TRAINER_DEFAULTS, add_shared_arguments, parser_kwargs
from resnet_pl.cli.errors import silence_warnings, translate_exception
from resnet_pl.cli.list_options import add_defaults, drop_repeated, in_order
from resnet_pl.cli.published_weights import published_config
from resnet_pl.cli.run_loggers import continued
from resnet_pl.cli.trainer_arguments import trainer_arguments
from resnet_pl.cli.trainer_checks import check_processes, check_trainer
from resnet_pl.command_line import CommandLine
from resnet_pl.config import check_annotations, expand_arguments, keep_short_names, keep_text, parser_message
from resnet_pl.data import ImageDataModule
from resnet_pl.given_arguments import keep_whole_numbers, names_other_packages, parse
from resnet_pl.import_paths import check_objects
from resnet_pl.load import check_reopens, config_file
from resnet_pl.utils import UserError, missing_folders, remove_empty, run_on_rank_zero

CallbackType = TypeVar("CallbackType", bound=Callback)


def run(command_line: CommandLine, subcommand: ModuleType) -> int:
    """Runs a subcommand and returns the exit code.

    Args:
        command_line: the command line.
        subcommand: module of the subcommand, with `add_arguments(parser)`, `callbacks(cli)`, `run(cli)`, and with
            `loggers(cli, given)` if it has loggers.

    Raises:
        UserError: an error the user can fix.
    """
    silence_warnings()
    # A thread hands its error to the main thread, which reports it: TensorBoard's writer, if the disk is full.
    threading.excepthook = lambda args: print(f"note: {args.exc_type.__name__}: {args.exc_value}", file=sys.stderr)
    try:
        # In a separate context: jsonargparse would otherwise hold model, data and workers until the next command.
        copy_context().run(lambda: subcommand.run(ProjectCLI(command_line, subcommand)))
    except UserError:
        raise
    except SystemExit as end:
        if end.code == 1:  # Lightning's exit code after Ctrl-C
            raise KeyboardInterrupt from end
        raise
    except Exception as error:
        if message := translate_exception(error):
            raise UserError(message) from error
        raise
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # Lightning does this for NCCL only. With gloo, a thread that still holds a tensor at exit aborts the process,
        # and torchrun would treat that as a failure and restart the training.
        torch.distributed.destroy_process_group()
    return 0


class ProjectCLI(LightningCLI):
    """Builds data, model and Trainer of a subcommand.

    Values on the command line override `--config` files, later files override earlier ones, and files override the
    configuration in the checkpoint.

    Args:
        command_line: the command line.
        module: module of the subcommand.

    Attributes:
        checkpoint: contents of the checkpoint, None without one.
        run_folder: folder that `fit` writes to.
    """

    # What Python code has built in place of the sections `model` and `data`, see `api.py`.
    given: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, command_line: CommandLine, module: ModuleType) -> None:
        self.command_line, self.module, self.run_folder = command_line, module, Path()
        self.checkpoint = ckpt.read(command_line.checkpoint) if command_line.checkpoint else None
        self._new_run: Path | None = None  # the run folder, if this command has created it
        self._new_folders: list[Path] = []  # its parents that did not exist before
        try:
            super().__init__(
                LightningModule,
                LightningDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                save_config_callback=None,
                auto_configure_optimizers=False,
                seed_everything_default=0,
                parser_kwargs=parser_kwargs(command_line),
                trainer_defaults=TRAINER_DEFAULTS,
                args=command_line.args,
                run=False,
            )
        except (ValueError, TypeError, ImportError, RuntimeError) as error:
            # Raised by a constructor for a wrong value. jsonargparse raises its own exception from it.
            cause = error.__cause__
            while cause is not None and not isinstance(cause, UserError):
                cause = cause.__cause__
            if cause is not None:
                raise cause from error
            raise UserError(translate_exception(error) or parser_message(str(error))) from error

    def __deepcopy__(self, memo: Any) -> ProjectCLI:
        # The optimizer of a model refers to this object, and weight averaging copies the model.
        return self

    # ------------------------------------------------------------------------------------ parsing
    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.set_defaults({"model": {"class_path": "resnet_pl.ImageClassifier"}})
        add_shared_arguments(parser)
        self.module.add_arguments(parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses the configuration of the checkpoint, then the files, then the options."""
        stored: dict[str, Any] = {}
        path, data_class = self.command_line.checkpoint, self.command_line.data_class
        if self.checkpoint is not None and path is not None:
            given = [*self.given, *(key for key in ("model", "data") if self.command_line.get(key))]
            given += ["data"] if self.command_line.subcommand == "export" else []  # it needs only the model
            stored = ckpt.config_of(self.checkpoint, path, self.command_line.subcommand, given)
            if "data" in (self.stored_config.get(run_dir.BUILT_IN_PYTHON) or ()):
                stored["data"] = {"class_path": "resnet_pl.export.NoData"}
            if run_dir.class_name(data_class) not in ("", run_dir.class_name(stored.get("data"))):
                stored.pop("data", None)  # its arguments are those of another class
            arguments = stored.get("model", {}).get("init_args", {})
            for key in ("optimizer", "lr_scheduler"):
                # The name of a function cannot be merged with arguments of the default class, from a file.
                if isinstance(arguments.get(key), str) and self.command_line.get(f"model.{key}") is not None:
                    del arguments[key]
        subcommand, weights = self.command_line.subcommand, self.command_line.get("model.weights")
        if self.checkpoint is None and (subcommand == "probe" or (weights and not self.command_line.trains)):
            stored = published_config(self.command_line)
        if file := self.command_line.exported:
            stored = {
                "model": {"class_path": "resnet_pl.export.ExportedNetwork", "init_args": {"path": str(file)}},
                "data": {"class_path": "resnet_pl.export.ExportedImages", "init_args": {"path": str(file)}},
            }
        first = add_defaults(stored, self.command_line)
        # As a file: only `--config` merges the arguments of classes. It comes first, so that the others override it.
        with config_file(first) as file:
            files = [(file, first), *zip(self.command_line.files, self.command_line.contents, strict=True)]
            try:
                self.config = parse(parser, in_order(files, expand_arguments(self.command_line.options)))
            except ArgumentError as error:
                raise UserError(parser_message(str(error), parser.get_defaults().keys())) from error
        if self.checkpoint is not None and path is not None:
            check_objects(self.config.as_dict(), path)
            self.config["ckpt_path"] = str(path)
        keep_short_names(self.config)
        for section in ("model", "data"):
            check_annotations(section, (self.config.get(section) or {}).get("class_path"))
        drop_repeated(self.config, stored)
        if self.checkpoint is not None and self.command_line.subcommand == "fit":
            keep_found(self.config, stored)
        if self.command_line.trains and names_other_packages(self.config):
            check_reopens(self.plain_config)
            del self.plain_config, self.config_dump  # what follows may change the configuration

    @property
    def stored_config(self) -> dict[str, Any]:
        """The configuration in the checkpoint; empty without one."""
        return ((self.checkpoint or {}).get(ckpt.METADATA_KEY) or {}).get("config") or {}

    @cached_property
    def config_dump(self) -> dict[str, Any]:
        """The configuration as Lightning writes it, which takes the hyperparameters of model and data from it."""
        options = {"skip_validation": True, "skip_link_targets": False, "skip_none": False}  # it has been parsed
        # Later versions of jsonargparse call `skip_none` `skip_unset`.
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            dumped = yaml.safe_load(self.parser.dump(self.config, format="yaml", **options))
        return keep_text(dumped, self.config.as_dict())

    @cached_property
    def plain_config(self) -> dict[str, Any]:
        """The resolved configuration as plain types, as stored in config.yaml and in checkpoints."""
        config = deepcopy(self.config_dump)
        keep_whole_numbers(config.get("trainer") or {}, self._written)
        if self.checkpoint is not None and self.command_line.subcommand == "fit" and config.get("model"):
            # The classes that were read from the data are not part of the configuration, before and after a resume.
            before = run_dir.get_init_args(self.stored_config.get("model"))
            read = [name for name in ckpt.CLASS_ARGUMENTS if self.command_line.get(f"model.{name}") is None]
            config["model"]["init_args"] |= {name: before[name] for name in read if name in before}
            # The network is built without pretrained weights, but config.yaml can start another run.
            network = run_dir.get_init_args(before.get("backbone"))
            now = config["model"]["init_args"].get("backbone")
            if isinstance(now, dict) and now.get("init_args"):
                stripped = [name for name in ckpt.PRETRAINED_ARGUMENTS if name in network and name in now["init_args"]]
                now["init_args"] |= {name: network[name] for name in stripped}
        return {key: value for key, value in config.items() if key not in ("config", "ckpt_path")}

    # ------------------------------------------------------------------------------------ building
    def instantiate_classes(self) -> None:
        """Builds data, model and Trainer."""
        if run := self.command_line.checkpoint and run_dir.run_dir_of(self.command_line.checkpoint):
            # The ids of the loggers' runs are not part of the configuration: config.yaml can start another run.
            _ = self.plain_config
            self.config["trainer"]["logger"] = continued(self.config["trainer"]["logger"], run)
        super().instantiate_classes()
        if isinstance(self.datamodule, ImageDataModule):
            self.datamodule.bad_images_dir = self.output
        if self.checkpoint is not None:
            # With a checkpoint the model does not download pretrained weights.
            self.trainer.ckpt_path = str(self.command_line.checkpoint)
            self._check_normalization()
            provenance = self.checkpoint[ckpt.METADATA_KEY]["data"]
            if provenance and isinstance(self.datamodule, ImageDataModule):
                self.datamodule.use_provenance(provenance)

    def _check_normalization(self) -> None:
        """Rejects a mean or std that differs from the checkpoint's: they are buffers of the model."""
        stored = run_dir.get_init_args(self.stored_config.get("data"))
        now = run_dir.get_init_args(self.plain_config["data"])
        for key in ("mean", "std"):
            if self.command_line.get(f"data.{key}") is not None and key in stored and now.get(key) != stored[key]:
                raise UserError(
                    f"data.{key}: the checkpoint was trained with {key} {stored[key]}, not {now.get(key)}\n"
                    "remove the option; the normalization is restored from the checkpoint"
                )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Adds the loggers and callbacks of the subcommand to those of the configuration."""
        keep_whole_numbers(self.config_init["trainer"], self._written)
        check_trainer(self.config_init["trainer"], self.model)
        with self.removing_new_run():
            if self.command_line.subcommand == "fit":
                self.run_folder = self._find_run_folder()
            trainer = super().instantiate_trainer(**trainer_arguments(self), **kwargs)
            check_processes(trainer, self.config_init["trainer"])
        return trainer

    def _written(self, name: str) -> Any:
        """Returns the value of an argument of the Trainer as the user has written it, or as the checkpoint holds it."""
        given = self.command_line.get(f"trainer.{name}")
        return (self.stored_config.get("trainer") or {}).get(name) if given is None else given

    def _find_run_folder(self) -> Path:
        """Returns the run folder of the checkpoint, or a new one; `fast_dev_run` must not change the former."""
        path = None if self.fast_dev_run else self.command_line.checkpoint
        if path and (found := run_dir.run_dir_of(path)):
            return found
        root, name = Path(self.config_init["trainer"]["default_root_dir"]), self.config_init["name"]
        self._new_folders = missing_folders(root / name)
        self._new_run = _new_run(root, name)
        return self._new_run

    @property
    def fast_dev_run(self) -> bool:
        """Whether only a few batches are run, to try the code."""
        return bool(self.config["trainer"]["fast_dev_run"])

    @property
    def callbacks(self) -> list[Callback]:
        """The callbacks of the Trainer."""
        return get_callbacks(self.trainer)

    def callback(self, kind: type[CallbackType]) -> CallbackType | None:
        """Returns the Trainer's first callback of a class."""
        return next((callback for callback in self.callbacks if isinstance(callback, kind)), None)

    @property
    def output(self) -> Path:
        """Folder that the subcommand writes to: `--output`, else the run folder, else the working folder."""
        if self.command_line.subcommand == "fit":
            return self.run_folder
        if asked := self.config.get("output"):
            return Path(asked)
        if (file := self.command_line.exported) and (file.parent / "config.yaml").is_file():
            return file.parent  # `export` writes into the run folder
        return (self.command_line.checkpoint and run_dir.run_dir_of(self.command_line.checkpoint)) or Path()

    @contextmanager
    def removing_new_run(self) -> Iterator[None]:
        """Removes a new run folder if the block fails before the first step: it would count as the newest run."""
        try:
            yield
        except BaseException:
            start = self.checkpoint["global_step"] if self.checkpoint else 0
            has_trained = getattr(getattr(self, "trainer", None), "global_step", 0) > start
            saved = self._new_run is not None and any(self._new_run.glob("checkpoints/*"))
            if self._new_run is not None and (self.fast_dev_run or not (has_trained or saved)):
                self.remove_new_run()
            raise

    def remove_new_run(self) -> None:
        """Removes the run folder that this command has created, and its parents that did not exist before."""
        if self._new_run is not None:
            run_on_rank_zero(shutil.rmtree, self._new_run)
            run_on_rank_zero(remove_empty, self._new_folders)


def _new_run(root: Path, name: str) -> Path:
    """Creates the next version of a run on rank 0. The other ranks receive its path by broadcast, later."""
    if getattr(rank_zero_only, "rank", 0) != 0:
        # Processes started by Lightning inherit the path. Those of torchrun and of other machines write nothing.
        return Path(os.environ.get("RESNET_PL_RUN", root / name / "version_of_the_first_process"))
    run = run_dir.create_run_dir(root, name)
    os.environ["RESNET_PL_RUN"] = str(run)
    return run
