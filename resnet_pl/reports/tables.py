"""Tables for the terminal, and the predictions as CSV."""

import csv
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from resnet_pl.files import replacing

MOST_CLASSES = 25
WORST_CLASSES = 10


def print_report(renderable: RenderableType) -> None:
    """Print to stdout: as wide as the terminal, or 100 columns without colour into a file or a pipe."""
    terminal = sys.stdout.isatty()
    if hasattr(sys.stdout, "reconfigure"):
        # A class name that the terminal's encoding lacks is no reason to lose the report of a long test.
        sys.stdout.reconfigure(errors="replace")
    console = Console(width=None if terminal else 100, color_system="auto" if terminal else None, highlight=False)
    console.print(renderable)


def results_table(results: Mapping[str, Any]) -> Group:
    """Show one test: the numbers for all images, and for each class or, where they are many, for the worst ones.

    Args:
        results: as `write_results` takes them; rates are fractions, or None where they do not apply.
    """
    headline = Table(box=SIMPLE_HEAD)
    cells = {
        "top-1": _percent(results["top1"]),
        "top-5": _percent(results["top5"]) if results.get("top5") is not None else None,
        "loss": _number(results.get("loss")),
        "calibration error": _percent(results.get("calibration_error")),
        "images": f"{results['images']:,}",
    }
    shown = {name: cell for name, cell in cells.items() if cell is not None}
    for name in shown:
        headline.add_column(name, justify="right")
    headline.add_row(*shown.values())
    tested = " · ".join(str(results[key]) for key in ("data", "split", "protocol", "checkpoint") if results.get(key))
    # As Text, here and below: rich would take the square brackets of a name for markup.
    title = Text(f" {tested}", style="bold")
    return Group(title, headline, *_per_class(results.get("per_class") or {}))


def _per_class(per_class: Mapping[str, Mapping[str, Any]]) -> list[RenderableType]:
    """The table of classes, and a line that says so where it does not show them all."""
    if not per_class:
        return []
    table = Table("class", box=SIMPLE_HEAD)
    for name in ("images", "right", "top-1"):
        table.add_column(name, justify="right")
    shown, note = list(per_class.items()), []
    if len(shown) > MOST_CLASSES:
        tested = [(name, row) for name, row in shown if row["images"]]
        shown = sorted(tested, key=lambda item: item[1]["correct"] / item[1]["images"])[:WORST_CLASSES]
        note = [Text(f" The {len(shown)} worst of {len(per_class):,} classes.", style="dim")]
    for name, row in shown:
        table.add_row(Text(name), f"{row['images']:,}", f"{row['correct']:,}", _percent(row["top1"]))
    return [table, *note]


def predictions_table(rows: Sequence[Mapping[str, Any]], top_k: int, limit: int = 20) -> Group:
    """Show what the first images were taken for, green where right and red where wrong.

    Args:
        rows: one for each image: `path`, `truth` (or None), `classes` and `probabilities`, the likeliest first.
        top_k: classes to show for each image.
        limit: images to show.
    """
    shown = rows[:limit]
    folder = _common_folder([str(row["path"]) for row in shown])
    known = any(row.get("truth") is not None for row in shown)
    top_k = min(top_k, max((len(row["classes"]) for row in shown), default=1))
    table = Table(box=SIMPLE_HEAD)
    for name in ("image", *(["truth"] if known else []), "prediction", *(f"{place}." for place in range(2, top_k + 1))):
        table.add_column(name, overflow="fold")
    for row in shown:
        truth = row.get("truth")
        guesses = [Text(f"{name} {_percent(p)}") for name, p in zip(row["classes"], row["probabilities"], strict=True)]
        if truth is not None:
            guesses[0].stylize("green" if row["classes"][0] == truth else "red")
        cells = [
            Text(os.path.relpath(row["path"], folder) if folder else row["path"]),
            *([Text(truth or "")] if known else []),
            *guesses[:top_k],
        ]
        table.add_row(*cells)
    note = [Text(f" The first {len(shown):,} of {len(rows):,} images.", style="dim")] if len(rows) > limit else []
    return Group(*([Text(f" in {folder}", style="dim", overflow="fold")] if folder else []), table, *note)


def _common_folder(paths: Sequence[str]) -> str:
    """What all paths begin with, to be said once: long ones would be broken over lines."""
    try:
        return os.path.commonpath([os.path.dirname(path) for path in paths])  # noqa: PTH120
    # None at all, or absolute paths among others.
    except ValueError:
        return ""


def write_predictions(rows: Iterable[Mapping[str, Any]], path: Path) -> int:
    """Write predictions as CSV: path, truth, prediction, probability, class_2, probability_2 and so on.

    Args:
        rows: as `predictions_table` takes them, each with as many classes as the first; read one by one.
        path: the file, UTF-8; `truth` is empty where it is not known.

    Returns:
        The number of rows written.

    Raises:
        UserError: if nothing can be written at `path`.
    """
    rows = iter(rows)
    first = next(rows, None)
    places = len(first["classes"]) if first else 1
    later = chain.from_iterable((f"class_{place}", f"probability_{place}") for place in range(2, places + 1))
    # A file name that is not UTF-8 is escaped, so that the rest of the file can be read by anyone.
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        written = 0
        table = csv.writer(file)
        table.writerow(["path", "truth", "prediction", "probability", *later])
        for row in chain([first] if first else [], rows):
            pairs = zip(row["classes"], row["probabilities"], strict=True)
            guesses = chain.from_iterable((name, f"{probability:.6f}") for name, probability in pairs)
            table.writerow([row["path"], "" if row.get("truth") is None else row["truth"], *guesses])
            written += 1
    return written


def _percent(share: float | None) -> str:
    return "–" if share is None or math.isnan(share) else f"{share:.2%}"


def _number(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.4f}"
