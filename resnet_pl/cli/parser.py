"""From the command line, configuration files and a checkpoint to data, net and trainer."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentError, Namespace
from jsonargparse.typing import PositiveInt
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from resnet_pl import checkpoint as ckpt
from resnet_pl import run_dir as runs
from resnet_pl.callbacks import (
    BestCheckpoint,
    Dashboard,
    EpochLine,
    LastCheckpoint,
    MetricsCSV,
    PredictionWriter,
    ProgressBar,
    StartReport,
    Throughput,
)
from resnet_pl.classifier import ImageClassifier
from resnet_pl.cli import protocol
from resnet_pl.cli.explain import constructor_error, explain
from resnet_pl.cli.foreseen import check_trainer, foreseen
from resnet_pl.cli.memory import keep_freed_memory
from resnet_pl.cli.request import Request
from resnet_pl.data import ImageDataModule
from resnet_pl.patches import Unprofiled, average_on_device, quieten, short_names
from resnet_pl.utils import UserError, on_rank_zero, program

# Trainer methods' arguments that the command line fills itself.
OWN = {"model", "datamodule", "weights_only"}
CKPT_PATH = "a checkpoint; a run folder, for its best; or best or last, of the newest run (called --name, if given)"
TF32 = "whether a GPU may round factors of float32 products to 10 bits, which is several times faster; sums stay exact"
KEEP_MEMORY = "whether on a processor the memory that a step frees is kept for the next, which is then faster"


class ConfiguredCLI(LightningCLI):
    """Data, net and trainer as the command line, configuration files and a checkpoint ask for them.

    Precedence rises from the classes' defaults over the checkpoint's configuration and `--config` files, in order, to
    values on the command line.

    Args:
        request: the command line, its checkpoint found.
    """

    def __init__(self, request: Request) -> None:
        self.request, self.subcommand = request, request.subcommand
        self.checkpoint = ckpt.read(request.checkpoint) if request.checkpoint else None
        self.run: Path | None = None
        self._new_run = False
        super().__init__(
            ImageClassifier,
            ImageDataModule,
            subclass_mode_data=True,
            save_config_callback=None,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            trainer_defaults={
                "default_root_dir": "runs",
                "max_epochs": 10,
                "use_distributed_sampler": False,
                "enable_model_summary": False,
                "enable_autolog_hparams": False,
                "num_sanity_val_steps": 0,
            },
            args=request.args,
        )

    # ------------------------------------------------------------------------------------ parsing
    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """See LightningCLI."""
        return {
            "fit": {*OWN, "train_dataloaders", "val_dataloaders"},
            "validate": {*OWN, "dataloaders", "verbose"},
            "test": {*OWN, "dataloaders", "verbose"},
            "predict": {*OWN, "dataloaders", "return_predictions"},
        }

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """See LightningCLI."""
        return super().init_parser(**{**kwargs, "exit_on_error": False})

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        parser.usage = f"{program()} {subcommand} [--config FILE ...] [--key value ...]"
        next(action for action in parser._actions if action.dest == "ckpt_path").help = CKPT_PATH
        parser.add_argument("--name", type=str, default="resnet", help="name of the run: runs/NAME/version_N")
        parser.add_argument("--tf32", type=bool, default=True, help=TF32)
        parser.add_argument("--keep_memory", type=bool, default=True, help=KEEP_MEMORY)
        if subcommand == "fit":
            parser.add_lightning_class_args(Dashboard, "dashboard")
            parser.add_class_arguments(LastCheckpoint, "checkpoint", skip={"folder"}, instantiate=False)
        else:
            where = "folder to write into; the checkpoint's run if not given"
            parser.add_argument("--output", type=str | None, default=None, help=where)
        if subcommand in ("validate", "test"):
            protocol.add_arguments(parser)
        if subcommand == "predict":
            parser.add_argument("--images", type=str, nargs="+", help="files, folders or patterns")
            parser.add_argument("--top_k", type=PositiveInt, default=5, help="classes told for each image")
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: list[str]) -> None:
        """Puts the checkpoint's configuration below everything that is given."""
        files = self.request.files
        with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
            if self.checkpoint is not None:
                config = ckpt.config_of(self.checkpoint, self.request.checkpoint, self.subcommand)
                stored = (config.get("data") or {}).get("class_path", "").rsplit(".", 1)[-1]
                if self.request.data_class not in ("", stored):
                    # Another class has other arguments.
                    config.pop("data", None)
                file.write(runs.to_yaml(config))
                file.flush()
                # A file, because only `--config` merges arguments of classes; it comes first, so that others win.
                files = [file.name, *files]
            args = [args[0], *(word for name in files for word in ("--config", name)), *self.request.options]
            try:
                self.config = parser.parse_args(args)
            except ArgumentError as error:
                given = self.request.files  # not the checkpoint's, which is gone by now
                parser = self._subcommand_parsers[self.subcommand]
                raise UserError(explain(str(error), parser, args, given)) from error
        if self.checkpoint is not None:
            self.config[self.subcommand]["ckpt_path"] = str(self.request.checkpoint)

    def _parse_ckpt_path(self) -> None:
        """Nothing: Lightning's own reading covers the model alone, and would beat the command line."""

    @property
    def plain_config(self) -> dict[str, Any]:
        """The resolved configuration as plain types, as config.yaml and checkpoints hold it."""
        self._dump_config()
        return {key: value for key, value in self.config_dump.items() if key not in ("config", "ckpt_path")}

    # ------------------------------------------------------------------------------------ building
    def instantiate_classes(self) -> None:
        """Builds data, net and trainer; what their constructors refuse is the user's to put right."""
        try:
            super().instantiate_classes()
        except (ValueError, TypeError, ImportError) as error:
            raise UserError(foreseen(error) or constructor_error(str(error))) from error
        self.model.config = self.plain_config
        self.datamodule.notes = self.run or self.output
        if self.checkpoint is not None:
            self.model.restoring = True
            self._check_normalization()
            if provenance := self.checkpoint[ckpt.KEY]["data"]:
                self.datamodule.use_provenance(provenance)

    def _check_normalization(self) -> None:
        """Refuses another normalisation than the checkpoint's, which would be ignored: its numbers are in the net."""
        stored = ((self.checkpoint[ckpt.KEY].get("config") or {}).get("data") or {}).get("init_args") or {}
        for key in ("mean", "std"):
            given = self.request.setting(f"data.{key}") or self.request.setting(f"data.init_args.{key}")
            now = self.plain_config["data"]["init_args"].get(key)
            if given is not None and key in stored and now != stored[key]:
                raise UserError(
                    f"data.{key}: the checkpoint has recorded the {key} {stored[key]}, not {now}\n"
                    "leave it out: the normalisation is part of the checkpoint's net"
                )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Adds loggers, checkpoints and reports to what the configuration names."""
        settings = self.config_init[self.subcommand]
        check_trainer(settings["trainer"])
        _allow_tf32(settings["tf32"])
        config = {**settings["trainer"], "plugins": _listed(settings["trainer"]["plugins"])}
        config["profiler"] = config["profiler"] or Unprofiled()
        if self.subcommand == "fit":
            if config["benchmark"] is None:
                # Training batches have one shape; what cuDNN finds fastest for it differs from run to run.
                config["benchmark"] = not config["deterministic"]
            self.run = self._run_folder(settings)
            config["logger"] = self._loggers(config["logger"])
            config["plugins"] += [ckpt.SafeCheckpointIO()]
            own = [StartReport(self.run, self.request.args), Throughput(), settings["dashboard"]]
            if config["enable_checkpointing"] is not False:
                folder = self.run / "checkpoints"
                own += [BestCheckpoint(folder), LastCheckpoint(folder, **settings["checkpoint"])]
        else:
            config |= {"logger": False, "enable_checkpointing": False}
            own = [PredictionWriter(self.output, settings["top_k"])] if self.subcommand == "predict" else []
        if config["enable_progress_bar"] is not False:
            # A bar is of no use in a file or a pipe; a line an epoch is.
            own.append(ProgressBar() if sys.stdout.isatty() else EpochLine())
            config["enable_progress_bar"] = sys.stdout.isatty()
        with self._kept_if_trained():
            trainer = self._instantiate_trainer(config, own)
        average_on_device(trainer)
        if settings["keep_memory"] and trainer.strategy.root_device.type == "cpu":
            keep_freed_memory()
        return trainer

    def _run_folder(self, settings: Namespace) -> Path:
        """The checkpoint's own run, or a new one."""
        if found := runs.run_of(self.request.checkpoint) if self.request.checkpoint else None:
            return found
        self._new_run = True
        return _new_run(Path(settings["trainer"]["default_root_dir"]), settings["name"])

    def _loggers(self, given: Any) -> list[Logger] | bool:
        """TensorBoard and metrics.csv in the run folder; loggers that the configuration names replace TensorBoard."""
        if given is False:
            return False
        start = self.checkpoint["global_step"] if self.checkpoint else 0
        board = TensorBoardLogger(
            *(self.run.parent.parent, self.run.parent.name, self.run.name),
            default_hp_metric=False,
            # Steps that were logged after the checkpoint are made anew; TensorBoard then leaves out the old ones.
            purge_step=start or None,
        )
        return [*([board] if given in (None, True) else _listed(given)), MetricsCSV(self.run, start)]

    @property
    def output(self) -> Path:
        """Where evaluation writes: as asked, else the checkpoint's run folder, else here."""
        if asked := self.config[self.subcommand]["output"]:
            return Path(asked)
        return (self.request.checkpoint and runs.run_of(self.request.checkpoint)) or Path()

    @contextmanager
    def _kept_if_trained(self) -> Iterator[None]:
        """Removes a new run folder when the end comes before the first step: it would pass for the newest run."""
        try:
            yield
        except BaseException:
            if self._new_run and not getattr(getattr(self, "trainer", None), "global_step", 0):
                on_rank_zero(shutil.rmtree, self.run)
            raise


class Restored(ConfiguredCLI):
    """The net and the data of a checkpoint, built and not run: the subject of an analysis, a member of an ensemble.

    Args:
        checkpoint: the file, `best`, `last` or a run folder.
        options: options as on the command line, such as `--data.root elsewhere`.

    Attributes:
        model: the net with its weights, in evaluation mode.
        datamodule: the data with its splits; the checkpoint's own where the data is the same.
    """

    def __init__(self, checkpoint: str | Path, options: Sequence[str] = ()) -> None:
        quieten()
        with short_names():
            super().__init__(Request(["test", "--ckpt_path", str(checkpoint), *options]))
        self.model.configure_model()
        self.model.on_load_checkpoint(self.checkpoint)
        self.model.load_state_dict(self.checkpoint["state_dict"])
        self.model.eval()
        self.datamodule.prepare_data()
        self.datamodule.setup("test")

    def instantiate_trainer(self, **kwargs: Any) -> None:
        """None: there is nothing to run."""

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def _new_run(root: Path, name: str) -> Path:
    """The next version of a run, made by the first process; all others are told by it once they are in touch."""
    if rank_zero_only.rank != 0:
        # The same for processes that Lightning starts; torchrun's and other machines' write nothing.
        return Path(os.environ.get("RESNET_PL_RUN", root / name / "version_of_the_first_process"))
    run = runs.new_run(root, name)
    os.environ["RESNET_PL_RUN"] = str(run)
    return run


def _listed(value: Any) -> list[Any]:
    """What Lightning lets be one thing, several or none, as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _allow_tf32(allowed: bool) -> None:
    """Sets the precision of float32 convolutions and matrix products on a GPU, for which torch has a switch each."""
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high" if allowed else "highest")
        torch.backends.cudnn.allow_tf32 = allowed
