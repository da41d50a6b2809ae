"""Which predictions the contact sheet shows, and in which order."""

from __future__ import annotations

from typing import Any

from resnet_pl.reports.image_selection import select_images


def row(truth: str | None, prediction: str, probability: float) -> dict[str, Any]:
    return {"truth": truth, "classes": [prediction, "?"], "probabilities": [probability, 1 - probability]}


MIXED = [
    row("a", "a", 0.9),
    row("a", "b", 0.6),
    row(None, "a", 0.7),
    row("b", "a", 0.8),
    row("b", "b", 0.5),
    row(None, "b", 0.5),
]


def test_confident_mistakes_come_first_then_uncertain_images() -> None:
    chosen, words = select_images(MIXED, 64)
    assert chosen == [3, 1, 5, 2, 4, 0]
    assert words == "6 images, most confident mistakes first, then least confident predictions"
    assert select_images(MIXED[1:2], 64) == ([0], "1 image, most confident mistakes first")


def test_without_known_classes_the_least_confident_images_come_first() -> None:
    unknown = [row(None, "a", p) for p in (0.9, 0.5, 0.7)]
    assert select_images(unknown, 3) == ([1, 2, 0], "3 images, least confident predictions first")


def test_one_predicted_class_does_not_fill_the_sheet() -> None:
    rows = [row(None, "a", 0.5 + i / 1000) for i in range(100)] + [row(None, name, 0.99) for name in "bc"]
    chosen, words = select_images(rows, 4)
    assert chosen == [0, 1, 100, 101]
    assert words == "4 of 102 images, least confident predictions first, balanced over the predicted classes"


def test_a_correct_prediction_takes_no_place_of_a_mistake() -> None:
    rows = [row("b", "a", 0.9), row("b", "a", 0.8), row("c", "c", 0.4)]
    assert select_images(rows, 2)[0] == [0, 1]
    assert select_images([], 2) == ([], "") and select_images(rows, 0) == ([], "")
