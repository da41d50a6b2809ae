"""The sections of the page of `report`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from resnet_pl.reports.label_errors import LabelError
from resnet_pl.reports.plots import confusion_matrix
from resnet_pl.reports.reliability import reliability_diagram
from resnet_pl.reports.report_page import Card, Figure, PageImage, Section, Strip, Table, plot
from resnet_pl.reports.run_report import RunReport

MAX_PAIRS, MAX_EXAMPLES, MAX_CARDS = 8, 5, 24
# Returns the photo of an image by its position among the evaluated ones; None for data without photos.
Photo = Callable[[int], PageImage | None]

SEVERAL = "Each image can have several classes: there is no confusion matrix."
INTERVALS = (
    "The intervals are for this number of images: Wilson's for shares of images, the normal approximation for the loss,"
    " and the bootstrap for averages over the classes."
)


def figures(report: RunReport) -> list[Figure]:
    """Returns the main results, for the top of the page."""
    shown = report.metric_rows("top1", "map", "exact_match", "f1_macro", "calibration_error")
    found = [Figure(name.partition(" (")[0], value, interval) for name, value, interval in shown]
    return [*found, Figure("test images", f"{len(report.files):,}", f"{len(report.classes):,} classes")]


def metrics(report: RunReport) -> Section:
    """Returns the section of all metrics with their intervals."""
    return Section("Metrics", [INTERVALS], table=Table(["metric", "value", "95 % interval"], report.metric_rows()))


def calibration(report: RunReport) -> Section:
    """Returns the reliability diagram, and what `calibrate` has changed."""
    section = Section("Calibration", report.calibration_texts())
    if report.reliability:
        diagram = reliability_diagram(report.reliability, report.results["calibration_error"])
        section.plots.append(plot(diagram, "reliability diagram"))
    return section


def confusion(report: RunReport, photo: Photo) -> Section:
    """Returns the confusion matrix, and the most confused pairs with examples, the most confident one first."""
    if report.confusion is None:
        return Section("Confused classes", [SEVERAL])
    section = Section("Confused classes", ["Rows are true classes, columns predicted ones."])
    section.plots.append(plot(confusion_matrix(report.confusion, report.classes), "confusion matrix"))
    predicted, confidence = report.probabilities.argmax(1), report.probabilities.max(1)
    pairs = report.confused_pairs()
    for true, wrong, count in pairs[:MAX_PAIRS]:
        positions = ((report.labels == true) & (predicted == wrong)).nonzero()[0]
        worst = sorted(positions.tolist(), key=lambda position: -confidence[position])[:MAX_EXAMPLES]
        images = [shown for position in worst if (shown := photo(position))]
        total = int(report.confusion[true].sum())
        title = f"{report.classes[true]} → predicted {report.classes[wrong]}"
        section.strips.append(Strip(title, f"{count:,} of {total:,} images ({count / total:.0%})", images))
    if len(pairs) > MAX_PAIRS:
        section.texts.append(
            f"Below the matrix: the {MAX_PAIRS} most frequent of {len(pairs):,} pairs; all are in confused_pairs.csv."
        )
    return section


def classes(report: RunReport) -> Section:
    """Returns the table of the classes."""
    table = Table(["class", "images", "precision", "recall", "F1"], report.class_rows())
    return Section("Classes", ["With 95 % intervals (Wilson)."], table=table)


def add_label_errors(
    section: Section, errors: Sequence[LabelError], files: Sequence[str], names: Sequence[str], photo: Photo
) -> Section:
    """Adds the most probable label errors to their section and returns it.

    Args:
        section: the section.
        errors: the errors.
        files: name of each image that was searched.
        names: the class names.
        photo: returns the photo of such an image.
    """
    for each in errors[:MAX_CARDS]:
        images = [shown] if (shown := photo(each.position)) else []
        note = f"{files[each.position]} · probability of the label: {each.score:.1%}"
        section.cards.append(Card(images, f"label: {names[each.given]}", f"suggested: {names[each.suggested]}", note))
    if len(errors) > MAX_CARDS:
        section.texts.append(f"The {MAX_CARDS} most probable are shown; all are in label_errors.csv.")
    return section


def data(report: RunReport) -> Section:
    """Returns the number of images of each class in each split."""
    section = Section("Data", [f"Trained on {report.data}. Evaluated on {report.tested_data}: {report.tested_on}."])
    if report.counts:
        section.table = Table(["class", *report.counts], report.count_rows())
    return section


def recipe(report: RunReport) -> Section:
    """Returns the options of the training."""
    return Section(
        "Recipe", [f"Checkpoint: {report.checkpoint}."], table=Table(["option", "value"], report.settings(), text=True)
    )
