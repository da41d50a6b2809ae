"""The subcommand `report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningArgumentParser

from resnet_pl import checkpoint as ckpt
from resnet_pl.callbacks import GracefulStop
from resnet_pl.callbacks.access import class_names, image_name
from resnet_pl.callbacks.collector import PredictionCollector
from resnet_pl.callbacks.tensorboard import backbone_name
from resnet_pl.classifier import ImageClassifier
from resnet_pl.cli.evaluate import calibration_results, checkpoint_label, evaluate_on, prepare_split, results_per_class
from resnet_pl.cli.unseen_images import UnseenImages, choose_folds, full_photo, of_evaluations, of_folds
from resnet_pl.data import ImageDataModule
from resnet_pl.data.decode import to_pixels
from resnet_pl.data.samplers import class_counts
from resnet_pl.evaluation.heatmaps import describe_limits, heatmaps, overlay
from resnet_pl.evaluation.intervals import metric_intervals
from resnet_pl.evaluation.metrics import reliability_rows
from resnet_pl.reports import report_sections as sections
from resnet_pl.reports.label_errors import find_label_errors, write_label_errors
from resnet_pl.reports.model_card import write_model_card
from resnet_pl.reports.report_page import Card, Section, photo, write_page
from resnet_pl.reports.run_report import RunReport, without_folders
from resnet_pl.run_dir import class_name
from resnet_pl.utils import UserError, rank_zero_print, run_on_rank_zero

if TYPE_CHECKING:
    from resnet_pl.cli.parser import ProjectCLI

OUTPUT = "Folder for the folder report/; the run folder of the checkpoint by default."
FOLDS = (
    "Folder of a cross-validation, such as runs/folds, whose predictions find label errors; by default one of the same"
    " images next to the run, else the validation and test images are searched."
)


def add_arguments(parser: LightningArgumentParser) -> None:
    """Adds the options of `report`."""
    parser.add_argument("--output", type=str | None, default=None, help=OUTPUT)
    parser.add_argument("--folds", type=str | None, default=None, help=FOLDS)


def callbacks(cli: ProjectCLI) -> list[Callback]:
    """Returns the callback that handles signals."""
    return [GracefulStop(cli.output)]


def run(cli: ProjectCLI) -> None:
    """Evaluates on the test images, and writes the page, the tables and the model card."""
    if cli.checkpoint is None:
        raise UserError("report: published weights have no record of their training\ngive --ckpt_path")
    prepare_split(cli, "test")
    folds, data = choose_folds(cli, class_names(cli.model, 0)), cli.datamodule
    test, report = _evaluate(cli)
    unseen = None
    if folds is not None:
        unseen = of_folds(data, report.classes, folds)
        if unseen.accuracy < (own := report.results["top1"]) - 0.05:
            rank_zero_print(
                f"note: the cross-validation in {folds} has an accuracy of {unseen.accuracy:.1%}, the checkpoint of"
                f" {own:.1%}: fewer of the label errors are real\n"
                "run cross-validate with the settings of the checkpoint"
            )
    elif report.found is None:
        others = [_collect(cli, "val")] if {"val", "test"} <= _distinct_splits(data).keys() else []
        unseen = of_evaluations([test, *others], "validation and test" if others else "evaluated")
    run_on_rank_zero(_write, cli, report, test, unseen)


# ---------------------------------------------------------------------------------------- evaluation
def _collect(cli: ProjectCLI, split: str, mistakes: int = 0) -> PredictionCollector:
    """Evaluates on a split and returns the predictions."""
    data = cli.datamodule
    collector = PredictionCollector(data.split(split) if isinstance(data, ImageDataModule) else None, mistakes)
    cli.callbacks.append(collector)
    evaluate_on(cli, split, cli.model, data)
    cli.callbacks.remove(collector)
    return collector


def _evaluate(cli: ProjectCLI) -> tuple[PredictionCollector, RunReport]:
    """Evaluates on the test images; raises UserError if the module does not return what a report needs."""
    test = _collect(cli, "test", sections.MAX_CARDS)
    if not isinstance(cli.model, ImageClassifier) or not len(test.indices):
        raise UserError(
            f"report: {type(cli.model).__name__} is not an ImageClassifier, and its predictions are not known\n"
            "use `test` for its metrics, or derive it from ImageClassifier"
        )
    return test, _contents(cli, cli.model, test)


def _contents(cli: ProjectCLI, model: ImageClassifier, test: PredictionCollector) -> RunReport:
    """The contents of the report after the evaluation."""
    data, checkpoint = cli.datamodule, cli.checkpoint or {}
    results, thresholds, metadata = dict(model.results), model.thresholds, checkpoint[ckpt.METADATA_KEY]
    confusion, bins, accepted = (results.pop(key, None) for key in ("confusion", "reliability", "accepted"))
    names, config = class_names(model, test.probabilities.shape[1]), metadata["config"] or cli.plain_config
    label, is_images = without_folders(checkpoint_label(cli)), isinstance(data, ImageDataModule)
    counts = {name: class_counts(images, len(names)) for name, images in _distinct_splits(data).items()}
    return RunReport(
        name=config.get("name") or "model",
        model=backbone_name(model),
        data=_describe(class_name(config.get("data")), (metadata["data"] or {}).get("root")),
        tested_data=_describe(type(data).__name__, getattr(data, "root", None)),
        checkpoint=f"{label}, epoch {checkpoint['epoch'] + 1}, step {checkpoint['global_step']:,}",
        split=data.split_labels.get("test", "test") if is_images else "test",
        tested_on=data.describe_source("test") if is_images else "the test set",
        classes=names,
        files=[image_name(test.images, index) for index in test.indices.tolist()],
        labels=test.labels.numpy(),
        probabilities=test.probabilities.numpy(),
        found=None if thresholds is None else (test.probabilities >= thresholds.cpu()).numpy(),
        results=results,
        intervals=metric_intervals(results, confusion, test.labels, test.probabilities),
        per_class=results_per_class(model, confusion, results.pop("classes", None)),
        confusion=None if confusion is None else confusion.numpy(),
        counts={name: each.tolist() for name, each in counts.items() if each is not None},
        config=config,
        calibration=calibration_results(model, accepted, len(test.indices)),
        reliability=[] if bins is None else reliability_rows(bins),
    )


def _distinct_splits(data: Any) -> dict[str, Any]:
    """The splits with images of their own: without a test set `test` is `val`; in another folder, `val` is `test`."""
    splits = data.splits if isinstance(data, ImageDataModule) else {}
    same = {"val"} if getattr(data, "is_other_data", False) else {*getattr(data, "split_labels", ())}
    return {name: images for name, images in splits.items() if name not in same and len(images)}


def _describe(name: str, root: Any) -> str:
    """A class of data and the name of its folder; the path of the folder can hold the name of a person."""
    return (name or "data built in Python") + ("" if root is None else f" {Path(root).resolve().name}")


# ---------------------------------------------------------------------------------------- files
def _write(cli: ProjectCLI, report: RunReport, test: PredictionCollector, unseen: UnseenImages | None) -> None:
    folder, page = cli.output / "report", cli.output / "report" / "index.html"
    report.write_tables(folder)
    write_model_card(report, folder / "README.md")
    shown = [
        sections.metrics(report),
        sections.calibration(report),
        sections.confusion(report, lambda position: full_photo(test.images, int(test.indices[position]))),
        _mistakes(cli.model, report, test),
        sections.classes(report),
        _label_errors(unseen, report.classes, folder / "label_errors.csv"),
        sections.data(report),
        sections.recipe(report),
    ]
    title = f"{report.name}: {report.model} on {report.data}"
    write_page(page, title, f"{report.checkpoint} · {report.tested_on}", sections.figures(report), shown)
    print(f"Saved to {page}, with tables (CSV) and a model card (README.md) in the same folder")


def _mistakes(model: Any, report: RunReport, test: PredictionCollector) -> Section:
    """Returns the section of the most confident mistakes, each with the evidence for the wrong class."""
    section, maps = Section("Most confident mistakes"), None
    if not test.mistakes:
        section.texts.append("No image is classified wrongly.")
        return section
    inputs = torch.stack([each.inputs for each in test.mistakes]).to(model.device)
    try:
        maps = heatmaps(model, inputs, torch.tensor([each.predicted for each in test.mistakes], device=model.device))
        section.texts.append(
            "On the right: what the network saw, brightest at the evidence for the wrong class (Grad-CAM)."
        )
        if limits := describe_limits(model.backbone):
            section.texts.append(f"Note: {limits}.")
    except UserError as error:
        _missing(section, "Without heat maps", error)
    predicted, answers, truth = report.predicted(), report.answers(), report.truth()
    positions = {index: position for position, index in enumerate(test.indices.tolist())}
    for number, each in enumerate(test.mistakes):
        position, images = positions[each.index], [full_photo(test.images, each.index)]
        if maps is not None:
            seen = overlay(to_pixels(each.inputs), maps[number].cpu().numpy())
            images.append(photo(seen, f"heat map for {report.classes[each.predicted]}"))
        wrong = f"predicted: {predicted[position] or 'no class'} ({-each.rank:.1%})"
        if answers[position] != predicted[position]:  # below the confidence threshold
            wrong = f"predicted: {answers[position]} ({predicted[position]} {-each.rank:.1%})"
        right = f"true: {truth[position] or 'no class'}"
        section.cards.append(Card([image for image in images if image], wrong, right, report.files[position]))
    return section


def _missing(section: Section, what: str, error: UserError) -> None:
    """Says in the section and in the terminal what is missing, and why."""
    text = f"{what}: {'; '.join(str(error).splitlines())}"
    section.texts.append(text)
    print(f"note: {text}")


def _label_errors(unseen: UnseenImages | None, names: list[str], path: Path) -> Section:
    """Writes label_errors.csv and returns its section."""
    section = Section("Probable label errors")
    if unseen is None:
        section.texts.append("Images with several classes are not searched for label errors.")
        return section
    try:
        errors = find_label_errors(unseen.labels, unseen.probabilities)
    except UserError as error:
        _missing(section, "Not searched for label errors", error)
        return section
    write_label_errors(errors, unseen.files, names, path)
    section.texts.append(f"Searched: {unseen.source}. The prediction is the label for {unseen.accuracy:.0%} of them.")
    section.texts.append(
        f"Found by confident learning: {len(errors):,}. The list also has mistakes of the network, the more the less "
        "accurate it is: look at the first images."
    )
    return sections.add_label_errors(section, errors, unseen.files, names, unseen.photo)
