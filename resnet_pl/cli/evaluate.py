"""The subcommands `validate` and `test`."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger
from torch import Tensor

from resnet_pl import checkpoint as ckpt
from resnet_pl import run_dir
from resnet_pl.callbacks import GracefulStop
from resnet_pl.callbacks.access import class_names
from resnet_pl.callbacks.misclassified import MisclassifiedWriter
from resnet_pl.classifier import ImageClassifier
from resnet_pl.cli.averaging import add_averaging_arguments, build_ensemble, check_kinds, other_members, set_views
from resnet_pl.cli.run_loggers import LogAtStep, no_loggers, test_loggers
from resnet_pl.data import CenterCrop, ImageDataModule
from resnet_pl.data.crops import describe_crop
from resnet_pl.data.provenance import describe
from resnet_pl.data.views import MultiScale
from resnet_pl.evaluation.metrics import NAMES, accepted_scores, per_class, reliability_rows
from resnet_pl.evaluation.multi_label import MULTI_LABEL_NAMES, per_class_of_several
from resnet_pl.evaluation.precise_bn import PreciseBN
from resnet_pl.models.normalize import BatchNorm
from resnet_pl.reports.plots import confusion_matrix, save_png
from resnet_pl.reports.reliability import reliability_diagram
from resnet_pl.reports.results import write_results
from resnet_pl.reports.tables import print_report, results_table
from resnet_pl.types import PositiveInt
from resnet_pl.utils import UserError, counted, rank_zero_print, run_on_rank_zero

if TYPE_CHECKING:
    from resnet_pl.cli.parser import ProjectCLI

OUTPUT = "Folder to write to; the run folder of the checkpoint by default."


def add_arguments(parser: LightningArgumentParser) -> None:
    """Adds the options of `validate` and `test`."""
    parser.add_argument("--output", type=str | None, default=None, help=OUTPUT)
    add_averaging_arguments(parser)
    precise = "Recompute BatchNorm statistics on this number of training images, or on all, before the evaluation."
    parser.add_argument("--precise_bn", type=PositiveInt | Literal["all"] | None, default=None, help=precise)
    save_to = "File for the checkpoint with recomputed BatchNorm statistics."
    parser.add_argument("--save_to", type=str | None, default=None, help=save_to)


def loggers(cli: ProjectCLI, given: Any) -> list[Logger]:
    """Returns the loggers of the training for `test`; else a stand-in: modules may use `self.logger` in all stages."""
    is_test = cli.command_line.subcommand == "test"
    return (test_loggers(cli, given) if is_test else []) or no_loggers(cli, given)


def callbacks(cli: ProjectCLI) -> list[Callback]:
    """Returns the callbacks, without `PreciseBN`: it needs all models of an ensemble and is added by `run`."""
    return [GracefulStop(cli.output), *([LogAtStep(cli.checkpoint["global_step"])] if cli.checkpoint else [])]


def run(cli: ProjectCLI) -> dict[str, Any]:
    """Evaluates on the validation or the test set, prints, writes and returns the results."""
    name, settings, model, data = cli.command_line.subcommand, cli.config, cli.model, cli.datamodule
    split = "val" if name == "validate" else "test"
    _check_options(settings, model, data)
    check_output(cli.output)
    prepare_split(cli, split)
    others = other_members(cli)
    pairs: list[Any] = [(model, data), *((network, own) for _, network, own in others)]
    for network, own in pairs:
        set_views(settings, own)
        if settings["precise_bn"] and not any(isinstance(module, BatchNorm) for module in network.modules()):
            raise UserError("--precise_bn: the network has no BatchNorm\nremove the option")
    if settings["precise_bn"]:
        cli.callbacks.append(PreciseBN(pairs, settings["precise_bn"]))
    images = data.split(split) if isinstance(data, ImageDataModule) else None
    label = data.split_labels.get(split, split) if isinstance(data, ImageDataModule) else split
    cli.callbacks.append(MisclassifiedWriter(result_file(cli.output, "misclassified.csv", label), images))
    start = time.perf_counter()
    evaluated, source = build_ensemble(cli, others, split) if others else (model, data)
    evaluate_on(cli, split, evaluated, source)
    results = dict(getattr(evaluated, "results", {}))
    tensors = {key: results.pop(key, None) for key in ("confusion", "classes", "reliability", "accepted")}
    classes = tensors["classes"]
    checkpoint = cli.checkpoint or {}
    available = None if images is None else len(images)
    names = NAMES if classes is None else MULTI_LABEL_NAMES
    known = {key: results.pop(key, None) for key in names if key not in tensors}
    results = known | {
        "metrics": results | _logged_metrics(cli.trainer, split, {key for key in known if known[key] is not None}),
        **calibration_results(evaluated, tensors["accepted"], known["images"]),
        "per_class": results_per_class(evaluated, tensors["confusion"], classes),
        "protocol": _protocol(cli, known["images"], available, [name for name, *_ in others]),
        "split": label,
        "data": describe(data),
        "other_data": getattr(data, "is_other_data", False),
        "tested_on": data.describe_split(split) if isinstance(data, ImageDataModule) else describe(data),
        "checkpoint": checkpoint_label(cli),
        "epoch": checkpoint.get("epoch"),
        "step": checkpoint.get("global_step"),
        "precision": str(cli.trainer.precision),
        "seconds": round(time.perf_counter() - start, 2),
        "versions": ckpt.versions(),
    }
    run_on_rank_zero(_report_results, cli.output, results, tensors)
    if settings["save_to"]:
        run_on_rank_zero(_save, model, checkpoint, Path(settings["save_to"]))
    return results


def check_output(folder: Path) -> None:
    """Raises UserError if a folder cannot be written to; after the evaluation, its results would be lost."""
    nearest = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    if not os.access(nearest, os.W_OK):
        raise UserError(f"{nearest} cannot be written to\nchoose another folder with --output")


def results_per_class(model: Any, confusion: Tensor | None, classes: Tensor | None) -> dict[str, Any]:
    """Returns the results of each class; empty for a module that has none."""
    if classes is not None:
        return per_class_of_several(classes, model.thresholds, class_names(model, classes.shape[1]))
    return {} if confusion is None else per_class(confusion, class_names(model, len(confusion)))


def calibration_results(model: Any, accepted: Tensor | None, images: int | None) -> dict[str, Any]:
    """Returns the calibration of a model that has one: its temperature, and the results with its threshold."""
    temperature, threshold = getattr(model, "temperature", 1.0), getattr(model, "confidence_threshold", None)
    scores = {"temperature": temperature} if temperature != 1 else {}
    if threshold is not None and accepted is not None and images:
        count, correct = accepted.tolist()
        scores["accepted"] = {"threshold": threshold, **accepted_scores(count, correct, images)}
    return scores


def _logged_metrics(trainer: Trainer, split: str, known: set[str]) -> dict[str, float]:
    """What the module and the callbacks have logged in an evaluation, beyond the known metrics."""
    logged = {name.removeprefix(f"{split}/"): value for name, value in trainer.callback_metrics.items()}
    return {name: float(value) for name, value in logged.items() if name not in {*known, "step", "epoch"}}


def evaluate_on(cli: ProjectCLI, split: str, model: Any, data: LightningDataModule) -> None:
    """Evaluates a model on the validation or the test split."""
    evaluate = cli.trainer.validate if split == "val" else cli.trainer.test
    evaluate(model, datamodule=data, verbose=False, weights_only=True)


def prepare_split(cli: ProjectCLI, split: str) -> None:
    """Loads the splits and prints which images are used."""
    data, what = cli.datamodule, cli.command_line.checkpoint or checkpoint_label(cli)
    if not isinstance(data, ImageDataModule):
        rank_zero_print(f"{cli.command_line.subcommand}: {describe(data)}; {what}")
        return
    data.prepare_data()
    data.setup(cli.command_line.subcommand)
    count = counted(len(data.split(split)), "image")
    rank_zero_print(f"{cli.command_line.subcommand}: {count}, {data.describe_split(split)}; {what}")


def checkpoint_label(cli: ProjectCLI) -> str:
    """Label of the evaluated model: checkpoint path relative to its run, or the name of published weights."""
    path = cli.command_line.checkpoint
    if path is None:
        return f"weights {getattr(cli.model, 'weights', None)}"
    run = run_dir.run_dir_of(path)
    return path.absolute().relative_to(run.absolute()).as_posix() if run else str(path)


def _check_options(settings: Namespace, model: LightningModule, data: LightningDataModule) -> None:
    """Raises UserError if the options contradict each other, or if the model or the data does not support them."""
    check_kinds(settings, model, data, "precise_bn", "save_to")
    path = settings["save_to"]
    if path and path.endswith(".safetensors"):
        raise UserError(
            f"--save_to {path}: test writes checkpoints only\n"
            f"use `export --ckpt_path PATH --format safetensors --output {path}` for the weights"
        )
    if path and (settings["ensemble"] or not settings["precise_bn"]):
        raise UserError("--save_to needs --precise_bn, and no --ensemble\nuse --precise_bn all --save_to NAME.ckpt")


# ---------------------------------------------------------------------------------------- results
def _protocol(cli: ProjectCLI, evaluated: int | None, available: int | None, others: list[str]) -> str:
    """Key of the result in results.json: test options, and what differs from the configuration of the training."""
    data, settings = cli.datamodule, cli.config
    trained, precision = cli.stored_config, settings["trainer"]["precision"]
    now = getattr(data, "image_size", None)
    size = run_dir.get_init_args(trained.get("data")).get("image_size", now)
    size = tuple(size) if isinstance(size, list) else size
    words: str = {"none": "single view", "flip": "horizontal flip"}.get(settings["tta"]) or settings["tta"]
    if isinstance(data, ImageDataModule) and isinstance(data.views, MultiScale):
        words += " " + " ".join(str(scale) for scale in data.views.scales_for(data.image_size))
    parts = [words]
    parts += [f"precise BN over {settings['precise_bn']} images"] if settings["precise_bn"] else []
    parts += [f"ensemble with {' and '.join(others)}"] if others else []
    parts += [f"image_size {now}"] if now not in (None, size) else []
    stored = (cli.checkpoint or {ckpt.METADATA_KEY: {}})[ckpt.METADATA_KEY].get("data") or {}
    if isinstance(data, ImageDataModule) and stored:
        crops = [stored.get("eval_crop"), describe_crop(data.eval_crop)]
        # Images in memory are not cropped.
        if crops[0] != crops[1] and describe_crop(CenterCrop()) not in crops:
            parts += [f"crop {type(data.eval_crop).__name__}"]
    if not isinstance(data, ImageDataModule) and trained.get("data"):
        before = run_dir.get_init_args(trained["data"])
        values = run_dir.get_init_args(cli.plain_config["data"]).items()
        parts += [f"{key} {value}" for key, value in values if key in before and value != before[key]]
    parts += [f"precision {precision}"] if precision != (trained.get("trainer") or {}).get("precision") else []
    parts += [f"{evaluated} of {available} images"] if available not in (None, evaluated) else []
    return ", ".join(parts)


def result_file(folder: Path, name: str, split: str) -> Path:
    """Returns the path of a file with the results on a split, such as results-val.json."""
    path = folder / name
    return path.with_stem(path.stem + {"test": "", "val": "-val"}.get(split, "-val-no-test"))


def _report_results(folder: Path, results: dict[str, Any], tensors: Mapping[str, Tensor | None]) -> None:
    names = ("results.json", "confusion.png", "reliability.png", "misclassified.csv")
    place, matrix, diagram, mistakes = (result_file(folder, name, results["split"]) for name in names)
    # Files first: a report that cannot be printed must not lose them.
    write_results(results, place)
    files = [place]
    if (confusion := tensors["confusion"]) is not None:
        save_png(confusion_matrix(confusion.numpy(), list(results["per_class"])), matrix)
        files.append(matrix)
    if (bins := tensors["reliability"]) is not None:
        save_png(reliability_diagram(reliability_rows(bins), results["calibration_error"]), diagram)
        files.append(diagram)
    files += [mistakes] if results["per_class"] else []
    print_report(results_table(results))
    *first, last = map(str, files)
    print(f"Saved to {', '.join(first)} and {last}" if first else f"Saved to {last}")


def _save(model: ImageClassifier, checkpoint: dict[str, Any], path: Path) -> None:
    """Writes the checkpoint with the weights that were evaluated."""
    state = {key: value.cpu() for key, value in model.state_dict().items()}
    # The calibration is that of the network with the statistics of the training.
    metadata = {key: value for key, value in checkpoint[ckpt.METADATA_KEY].items() if key != "calibration"}
    changed = {"state_dict": state, ckpt.METADATA_KEY: metadata}
    ckpt.AtomicCheckpointIO().save_checkpoint(checkpoint | changed, path)
    print(f"Saved to {path}{', without the calibration' if metadata != checkpoint[ckpt.METADATA_KEY] else ''}")
