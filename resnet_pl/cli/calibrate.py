"""The subcommand `calibrate`: fits a temperature, and a confidence threshold, to the validation images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser
from torch import Tensor
from typing_extensions import override

from resnet_pl import checkpoint as ckpt
from resnet_pl import run_dir
from resnet_pl.callbacks import GracefulStop
from resnet_pl.callbacks.access import gather_rows
from resnet_pl.classifier import ImageClassifier
from resnet_pl.cli.evaluate import evaluate_on, prepare_split
from resnet_pl.data import ImageDataModule
from resnet_pl.data.resizing import height_width
from resnet_pl.evaluation.calibration import accepted_at, calibration_scores, choose_threshold, fit_temperature
from resnet_pl.evaluation.classify import Preprocessing
from resnet_pl.export.formats import NAMES, WRITERS
from resnet_pl.reports.tables import calibration_table, print_report
from resnet_pl.run_dir import UNKNOWN
from resnet_pl.utils import UserError, rank_zero_print, run_on_rank_zero

if TYPE_CHECKING:
    from resnet_pl.cli.parser import ProjectCLI

# With fewer images, a temperature or a precision is a rough estimate.
FEW = 100
TARGET = (
    "Also choose a confidence threshold: the smallest one with this precision on the accepted validation images."
    " Predictions below it are `unknown`."
)


def add_arguments(parser: LightningArgumentParser) -> None:
    """Adds the options of `calibrate`."""
    parser.add_argument("--target_precision", type=float | None, default=None, help=TARGET)
    parser.add_argument("--reset", action="store_true", help="Remove the calibration from the checkpoint.")


def callbacks(cli: ProjectCLI) -> list[Callback]:
    """Returns the callback that collects the logits, and the one that handles signals."""
    return [GracefulStop(cli.output), LogitCollector()]


class LogitCollector(Callback):
    """Collects the logits and labels of an evaluation, on the CPU.

    Attributes:
        logits: `(N, K)` float32 of the images of all processes, after the evaluation; empty without images.
        labels: `(N,)`, or `(N, K)` with several classes per image.
    """

    def __init__(self) -> None:
        self.logits = self.labels = torch.empty(0)
        self._own: list[tuple[Tensor, Tensor]] = []
        self._outputs: list[Any] = []  # of the module, in the current batch
        self._hook: Any = None

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._own = []
        self._hook = pl_module.register_forward_hook(lambda module, args, output: self._outputs.append(output))

    @override
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collects a batch."""
        self._own.append((torch.cat(self._outputs).float().cpu(), outputs["labels"].cpu()))
        self._outputs.clear()

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._hook.remove()
        self.logits, self.labels = (torch.cat(parts) for parts in zip(*gather_rows(trainer, self._own), strict=True))

    on_test_start, on_test_batch_end, on_test_end = on_validation_start, on_validation_batch_end, on_validation_end


def run(cli: ProjectCLI) -> None:
    """Fits, reports and stores the calibration."""
    path, target = cli.command_line.checkpoint, cli.config["target_precision"]
    target = None if target is None else float(target)  # not a subclass, which a checkpoint must not contain
    if path is None:
        raise UserError("calibrate: published weights have no checkpoint to store the temperature in\ngive --ckpt_path")
    if cli.config["reset"]:
        run_on_rank_zero(ckpt.update_metadata, path, "calibration", None)
        rank_zero_print(f"Removed the calibration from {path}{_exported_before(path)}")
        return
    _check(cli.model, target)
    _check_size(cli)
    prepare_split(cli, "val")
    splits = {"val": _collect(cli, "val")}
    if _has_test_set(cli.datamodule):
        splits["test"] = _collect(cli, "test")
    logits, labels = splits["val"]
    if len(labels) < FEW:
        rank_zero_print(f"note: {len(labels):,} images are few for a calibration; with {FEW} or more it is better")
    temperature = fit_temperature(logits, labels)
    threshold = None if target is None else choose_threshold(logits / temperature, labels, target)
    calibration: dict[str, Any] = {"temperature": temperature, "threshold": threshold, "target_precision": target}
    calibration["images"] = len(labels)
    for name, (outputs, truth) in splits.items():
        calibration[name] = {
            "before": calibration_scores(outputs, truth),
            "after": calibration_scores(outputs / temperature, truth),
            "accepted": None if threshold is None else accepted_at(threshold, outputs / temperature, truth),
        }
    run_on_rank_zero(_report, path, calibration)


def _check(model: LightningModule, target: float | None) -> None:
    """Raises UserError if the model cannot be calibrated, or cannot have a confidence threshold."""
    if not isinstance(model, ImageClassifier):
        raise UserError(f"calibrate needs an ImageClassifier\n{type(model).__name__} is a module of another kind")
    if target is not None and not 0 < target < 1:
        raise UserError(
            f"--target_precision {target:g}: no number of validation images shows that no prediction is ever wrong\n"
            "give a number between 0 and 1, such as 0.99"
        )
    if target is not None and model.hparams["multi_label"]:
        raise UserError(
            "--target_precision: with several classes per image, each class has a threshold already\nremove the option"
        )
    if target is not None and UNKNOWN in model.class_names:
        raise UserError(
            f"--target_precision: a class is named {UNKNOWN!r}, as predictions below the threshold are\n"
            "rename the class, or remove the option"
        )


def _check_size(cli: ProjectCLI) -> None:
    """Raises UserError if the images have another size than in predictions, which would use this calibration."""
    size: Any = Preprocessing.of_checkpoint(cli.checkpoint or {}).image_size
    now = getattr(cli.datamodule, "image_size", None)
    if size is not None and now is not None and height_width(size) != height_width(now):
        raise UserError(
            f"calibrate: data.image_size is {now}, but predict, serve and export use the {size} of the checkpoint\n"
            "remove the option"
        )


def _has_test_set(data: LightningDataModule) -> bool:
    """Whether the data has test images that are not those of the validation."""
    if isinstance(data, ImageDataModule):
        return "test" in data.splits and "test" not in data.split_labels and not getattr(data, "is_other_data", False)
    return type(data).test_dataloader is not LightningDataModule.test_dataloader


def _collect(cli: ProjectCLI, split: str) -> tuple[Tensor, Tensor]:
    """Logits and labels of the validation or the test split."""
    collector = cli.callback(LogitCollector)
    assert collector is not None  # added by `callbacks`
    collector.logits = collector.labels = torch.empty(0)  # without batches, no hook is called
    evaluate_on(cli, split, cli.model, cli.datamodule)
    if not len(collector.logits):
        raise UserError(f"calibrate: no {split} images were evaluated\nraise --trainer.limit_{split}_batches")
    return collector.logits, collector.labels


def _exported_before(checkpoint: Path) -> str:
    """A note if exported files are in the run folder of a checkpoint, which keep the calibration from before."""
    run = run_dir.run_dir_of(checkpoint)
    files = [run / f"{name}.{form}" for name in NAMES for form in WRITERS] if run else []
    names = ", ".join(str(file) for file in files if file.exists())
    return f"\nnote: exported before this calibration, export again: {names}" if names else ""


def _report(path: Path, calibration: dict[str, Any]) -> None:
    """Stores the calibration and prints it."""
    ckpt.update_metadata(path, "calibration", calibration)
    print_report(calibration_table(calibration))
    if "test" not in calibration:
        print("note: no test set; the scores are those of the images that the calibration was fitted to")
    if calibration["threshold"] is not None and (count := calibration["val"]["accepted"]["images"]) < FEW:
        print(f"note: {count:,} accepted validation images are few to choose a threshold by")
    if calibration["target_precision"] is not None and calibration["threshold"] is None:
        print("No threshold is needed: the precision on all validation images is high enough")
    print(f"Saved to {path}: test, predict, report, serve and load_run use it{_exported_before(path)}")
