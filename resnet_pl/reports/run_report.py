"""The contents of a report on a run, and its CSV files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from resnet_pl.reports.run_groups import flatten_config, option_text
from resnet_pl.reports.tables import METRICS, SCORES, accepted_cells, class_cells, number, write_csv
from resnet_pl.run_dir import UNKNOWN

# Settings of the Trainer that belong to the recipe.
TRAINER_KEYS = ("max_epochs", "max_steps", "precision", "devices", "accumulate_grad_batches", "gradient_clip_val")
LIMITS = ("_low", "_high")  # columns of classes.csv


@dataclass
class RunReport:
    """The evaluation of a checkpoint, and what it was trained on and how.

    Attributes:
        name: name of the run.
        model: the network.
        data: what it was trained on: class of the data module and name of its folder.
        tested_data: the same for what it is evaluated on.
        checkpoint: the checkpoint, with its epoch and step.
        split: name of the evaluated split in results.
        tested_on: description of the evaluated images.
        classes: names of the K classes.
        files: name of each evaluated image, N names.
        labels: `(N,)` int64, or `(N, K)`, 1 for each class of an image.
        probabilities: `(N, K)`.
        found: predicted classes `(N, K)` bool, if an image can have several; else None.
        results: value of each metric.
        intervals: 95 % interval of some metrics.
        per_class: results of each class, see `evaluation.metrics.per_class`.
        confusion: `(K, K)`, labels as rows; None if an image can have several classes.
        counts: number of images of each class in each split, by split.
        config: the resolved configuration.
        calibration: `temperature` and `accepted` if the network has them, as in results.json.
        reliability: bins of the reliability diagram; none if an image can have several classes.
    """

    name: str
    model: str
    data: str
    tested_data: str
    checkpoint: str
    split: str
    tested_on: str
    classes: list[str]
    files: list[str]
    labels: np.ndarray
    probabilities: np.ndarray
    found: np.ndarray | None
    results: Mapping[str, Any]
    intervals: Mapping[str, tuple[float, float]]
    per_class: Mapping[str, Mapping[str, Any]]
    confusion: np.ndarray | None
    counts: Mapping[str, Sequence[int]] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    calibration: Mapping[str, Any] = field(default_factory=dict)
    reliability: Sequence[Mapping[str, Any]] = ()

    def metric_rows(self, *keys: str) -> list[tuple[str, str, str]]:
        """Returns name, value and interval of these metrics, as text; of all by default."""
        rows = []
        for key in keys or METRICS:
            if isinstance(value := self.results.get(key), float):
                name, form = METRICS[key]
                low, high = self.intervals.get(key, (None, None))
                interval = "" if low is None else f"{number(low, form)} – {number(high, form)}"
                rows.append((name, number(value, form), interval))
        return rows

    def class_rows(self) -> list[list[str]]:
        """Returns name, number of images, precision, recall and F1 of each class, as text with 95 % intervals."""
        return [[name, *class_cells(row)] for name, row in self.per_class.items()]

    def count_rows(self) -> list[list[str]]:
        """Returns the number of images of each class in each split, as text; the last row has the sums."""
        rows = zip(self.classes, *self.counts.values(), strict=True) if self.counts else ()
        totals = ["all classes", *(f"{sum(column):,}" for column in self.counts.values())]
        return [*([name, *(f"{count:,}" for count in counts)] for name, *counts in rows), totals]

    def predicted(self) -> list[str]:
        """Returns the predicted class of each image; several are separated by `|`."""
        return self._names(self.probabilities.argmax(1) if self.found is None else self.found)

    def answers(self) -> list[str]:
        """Returns the predicted class of each image, or `unknown` below the confidence threshold, as `predict` does."""
        threshold = (self.calibration.get("accepted") or {"threshold": -math.inf})["threshold"]
        confidence = self.probabilities.max(1)
        return [name if p >= threshold else UNKNOWN for name, p in zip(self.predicted(), confidence, strict=True)]

    def truth(self) -> list[str]:
        """Returns the class of each image; several are separated by `|`."""
        return self._names(self.labels if self.found is None else self.labels > 0.5)

    def _names(self, chosen: np.ndarray) -> list[str]:
        if chosen.ndim == 1:
            return [self.classes[index] for index in chosen]
        return ["|".join(self.classes[index] for index in np.flatnonzero(row)) for row in chosen]

    def confused_pairs(self) -> list[tuple[int, int, int]]:
        """Returns true class, predicted class and number of images of all mistakes, the most frequent pair first."""
        if self.confusion is None:
            return []
        pairs = [(t, p, int(self.confusion[t, p])) for t, p in np.argwhere(self.confusion).tolist() if t != p]
        return sorted(pairs, key=lambda pair: -pair[2])

    def calibration_texts(self) -> list[str]:
        """Returns sentences on the temperature and the confidence threshold."""
        texts = ["The probabilities are not calibrated; the command calibrate does it."]
        if "temperature" in self.calibration:
            texts = [f"Calibrated on the validation images with the temperature {self.calibration['temperature']:.4g}."]
        if accepted := self.calibration.get("accepted"):
            coverage, precision, count = accepted_cells(accepted)
            texts.append(
                f"Below a probability of {accepted['threshold']:.4f} the answer is “unknown”. {count} images reach it "
                f"(coverage {coverage}); the precision of their predictions is {precision}. Ranges: 95 % intervals."
            )
        return texts

    def settings(self) -> list[tuple[str, str]]:
        """Returns the options of the recipe that have a value."""
        flat = flatten_config({key: self.config[key] for key in ("model", "data", "trainer") if key in self.config})
        trainer = {f"trainer.{key}" for key in TRAINER_KEYS}
        shown = [key for key in flat if key.startswith(("model", "data")) or key in trainer]
        texts = {key: without_folders(option_text(flat[key], long=True)) for key in sorted(shown)}
        texts["seed_everything"] = option_text(self.config.get("seed_everything"))
        return [(key, text) for key, text in texts.items() if text not in ("null", "false", "[]", "{}", "-1")]

    def write_tables(self, folder: Path) -> None:
        """Writes the CSV files; raises UserError if one cannot be written."""
        probabilities = self.probabilities.max(1).tolist()
        columns, first = [self.files, self.truth(), self.answers()], ["file", "truth", "prediction"]
        if self.calibration.get("accepted"):  # the columns of `predict`
            columns, first = [*columns, self.predicted()], [*first, "class_1"]
        head = [*first, "probability_1" if len(first) == 4 else "probability"]
        classes = [
            [
                name,
                row["images"],
                *(value for score in SCORES for value in (row[score], *_limits(row[f"{score}_interval"]))),
            ]
            for name, row in self.per_class.items()
        ]
        pairs = [[self.classes[t], self.classes[p], count] for t, p, count in self.confused_pairs()]
        matrix = [] if self.confusion is None else self.confusion.tolist()
        values = [
            [key, self.results[key], *_limits(self.intervals.get(key))]
            for key in METRICS
            if self.results.get(key) is not None
        ]
        scores = [f"{score}{limit}" for score in SCORES for limit in ("", *LIMITS)]
        tables: dict[str, tuple[list[str], Iterable[Sequence[Any]]]] = {
            "metrics": (["metric", "value", "low", "high"], values),
            "predictions": (head, zip(*columns, probabilities, strict=True)),
            "classes": (["class", "images", *scores], classes),
            "confusion": (["truth", *self.classes], [[n, *row] for n, row in zip(self.classes, matrix, strict=False)]),
            "confused_pairs": (["truth", "prediction", "images"], pairs),
            "data": (["class", *self.counts], zip(self.classes, *self.counts.values(), strict=True)),
        }
        for name, (head, rows) in tables.items():
            write_csv(folder / f"{name}.csv", head, rows)


def without_folders(text: str) -> str:
    """Returns the name of an absolute path, and any other text unchanged: a path can hold the name of a person."""
    return Path(text).name if Path(text).is_absolute() else text


def _limits(interval: Sequence[float] | None) -> Sequence[Any]:
    return interval or ("", "")
