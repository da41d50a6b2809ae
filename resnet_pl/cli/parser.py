"""LightningCLI for this project: command line, configuration files and a checkpoint to data, network and trainer."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import copy_context
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentError
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.utilities.rank_zero import rank_zero_only

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
    Throughput,
)
from resnet_pl.classifier import ImageClassifier
from resnet_pl.cli.errors import check_trainer, silence_warnings, translate_exception
from resnet_pl.command_line import CommandLine
from resnet_pl.config import PARSER_MODE, expand_arguments, parser_message
from resnet_pl.load import config_file
from resnet_pl.utils import UserError, prog_name, run_on_rank_zero, shorten_help

CKPT_PATH = "a checkpoint; a run folder, for its best; or best or last, of the newest run (called --name, if given)"
TF32 = "whether a GPU may round factors of float32 products to 10 bits, which is several times faster; sums stay exact"


def run(command_line: CommandLine, subcommand: ModuleType) -> int:
    """Runs a subcommand; raises UserError where the user can put it right.

    Args:
        command_line: the command line.
        subcommand: its module, with `add_arguments(parser, name)` and `run(cli)`.
    """
    silence_warnings()
    try:
        # In a context of its own: jsonargparse would keep network, data and worker processes until the next command.
        copy_context().run(lambda: subcommand.run(ProjectCLI(command_line, subcommand)))
    except UserError:
        raise
    except SystemExit as end:
        if end.code == 1:  # Lightning's own after Ctrl-C
            raise KeyboardInterrupt from end
        raise
    except Exception as error:
        if message := translate_exception(error):
            raise UserError(message) from error
        raise
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # Lightning does this for NCCL alone. A thread of gloo that still holds a tensor while Python ends aborts the
        # process, and torchrun would take that for a failure and train again.
        torch.distributed.destroy_process_group()
    return 0


class NullProfiler(PassThroughProfiler):
    """No profiler, at no cost: Lightning's own makes a generator for each of the 79 names of a step."""

    NOTHING = nullcontext()

    def profile(self, action_name: str) -> AbstractContextManager[None]:
        """See Lightning's Profiler."""
        return self.NOTHING


class ProjectParser(LightningArgumentParser):
    """A parser whose help can be read."""

    def format_help(self) -> str:
        """See argparse."""
        return shorten_help(super().format_help())


class ProjectCLI(LightningCLI):
    """Data, network and trainer as the command line, configuration files and a checkpoint ask for them.

    Precedence rises from the classes' defaults over the checkpoint's configuration and `--config` files, in order, to
    values on the command line.

    Args:
        command_line: the command line, its checkpoint found.
        module: the subcommand's module.

    Attributes:
        run_folder: where a training writes.
    """

    def __init__(self, command_line: CommandLine, module: ModuleType) -> None:
        self.command_line, self.module, self.run_folder = command_line, module, Path()
        self.checkpoint = ckpt.read(command_line.checkpoint) if command_line.checkpoint else None
        self._new_run = False
        # Any class can be the model, ours by default. The help lists the arguments of ours.
        named = any(word.partition("=")[0] in ("--model", "--model.class_path") for word in command_line.args)
        help_of_ours = command_line.help and not named
        try:
            super().__init__(
                ImageClassifier if help_of_ours else LightningModule,
                LightningDataModule,
                subclass_mode_model=not help_of_ours,
                subclass_mode_data=True,
                parser_class=ProjectParser,
                save_config_callback=None,
                auto_configure_optimizers=False,
                seed_everything_default=0,
                parser_kwargs={
                    "prog": f"{prog_name()} {command_line.subcommand}",
                    "usage": f"{prog_name()} {command_line.subcommand} [--config FILE ...] [--key value ...]",
                    "parser_mode": PARSER_MODE,
                    "exit_on_error": False,
                    "allow_abbrev": False,
                },
                trainer_defaults={
                    "default_root_dir": "runs",
                    "max_epochs": 10,
                    "use_distributed_sampler": False,
                    "enable_model_summary": False,
                    "enable_autolog_hparams": False,
                    "num_sanity_val_steps": 0,
                },
                args=command_line.args,
                run=False,
            )
        except (ValueError, TypeError, ImportError, RuntimeError) as error:
            # What a constructor refuses.
            raise UserError(translate_exception(error) or parser_message(str(error))) from error

    def __deepcopy__(self, memo: Any) -> ProjectCLI:
        # A model refers to the parser by its optimizer, and averages of the weights copy the model.
        return self

    # ------------------------------------------------------------------------------------ parsing
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """See LightningCLI."""
        if self.subclass_mode_model:
            parser.set_defaults({"model": {"class_path": "resnet_pl.ImageClassifier"}})
        parser.add_argument("--ckpt_path", type=str | None, default=None, help=CKPT_PATH)
        parser.add_argument("--name", type=str, default="resnet", help="name of the run: runs/NAME/version_N")
        parser.add_argument("--tf32", type=bool, default=True, help=TF32)
        self.module.add_arguments(parser, self.command_line.subcommand)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Puts the checkpoint's configuration below everything that is given."""
        stored = None
        if self.checkpoint is not None:
            stored = ckpt.config_of(self.checkpoint, self.command_line.checkpoint, self.command_line.subcommand)
            if self.command_line.data_class not in ("", run_dir.class_name(stored.get("data"))):
                stored.pop("data", None)  # another class has other arguments
        # A file, because only `--config` merges arguments of classes; it comes first, so that others win.
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
        """The resolved configuration as plain types, as config.yaml and checkpoints hold it."""
        text = self.parser.dump(self.config, skip_link_targets=False, skip_none=False, format="yaml")
        return {key: value for key, value in yaml.safe_load(text).items() if key not in ("config", "ckpt_path")}

    # ------------------------------------------------------------------------------------ building
    def instantiate_classes(self) -> None:
        """Builds data, network and trainer."""
        super().instantiate_classes()
        self.model.config = self.plain_config
        self.datamodule.bad_images_dir = self.output
        if self.checkpoint is not None:
            # The network does not download weights that are replaced by the checkpoint's.
            self.trainer.ckpt_path = str(self.command_line.checkpoint)
            self._check_normalization()
            if provenance := self.checkpoint[ckpt.METADATA_KEY]["data"]:
                self.datamodule.use_provenance(provenance)

    def _check_normalization(self) -> None:
        """Refuses another normalization than the checkpoint's: its values are part of the network."""
        stored = run_dir.get_init_args((self.checkpoint[ckpt.METADATA_KEY].get("config") or {}).get("data"))
        now = run_dir.get_init_args(self.plain_config["data"])
        for key in ("mean", "std"):
            if self.command_line.get(f"data.{key}") is not None and key in stored and now.get(key) != stored[key]:
                raise UserError(
                    f"data.{key}: the checkpoint was trained with the {key} {stored[key]}, not {now.get(key)}\n"
                    "remove it: the normalization is part of the checkpoint's network"
                )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Adds loggers, checkpoints and reports to what the configuration names."""
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
                # Training batches have one shape; what cuDNN finds fastest for it differs from run to run.
                own["benchmark"] = not config["deterministic"]
        else:
            own["logger"] = False
            callbacks += [GracefulStop(self.output), *self.module.callbacks(self)]
        if config["enable_progress_bar"] is not False:
            # A bar is of no use in a file or a pipe; a line an epoch is.
            callbacks.append(ProgressBar() if sys.stdout.isatty() else EpochSummary())
            own["enable_progress_bar"] = sys.stdout.isatty()
        with self.removing_new_run():
            return super().instantiate_trainer(**own, callbacks=callbacks, **kwargs)

    def _find_run_folder(self) -> Path:
        """The checkpoint's own run, or a new one."""
        if self.command_line.checkpoint and (found := run_dir.run_dir_of(self.command_line.checkpoint)):
            return found
        self._new_run = True
        return _new_run(Path(self.config_init["trainer"]["default_root_dir"]), self.config_init["name"])

    def _loggers(self, given: Any) -> list[Logger] | bool:
        """TensorBoard and metrics.csv in the run folder; loggers that the configuration names replace TensorBoard."""
        if given is False:
            return False
        start, run = self.checkpoint["global_step"] if self.checkpoint else 0, self.run_folder
        board = TensorBoardLogger(
            *(run.parent.parent, run.parent.name, run.name),
            default_hp_metric=False,
            # Steps that were logged after the checkpoint are repeated; TensorBoard then ignores the old ones.
            purge_step=start or None,
        )
        return [*([board] if given in (None, True) else _as_list(given)), MetricsCSV(run, start)]

    @property
    def output(self) -> Path:
        """Where a subcommand writes: the run folder; for evaluation as asked, else the checkpoint's run, else here."""
        if self.command_line.subcommand == "fit":
            return self.run_folder
        if asked := self.config["output"]:
            return Path(asked)
        return (self.command_line.checkpoint and run_dir.run_dir_of(self.command_line.checkpoint)) or Path()

    @contextmanager
    def removing_new_run(self) -> Iterator[None]:
        """Removes a new run folder if the block ends before the first step: it would pass for the newest run."""
        try:
            yield
        except BaseException:
            if self._new_run and not getattr(getattr(self, "trainer", None), "global_step", 0):
                run_on_rank_zero(shutil.rmtree, self.run_folder)
            raise


def _new_run(root: Path, name: str) -> Path:
    """The next version of a run, made by the first process, which the others learn from when they are connected."""
    if rank_zero_only.rank != 0:
        # The same for processes that Lightning starts; those of torchrun and of other machines write nothing.
        return Path(os.environ.get("RESNET_PL_RUN", root / name / "version_of_the_first_process"))
    run = run_dir.create_run_dir(root, name)
    os.environ["RESNET_PL_RUN"] = str(run)
    return run


def _as_list(value: Any) -> list[Any]:
    """What Lightning lets be one thing, several or none, as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
