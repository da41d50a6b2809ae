"""Tables for the terminal and CSV files."""

import io
import math
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from csv import writer
from itertools import chain
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from resnet_pl.reports.image_selection import mark_of
from resnet_pl.utils import atomic_write

MAX_CLASSES = 25
WORST_CLASSES = 10
MAX_IMAGES = 20
# Metrics in the order of the tables: name and format.
METRICS = {
    "top1": ("top-1 accuracy", ".2%"),
    "top5": ("top-5 accuracy", ".2%"),
    "map": ("mAP", ".2%"),
    "exact_match": ("exact match", ".2%"),
    "precision_macro": ("macro precision", ".2%"),
    "recall_macro": ("macro recall", ".2%"),
    "f1_macro": ("macro F1", ".2%"),
    "f1_micro": ("micro F1", ".2%"),
    "balanced_accuracy": ("balanced accuracy", ".2%"),
    "auroc": ("AUROC", ".2%"),
    "loss": ("loss (cross-entropy, nats)", ".4f"),
    "calibration_error": ("calibration error (ECE, 15 bins)", ".2%"),
    "adaptive_calibration_error": ("calibration error (bins of equal numbers)", ".2%"),
}
# Those that are means over the classes.
AVERAGES = ("precision_macro", "recall_macro", "f1_macro", "f1_micro", "balanced_accuracy", "auroc")
# Scores of each class.
SCORES = ("precision", "recall", "f1")
# Columns of a table of predictions that reach the confidence threshold.
ACCEPTED = ["coverage", "precision of the accepted", "accepted"]


def report_width() -> int:
    """Returns the width of reports in characters: that of the terminal, or 100 for a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 100


def print_report(renderable: RenderableType) -> None:
    """Prints to stdout: in the width of a terminal; 100 columns wide and without color to a file or a pipe."""
    terminal = sys.stdout.isatty()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # The report of a long test must not fail because the terminal's encoding lacks a character of a class name.
        sys.stdout.reconfigure(errors="replace")
    console = Console(width=report_width(), color_system="auto" if terminal else None, highlight=False)
    console.print(renderable)


def number(value: float | None, form: str) -> str:
    """Formats a number; returns a dash for None and NaN."""
    return "–" if value is None or math.isnan(value) else format(value, form)


def numbers_table(*names: str, numbers: Sequence[str]) -> Table:
    """Returns an empty table of left-aligned columns `names`, followed by right-aligned columns `numbers`."""
    table = Table(*names, box=SIMPLE_HEAD)
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes a CSV file atomically; raises UserError if `path` cannot be written.

    Characters that UTF-8 cannot encode, as in file names of other encodings, are escaped with a backslash.
    """
    with (
        atomic_write(path) as partial,
        partial.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        table = writer(file)
        table.writerow(header)
        table.writerows(rows)


def results_table(results: Mapping[str, Any]) -> Group:
    """Returns the tables of one test: overall metrics, and those of each class; of many classes, of the worst.

    Args:
        results: as passed to `write_results`; fractions, or None if they do not apply. `metrics` holds further metrics;
            those with several values are not shown.
    """
    formats = {"top1": ".2%", "top5": ".2%", "map": ".2%", "exact_match": ".2%", "loss": ".4f"}
    formats |= {"calibration_error": ".2%", "adaptive_calibration_error": ".2%", "images": ","}
    names = {"top1": "top-1", "top5": "top-5", "map": "mAP", "exact_match": "exact match"}
    names |= {"calibration_error": "calibration error", "adaptive_calibration_error": "adaptive error"}
    known = {key: form for key, form in formats.items() if results["images"] is not None and key in results}
    cells = {names.get(key, key): number(results[key], form) for key, form in known.items()}
    if results.get("top5") is None:
        cells.pop("top-5", None)
    others = results.get("metrics") or {}
    cells |= {name: number(value, ".4f") for name, value in others.items() if not isinstance(value, list)}
    means = [(*METRICS[key], results.get(key)) for key in AVERAGES]
    averages = {name: number(value, form) for name, form, value in means if isinstance(value, float)}
    # Text: in a plain string rich interprets square brackets as markup.
    title = Text(" " + " · ".join(results[key] for key in ("data", "split", "protocol", "checkpoint")), style="bold")
    if "temperature" in results:
        title.append(f" · temperature {results['temperature']:.4g}")
    rows = [_row_table(each) for each in (cells, averages) if each]
    if accepted := results.get("accepted"):
        table = numbers_table(numbers=["confidence threshold", *ACCEPTED])
        table.add_row(f"{accepted['threshold']:.4f}", *accepted_cells(accepted))
        rows.append(table)
    return Group(title, *rows, *(_classes_table(results["per_class"]) if results["per_class"] else ()))


def accepted_cells(accepted: Mapping[str, Any]) -> list[str]:
    """The cells of a table of predictions that reach the confidence threshold: coverage, precision and number."""
    scores = (_share(accepted[key], accepted[f"{key}_interval"]) for key in ("coverage", "precision"))
    return [*scores, f"{accepted['images']:,}"]


def calibration_table(calibration: Mapping[str, Any]) -> Group:
    """Returns the tables of `calibrate`: the scores before and after, and the predictions above the threshold.

    Args:
        calibration: as stored in the checkpoint, with the results on `val` and perhaps `test`.
    """
    title = f" temperature {calibration['temperature']:.4g}, fitted to {calibration['images']:,} validation images"
    scores = numbers_table("split", "", numbers=["loss", "calibration error", "adaptive error"])
    accepted = numbers_table("split", numbers=ACCEPTED)
    splits = [name for name in ("val", "test") if name in calibration]
    for name in splits:
        for when in ("before", "after"):
            row = calibration[name][when]
            errors = (number(row[key], ".2%") for key in ("calibration_error", "adaptive_calibration_error"))
            scores.add_row(name if when == "before" else "", when, number(row["loss"], ".4f"), *errors)
        if calibration["threshold"] is not None:
            accepted.add_row(name, *accepted_cells(calibration[name]["accepted"]))
    if calibration["threshold"] is None:
        return Group(Text(title, style="bold"), scores)
    threshold = f" confidence threshold {calibration['threshold']:.4f}"
    note = Text(" Intervals: 95 %, Wilson.", style="dim")
    return Group(Text(title, style="bold"), scores, Text(threshold, style="bold"), accepted, note)


def _row_table(cells: Mapping[str, str]) -> Table:
    """A table of one row, with names as its header."""
    table = numbers_table(numbers=list(cells))
    table.add_row(*cells.values())
    return table


def _classes_table(classes: Mapping[str, Mapping[str, Any]]) -> list[RenderableType]:
    """The table of the classes, and a note; of many classes, those with the lowest F1."""
    shown, note = list(classes.items()), "Intervals: 95 %, Wilson."
    if len(shown) > MAX_CLASSES:
        tested = [(name, row) for name, row in shown if row["images"]]
        shown = sorted(tested, key=lambda item: item[1]["f1"])[:WORST_CLASSES]
        note = f"The {len(shown)} classes with the lowest F1, of {len(classes):,}. {note}"
    table = numbers_table("class", numbers=["images", "precision", "recall", "F1"])
    for name, row in shown:
        table.add_row(Text(name), *class_cells(row))
    return [table, Text(f" {note}", style="dim")]


def class_cells(row: Mapping[str, Any]) -> list[str]:
    """Returns the cells of a class: number of images, precision, recall and F1."""
    return [f"{row['images']:,}", *(_share(row[key], row[f"{key}_interval"]) for key in SCORES)]


def _share(value: float | None, interval: Sequence[float] | None) -> str:
    """A fraction and its interval in per cent, such as `95.2% 87–98`."""
    return number(value, ".1%") + (f" {100 * interval[0]:.0f}–{100 * interval[1]:.0f}" if interval else "")


def predictions_table(rows: Sequence[Mapping[str, Any]], top_k: int) -> Group:
    """Returns the table of the first predictions, green if correct and red if wrong.

    Args:
        rows: one per image: `path`, `truth` (or None), `classes` and `probabilities`, the most probable class first.
        top_k: number of classes per image.
    """
    shown = rows[:MAX_IMAGES]
    # The common folder is printed once, above: long paths would be wrapped. A prefix may end inside a name.
    folder = os.path.dirname(os.path.commonprefix([row["path"] for row in shown]))  # noqa: PTH120, RUF071
    known = any(row["truth"] is not None for row in shown)
    ranks = range(2, 1 + min(top_k, max((len(row["classes"]) for row in shown), default=1)))
    table = Table(box=SIMPLE_HEAD)
    several = any("found" in row for row in shown)
    first = ["prediction", "1st"] if several else ["prediction"]
    for name in ("image", *(["truth"] if known else []), *first, *map(_ordinal, ranks)):
        table.add_column(name, overflow="fold")
    for row in shown:
        predictions = [
            Text(f"{name} {number(p, '.2%')}") for name, p in zip(row["classes"], row["probabilities"], strict=True)
        ]
        if "found" in row:
            predictions = [Text(row["found"]), *predictions]
        if (mark := mark_of(row)) != "none":
            predictions[0].stylize({"right": "green", "wrong": "red"}[mark])
        path = os.path.relpath(row["path"], folder) if folder else row["path"]
        table.add_row(Text(path), *([Text(row["truth"] or "")] if known else []), *predictions[: top_k + several])
    header = [Text(f" in {folder}", style="dim", overflow="fold")] if folder else []
    more = len(rows) > len(shown)
    note = [Text(f" The first {len(shown):,} of {len(rows):,} images.", style="dim")] if more else []
    return Group(*header, table, *note)


def _ordinal(number: int) -> str:
    suffix = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"


def write_predictions(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Writes predictions as CSV: path, truth, prediction, probability, class_2, probability_2 and so on.

    With several classes per image, `prediction` has all that reach their threshold, such as `cat|dog`, and `class_1`,
    `probability_1` and so on follow. So they do with a confidence threshold: `prediction` can be `unknown`.

    Args:
        rows: as passed to `predictions_table`, all with the same number of classes.
        path: the CSV file; its column `truth` is empty if the true class is unknown.
    """
    ranks = range(2, 1 + (len(rows[0]["classes"]) if rows else 1))
    further = chain.from_iterable((f"class_{rank}", f"probability_{rank}") for rank in ranks)
    predictions = (zip(row["classes"], (f"{p:.6f}" for p in row["probabilities"]), strict=True) for row in rows)
    several = any("found" in row for row in rows)
    lines = (
        [row["path"], row["truth"], *([row["found"]] if several else []), *chain.from_iterable(own)]
        for row, own in zip(rows, predictions, strict=True)
    )
    first = ["prediction", "class_1", "probability_1"] if several else ["prediction", "probability"]
    write_csv(path, ["path", "truth", *first, *further], lines)


def write_submission(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Writes predictions as a submission for Kaggle, a CSV file with the columns id and label.

    Args:
        rows: as passed to `predictions_table`; the id is the file name without folder and extension.
        path: the CSV file.
    """

    def label(row: Mapping[str, Any]) -> str:
        """The most probable class also if it is below the confidence threshold: `unknown` is never right."""
        return row["classes"][0] if row.get("is_unknown") else row.get("found", row["classes"][0])

    write_csv(path, ["id", "label"], ([image_id(row["path"]), label(row)] for row in rows))


def image_id(path: str) -> str:
    """Returns the id of an image in a submission: its file name without folder and extension."""
    return Path(path).stem
