"""Tables for the terminal and as CSV."""

import math
import os
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

from resnet_pl.utils import atomic_write

MAX_CLASSES = 25
WORST_CLASSES = 10
MAX_IMAGES = 20


def print_report(renderable: RenderableType) -> None:
    """Print to stdout: as wide as the terminal, or 100 columns without colour into a file or a pipe."""
    terminal = sys.stdout.isatty()
    if hasattr(sys.stdout, "reconfigure"):
        # A class name that the terminal's encoding lacks is no reason to lose the report of a long test.
        sys.stdout.reconfigure(errors="replace")
    console = Console(width=None if terminal else 100, color_system="auto" if terminal else None, highlight=False)
    console.print(renderable)


def number(value: float | None, form: str) -> str:
    """A number as text, a dash where it is not known."""
    return "–" if value is None or math.isnan(value) else format(value, form)


def numbers_table(*names: str, numbers: Sequence[str]) -> Table:
    """An empty table of text columns and, right of them, columns of numbers."""
    table = Table(*names, box=SIMPLE_HEAD)
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table whole or not at all; raises UserError if nothing can be written at `path`.

    What is not UTF-8, as the name of a file may be, is escaped, so that the rest can be read by anyone.
    """
    with (
        atomic_write(path) as partial,
        partial.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        table = writer(file)
        table.writerow(header)
        table.writerows(rows)


def results_table(results: Mapping[str, Any]) -> Group:
    """Show one test: the numbers for all images, and for each class or, where they are many, for the worst ones.

    Args:
        results: as `write_results` takes them; rates are fractions, or None where they do not apply.
    """
    cells = {
        "top-1": number(results["top1"], ".2%"),
        "top-5": number(results["top5"], ".2%"),
        "loss": number(results["loss"], ".4f"),
        "calibration error": number(results["calibration_error"], ".2%"),
        "images": f"{results['images']:,}",
    }
    if results["top5"] is None:
        del cells["top-5"]
    headline = numbers_table(numbers=list(cells))
    headline.add_row(*cells.values())
    # As Text, here and below: rich would take the square brackets of a name for markup.
    title = Text(" " + " · ".join(results[key] for key in ("data", "split", "protocol", "checkpoint")), style="bold")
    classes, note = results["per_class"], []
    shown = list(classes.items())
    if len(shown) > MAX_CLASSES:
        tested = [(name, row) for name, row in shown if row["images"]]
        shown = sorted(tested, key=lambda item: item[1]["top1"])[:WORST_CLASSES]
        note = [Text(f" The {len(shown)} worst of {len(classes):,} classes.", style="dim")]
    table = numbers_table("class", numbers=["images", "right", "top-1"])
    for name, row in shown:
        table.add_row(Text(name), f"{row['images']:,}", f"{row['correct']:,}", number(row["top1"], ".2%"))
    return Group(title, headline, table, *note)


def predictions_table(rows: Sequence[Mapping[str, Any]], top_k: int) -> Group:
    """Show what the first images were taken for, green where right and red where wrong.

    Args:
        rows: one for each image: `path`, `truth` (or None), `classes` and `probabilities`, the likeliest first.
        top_k: classes to show for each image.
    """
    shown = rows[:MAX_IMAGES]
    # Said once: long ones would be broken over lines. Where the prefix ends inside a name, its folder does not.
    folder = os.path.dirname(os.path.commonprefix([row["path"] for row in shown]))  # noqa: PTH120, RUF071
    known = any(row["truth"] is not None for row in shown)
    places = range(2, 1 + min(top_k, max((len(row["classes"]) for row in shown), default=1)))
    table = Table(box=SIMPLE_HEAD)
    for name in ("image", *(["truth"] if known else []), "prediction", *(f"{place}." for place in places)):
        table.add_column(name, overflow="fold")
    for row in shown:
        guesses = [
            Text(f"{name} {number(p, '.2%')}") for name, p in zip(row["classes"], row["probabilities"], strict=True)
        ]
        if row["truth"] is not None:
            guesses[0].stylize("green" if row["classes"][0] == row["truth"] else "red")
        path = os.path.relpath(row["path"], folder) if folder else row["path"]
        table.add_row(Text(path), *([Text(row["truth"] or "")] if known else []), *guesses[:top_k])
    above = [Text(f" in {folder}", style="dim", overflow="fold")] if folder else []
    more = len(rows) > len(shown)
    note = [Text(f" The first {len(shown):,} of {len(rows):,} images.", style="dim")] if more else []
    return Group(*above, table, *note)


def write_predictions(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write predictions as CSV: path, truth, prediction, probability, class_2, probability_2 and so on.

    Args:
        rows: as `predictions_table` takes them, each with as many classes as the first.
        path: the file; `truth` is empty where it is not known.
    """
    places = range(2, 1 + (len(rows[0]["classes"]) if rows else 1))
    later = chain.from_iterable((f"class_{place}", f"probability_{place}") for place in places)
    guesses = (zip(row["classes"], (f"{p:.6f}" for p in row["probabilities"]), strict=True) for row in rows)
    lines = ([row["path"], row["truth"], *chain.from_iterable(own)] for row, own in zip(rows, guesses, strict=True))
    write_csv(path, ["path", "truth", "prediction", "probability", *later], lines)
