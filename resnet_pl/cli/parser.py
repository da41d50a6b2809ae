"""LightningCLI subclass: builds data, model and Trainer from the command line, YAML files and a checkpoint."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import copy_context
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch
import yaml
from jsonargparse import ArgumentError
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import PassThroughProfiler
from typing_extensions import override

from resnet_pl import checkpoint as ckpt
from resnet_pl import run_dir
from resnet_pl.callbacks import (
    BestCheckpoint,
    EpochSummary,
    GracefulStop,
    LastCheckpoint,
    MetricsCSV,
    ProgressBar,
    RunSummary,
    TensorBoardCurves,
    Throughput,
)
from resnet_pl.cli.arguments import TRAINER_DEFAULTS, add_shared_arguments, parser_kwargs
from resnet_pl.cli.errors import check_trainer, silence_warnings, translate_exception
from resnet_pl.command_line import CommandLine
from resnet_pl.config import expand_arguments, parser_message
from resnet_pl.load import config_file
from resnet_pl.utils import UserError, run_on_rank_zero

CallbackType = TypeVar("CallbackType", bound=Callback)


def run(command_line: CommandLine, subcommand: ModuleType) -> int:
    """Runs a subcommand and returns the exit code.

    Args:
        command_line: the command line.
        subcommand: module of the subcommand, with `add_arguments(parser, name)` and `run(cli)`.

    Raises:
        UserError: an error the user can fix.
    """
    silence_warnings()
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


class NullProfiler(PassThroughProfiler):
    """Profiler that does nothing. PassThroughProfiler enters 79 generator-based context managers per step."""

    NOTHING = nullcontext()

    @override
    def profile(  # pyright: ignore[reportIncompatibleMethodOverride] - any context manager will do
        self, action_name: str
    ) -> AbstractContextManager[None]:
        return self.NOTHING


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

    def __init__(self, command_line: CommandLine, module: ModuleType) -> None:
        self.command_line, self.module, self.run_folder = command_line, module, Path()
        self.checkpoint = ckpt.read(command_line.checkpoint) if command_line.checkpoint else None
        self._new_run = False
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
            # Raised by a constructor for a wrong value.
            raise UserError(translate_exception(error) or parser_message(str(error))) from error

    def __deepcopy__(self, memo: Any) -> ProjectCLI:
        # The optimizer of a model refers to this object, and weight averaging copies the model.
        return self

    # ------------------------------------------------------------------------------------ parsing
    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.set_defaults({"model": {"class_path": "resnet_pl.ImageClassifier"}})
        add_shared_arguments(parser)
        self.module.add_arguments(parser, self.command_line.subcommand)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses the configuration of the checkpoint, then the files, then the options."""
        stored = None
        path = self.command_line.checkpoint
        if self.checkpoint is not None and path is not None:
            stored = ckpt.config_of(self.checkpoint, path, self.command_line.subcommand)
            if self.command_line.data_class not in ("", run_dir.class_name(stored.get("data"))):
                stored.pop("data", None)  # its arguments are those of another class
        # As a file: only `--config` merges the arguments of classes. It comes first, so that the others override it.
        with config_file(stored) if stored is not None else nullcontext() as file:
            files = [name for name in (file, *self.command_line.files) if name]
            words = [word for name in files for word in ("--config", name)]
            try:
                self.config = parser.parse_args([*words, *expand_arguments(self.command_line.options)])
            except ArgumentError as error:
                raise UserError(parser_message(str(error), parser.get_defaults().keys())) from error
        if self.checkpoint is not None:
            self.config["ckpt_path"] = str(self.command_line.checkpoint)

    @property
    def plain_config(self) -> dict[str, Any]:
        """The resolved configuration as plain types, as stored in config.yaml and in checkpoints."""
        text = self.parser.dump(self.config, skip_link_targets=False, skip_none=False, format="yaml")
        return {key: value for key, value in yaml.safe_load(text).items() if key not in ("config", "ckpt_path")}

    # ------------------------------------------------------------------------------------ building
    def instantiate_classes(self) -> None:
        """Builds data, model and Trainer."""
        super().instantiate_classes()
        self.model.config = self.plain_config
        self.datamodule.bad_images_dir = self.output
        if self.checkpoint is not None:
            # With a checkpoint the model does not download pretrained weights.
            self.trainer.ckpt_path = str(self.command_line.checkpoint)
            self._check_normalization(self.checkpoint)
            if provenance := self.checkpoint[ckpt.METADATA_KEY]["data"]:
                self.datamodule.use_provenance(provenance)

    def _check_normalization(self, checkpoint: dict[str, Any]) -> None:
        """Rejects a mean or std that differs from the checkpoint's: they are buffers of the model."""
        stored = run_dir.get_init_args((checkpoint[ckpt.METADATA_KEY].get("config") or {}).get("data"))
        now = run_dir.get_init_args(self.plain_config["data"])
        for key in ("mean", "std"):
            if self.command_line.get(f"data.{key}") is not None and key in stored and now.get(key) != stored[key]:
                raise UserError(
                    f"data.{key}: the checkpoint was trained with {key} {stored[key]}, not {now.get(key)}\n"
                    "remove the option; the normalization is restored from the checkpoint"
                )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Adds loggers, checkpoint callbacks and reports to those of the configuration."""
        settings = self.config_init
        config = settings["trainer"]
        check_trainer(config)
        if torch.cuda.is_available():
            torch.set_float32_matmul_precision("high" if settings["tf32"] else "highest")
            torch.backends.cudnn.allow_tf32 = settings["tf32"]
        own: dict[str, Any] = {"plugins": [*_as_list(config["plugins"]), ckpt.AtomicCheckpointIO()]}
        own["profiler"] = config["profiler"] or NullProfiler()
        callbacks = _as_list(config["callbacks"])
        if self.command_line.subcommand == "fit":
            self.run_folder = self._find_run_folder()
            own["logger"] = self._loggers(config["logger"])
            callbacks += [RunSummary(self.run_folder, self.command_line.args), Throughput()]
            if config["enable_checkpointing"] is not False:
                folder = self.run_folder / "checkpoints"
                callbacks += [BestCheckpoint(folder), LastCheckpoint(folder, **settings["checkpoint"])]
                callbacks += [GracefulStop(folder)]
            if config["benchmark"] is None:
                # Training batches have a fixed shape. The algorithm that cuDNN finds fastest differs between runs.
                own["benchmark"] = not config["deterministic"]
        else:
            own["logger"] = False
            callbacks += [GracefulStop(self.output), *self.module.callbacks(self)]
        if config["enable_progress_bar"] is not False:
            own["enable_progress_bar"] = sys.stdout.isatty()
            # The bar comes last: the other callbacks print their first lines before it is drawn.
            callbacks += [EpochSummary()] if self.command_line.subcommand == "fit" else []
            callbacks += [ProgressBar()] if sys.stdout.isatty() else []
        with self.removing_new_run():
            return super().instantiate_trainer(**own, callbacks=callbacks, **kwargs)

    def _find_run_folder(self) -> Path:
        """Returns the run folder of the checkpoint, or a new one."""
        if self.command_line.checkpoint and (found := run_dir.run_dir_of(self.command_line.checkpoint)):
            return found
        self._new_run = True
        return _new_run(Path(self.config_init["trainer"]["default_root_dir"]), self.config_init["name"])

    def _loggers(self, given: Any) -> list[Logger] | bool:
        """TensorBoard and metrics.csv in the run folder; loggers of the configuration replace TensorBoard."""
        if given is False:
            return False
        # A resumed run repeats the steps after its checkpoint: loggers drop or hide the earlier values.
        run, start = self.run_folder, self.checkpoint["global_step"] if self.checkpoint else 0
        chosen = [TensorBoardCurves(run, start)] if given in (None, True) else _as_list(given)
        return [*chosen, MetricsCSV(run, start)]

    @property
    def callbacks(self) -> list[Callback]:
        """The callbacks of the Trainer."""
        return self.trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue] - set outside its class

    def callback(self, kind: type[CallbackType]) -> CallbackType | None:
        """Returns the Trainer's first callback of a class."""
        return next((callback for callback in self.callbacks if isinstance(callback, kind)), None)

    @property
    def output(self) -> Path:
        """Folder that the subcommand writes to: `--output`, else the run folder, else the working folder."""
        if self.command_line.subcommand == "fit":
            return self.run_folder
        if asked := self.config["output"]:
            return Path(asked)
        return (self.command_line.checkpoint and run_dir.run_dir_of(self.command_line.checkpoint)) or Path()

    @contextmanager
    def removing_new_run(self) -> Iterator[None]:
        """Removes a new run folder if the block fails before the first step: it would count as the newest run."""
        try:
            yield
        except BaseException:
            if self._new_run and not getattr(getattr(self, "trainer", None), "global_step", 0):
                run_on_rank_zero(shutil.rmtree, self.run_folder)
            raise


def _new_run(root: Path, name: str) -> Path:
    """Creates the next version of a run on rank 0. The other ranks receive its path by broadcast, later."""
    if getattr(rank_zero_only, "rank", 0) != 0:
        # Processes started by Lightning inherit the path. Those of torchrun and of other machines write nothing.
        return Path(os.environ.get("RESNET_PL_RUN", root / name / "version_of_the_first_process"))
    run = run_dir.create_run_dir(root, name)
    os.environ["RESNET_PL_RUN"] = str(run)
    return run


def _as_list(value: Any) -> list[Any]:
    """A value, a list of values or None, as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
