"""Subcommands on LightningCLI, and the way from a configuration to a checkpoint and back."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from jsonargparse import ArgumentError, Namespace
from jsonargparse.typing import PositiveInt
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from resnet_pl import checkpoint as ckpt
from resnet_pl import runs
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
from resnet_pl.callbacks.terminal import device_name
from resnet_pl.classifier import ImageClassifier
from resnet_pl.data import ImageDataModule
from resnet_pl.data.images import list_images
from resnet_pl.errors import UserError
from resnet_pl.evaluation.metrics import per_class
from resnet_pl.explain import constructor_error, explain
from resnet_pl.patches import quieten, short_names, told_plainly
from resnet_pl.reports.pictures import confusion_matrix, save_png
from resnet_pl.reports.results import write_results
from resnet_pl.reports.tables import predictions_table, print_report, results_table
from resnet_pl.request import Request

# Trainer methods' arguments that the command line fills itself.
OWN = {"model", "datamodule", "weights_only"}


def run(request: Request) -> int:
    """Runs a subcommand; raises UserError where the user can put it right."""
    quieten()
    with short_names(), told_plainly():
        CLI(request)
    return 0


class CLI(LightningCLI):
    """`fit`, `validate`, `test` and `predict`.

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
        parser.add_argument("--name", type=str, default="resnet", help="name of the run: runs/NAME/version_N")
        if subcommand == "fit":
            parser.add_lightning_class_args(Dashboard, "dashboard")
        else:
            parser.add_argument(
                "--output",
                type=str | None,
                default=None,
                help="folder to write into; the checkpoint's run",
            )
        if subcommand == "predict":
            parser.add_argument("--images", type=str, nargs="+", help="files, folders or patterns")
            parser.add_argument("--top_k", type=PositiveInt, default=5, help="classes told for each image")
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: list[str]) -> None:
        """Puts the checkpoint's configuration below everything that is given."""
        with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
            if self.checkpoint is not None:
                yaml.safe_dump(ckpt.config_of(self.checkpoint, self.request.checkpoint, self.subcommand), file)
                file.flush()
                # A file, because only `--config` merges arguments of classes; it comes first, so that others win.
                args = [args[0], "--config", file.name, *args[1:]]
            try:
                self.config = parser.parse_args(args)
            except ArgumentError as error:
                files = [*self.request.files, file.name]
                raise UserError(explain(str(error), self._subcommand_parsers[self.subcommand], args, files)) from error
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
            raise UserError(constructor_error(str(error))) from error
        self.model.config = self.plain_config
        if self.checkpoint is not None:
            self.model.restoring = True
            if provenance := self.checkpoint[ckpt.KEY]["data"]:
                self.datamodule.use_provenance(provenance)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Adds loggers, checkpoints and reports to what the configuration names."""
        settings = self.config_init[self.subcommand]
        config = {**settings["trainer"], "plugins": _listed(settings["trainer"]["plugins"])}
        if self.subcommand == "fit":
            self.run = self._run_folder(settings)
            config["logger"] = self._loggers(config["logger"])
            config["plugins"] += [ckpt.SafeCheckpointIO()]
            own = [StartReport(self.run), Throughput(), settings["dashboard"]]
            if config["enable_checkpointing"] is not False:
                own += [BestCheckpoint(self.run / "checkpoints"), LastCheckpoint(self.run / "checkpoints")]
        else:
            config |= {"logger": False, "enable_checkpointing": False}
            own = [PredictionWriter(self.output, settings["top_k"])] if self.subcommand == "predict" else []
        if config["enable_progress_bar"] is not False:
            # A bar is of no use in a file or a pipe; a line an epoch is.
            own.append(ProgressBar() if sys.stdout.isatty() else EpochLine())
            config["enable_progress_bar"] = sys.stdout.isatty()
        with self._kept_if_trained():
            return self._instantiate_trainer(config, own)

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
        board = TensorBoardLogger(
            self.run.parent.parent, name=self.run.parent.name, version=self.run.name, default_hp_metric=False
        )
        start = self.checkpoint["global_step"] if self.checkpoint else 0
        return [*([board] if given in (None, True) else _listed(given)), MetricsCSV(self.run, start)]

    @property
    def output(self) -> Path:
        """Where evaluation writes: as asked, else the checkpoint's run folder, else here."""
        asked = self.config[self.subcommand]["output"]
        return Path(asked) if asked else runs.run_of(self.request.checkpoint) or Path()

    # ------------------------------------------------------------------------------------ subcommands
    def fit(self, model: ImageClassifier, datamodule: ImageDataModule, ckpt_path: str | None) -> None:
        """Trains, then says where everything is."""
        _on_rank_zero(runs.write_config, self.run, self.plain_config)
        _on_rank_zero(runs.write_session, self.run, self._session())
        with self._kept_if_trained():
            self.trainer.fit(model, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True)
        _on_rank_zero(self._close)

    def _session(self) -> dict[str, Any]:
        return {
            "command": shlex.join(["python", "cli.py", *self.request.args]),
            "commit": runs.commit(),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
            "device": device_name(self.trainer),
            "threads": torch.get_num_threads(),
            "versions": ckpt.versions(),
        }

    @contextmanager
    def _kept_if_trained(self) -> Iterator[None]:
        """Removes a new run folder when an error comes before the first step: it would pass for the newest run."""
        try:
            yield
        except Exception:
            if self._new_run and not getattr(getattr(self, "trainer", None), "global_step", 0):
                _on_rank_zero(shutil.rmtree, self.run)
            raise

    def _close(self) -> None:
        best, last = (self.run / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
        scores = [c.best_model_score for c in self.trainer.checkpoint_callbacks if c.monitor == "val/top1"]
        score = next((float(score) for score in scores if score is not None), None)
        if score is not None:
            print(f"best validation top-1 {score:.2%}")
        if best.exists() or last.exists():
            print(f"test it:    python cli.py test --ckpt_path {best if best.exists() else last}")
        print(f"look at it: tensorboard --logdir {self.run.parent.parent}")

    def validate(self, model: ImageClassifier, datamodule: ImageDataModule, ckpt_path: str) -> None:
        """Measures on the validation images."""
        self._evaluate("val", self.trainer.validate, model, datamodule, ckpt_path)

    def test(self, model: ImageClassifier, datamodule: ImageDataModule, ckpt_path: str) -> None:
        """Measures on the test images."""
        self._evaluate("test", self.trainer.test, model, datamodule, ckpt_path)

    def _evaluate(self, split: str, measure: Any, model: ImageClassifier, data: ImageDataModule, path: str) -> None:
        self._prepare(data, split)
        start = time.perf_counter()
        measure(model, datamodule=data, ckpt_path=path, verbose=False, weights_only=True)
        results = dict(model.results)
        confusion = results.pop("confusion")
        results["per_class"] = per_class(confusion, model.class_names)
        run = runs.run_of(Path(path))
        results |= {
            "protocol": "single view",
            "split": split,
            "data": data.describe(),
            "tested_on": data.told(split),
            "checkpoint": Path(path).absolute().relative_to(run.absolute()).as_posix() if run else path,
            "epoch": self.checkpoint["epoch"],
            "step": self.checkpoint["global_step"],
            "precision": str(self.trainer.precision),
            "seconds": round(time.perf_counter() - start, 2),
            "versions": ckpt.versions(),
        }
        _on_rank_zero(self._tell_results, results, confusion.numpy())

    def _tell_results(self, results: dict[str, Any], confusion: np.ndarray) -> None:
        suffix = "" if results["split"] == "test" else "-val"
        place, picture = self.output / f"results{suffix}.json", self.output / f"confusion{suffix}.png"
        print_report(results_table(results))
        write_results(results, place)
        save_png(confusion_matrix(confusion, list(results["per_class"])), picture)
        print(f"written to {place} and {picture}")

    def predict(self, model: ImageClassifier, datamodule: ImageDataModule, ckpt_path: str) -> None:
        """Classifies images."""
        images = self.config[self.subcommand]["images"]
        if images:
            datamodule.predict_on(find_images(images))
        else:
            self._prepare(datamodule, "test")
        self.trainer.predict(
            model, datamodule=datamodule, ckpt_path=ckpt_path, return_predictions=False, weights_only=True
        )
        _on_rank_zero(self._tell_predictions)

    def _tell_predictions(self) -> None:
        writer = next(callback for callback in self.trainer.callbacks if isinstance(callback, PredictionWriter))
        print_report(predictions_table(writer.rows, self.config[self.subcommand]["top_k"]))
        print(f"written to {self.output / 'predictions.csv'} and {self.output / 'contact_sheet.png'}")

    def _prepare(self, data: ImageDataModule, split: str) -> None:
        """Finds the images, and says in the first line which they are."""
        data.prepare_data()
        data.setup(self.subcommand)
        images = data.split(split)
        _on_rank_zero(print, f"{self.subcommand}: {len(images):,} images, {data.told(split)}")


# ------------------------------------------------------------------------------------ helpers
def find_images(patterns: list[str]) -> list[Path]:
    """The image files behind paths, folders and patterns, in the order given.

    Raises:
        UserError: something names no image.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            paths = list_images(path)
        elif path.is_file():
            paths = [path]
        else:
            matches = sorted(glob(pattern, recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
            paths = [Path(match) for match in matches if Path(match).is_file()]
        if not paths:
            raise UserError(f"--images: {pattern} names no image\ngive files, folders of images, or patterns")
        found |= dict.fromkeys(paths)
    return list(found)


def _new_run(root: Path, name: str) -> Path:
    """The next version of a run; the processes that Lightning starts take the one that the first has made."""
    made = os.environ.get("RESNET_PL_RUN")
    if made and rank_zero_only.rank != 0:
        return Path(made)
    run = runs.new_run(root, name)
    os.environ["RESNET_PL_RUN"] = str(run)
    return run


def _on_rank_zero(function: Any, *args: Any) -> None:
    if rank_zero_only.rank == 0:
        function(*args)


def _listed(value: Any) -> list[Any]:
    """What Lightning lets be one thing, several or none, as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
