"""Chooses the predictions that are most worth a look, for the contact sheet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from resnet_pl.reports.plots import Mark
from resnet_pl.utils import counted

# In the order of the contact sheet.
MARKS: tuple[Mark, ...] = ("wrong", "none", "right")


def mark_of(row: Mapping[str, Any]) -> Mark:
    """Returns whether a prediction is right or wrong; `none` if it is `unknown`, or if the true class is not known."""
    if row["truth"] is None or row.get("is_unknown"):
        return "none"
    return "right" if row["truth"] == row.get("found", row["classes"][0]) else "wrong"


def select_images(rows: Sequence[Mapping[str, Any]], count: int) -> tuple[list[int], str]:
    """Returns the positions of up to `count` images, in order, and that order as text.

    Mistakes come first, the most confident one on top. Then come images whose class or prediction is unknown, then
    correct predictions, in both cases the least confident one first. If not all images fit, each predicted class gets
    the same number where possible: a class that is often predicted would otherwise fill the sheet.

    Args:
        rows: one per image: `truth` (or None), `classes` and `probabilities`, the most probable class first.
        count: maximum number of images.
    """
    marks: list[Mark] = [mark_of(row) for row in rows]
    confidences = [row["probabilities"][0] for row in rows]

    def kind_and_confidence(position: int) -> tuple[int, float]:
        kind, confidence = MARKS.index(marks[position]), confidences[position]
        return kind, -confidence if marks[position] == "wrong" else confidence

    order = sorted(range(len(rows)), key=kind_and_confidence)
    rank: dict[int, tuple[int, int]] = {}  # kind, and number of images of this kind and predicted class before
    before: Counter[tuple[Mark, str]] = Counter()
    for position in order:
        group = marks[position], rows[position]["classes"][0]
        rank[position] = MARKS.index(marks[position]), before[group]
        before[group] += 1
    chosen = sorted(sorted(order, key=rank.__getitem__)[:count], key=kind_and_confidence)
    kinds: set[Mark] = {marks[position] for position in chosen}
    return chosen, _as_text(kinds, len(chosen), len(rows)) if chosen else ""


def _as_text(kinds: set[Mark], shown: int, total: int) -> str:
    if kinds == {"wrong"}:
        words = ["most confident mistakes first"]
    elif "wrong" in kinds:
        words = ["most confident mistakes first", "then least confident predictions"]
    else:
        words = ["least confident predictions first"]
    if shown < total:
        return ", ".join([f"{shown:,} of {total:,} images", *words, "balanced over the predicted classes"])
    return ", ".join([counted(total, "image"), *words])
