"""Probable label errors by confident learning (Northcutt et al., 2021, arXiv:1911.00068), with cleanlab."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resnet_pl.reports.tables import write_csv
from resnet_pl.utils import UserError, require

OUT_OF_FOLD = "out_of_fold.csv"  # written by `cross-validate`


@dataclass
class LabelError:
    """An image whose label is probably wrong.

    Attributes:
        position: of the image in the arrays that were searched.
        given: its class.
        suggested: the most probable class.
        score: probability of the given class, 0 to 1; the lower, the more probable is the error.
    """

    position: int
    given: int
    suggested: int
    score: float


def find_label_errors(labels: np.ndarray, probabilities: np.ndarray) -> list[LabelError]:
    """Returns the probable label errors, the most probable first.

    Args:
        labels: class of each image, `(N,)`.
        probabilities: of each class, `(N, K)`, by models that were not trained on the image.

    Raises:
        UserError: cleanlab is not installed.
    """
    cleanlab = require("cleanlab.filter", "explain", "report: the search for label errors")
    if len(np.unique(labels)) < 2:  # nothing to confuse; cleanlab refuses it
        return []
    with warnings.catch_warnings(action="ignore"):  # about classes with few images
        # One process: forking this one, which has threads, could hang.
        found = cleanlab.find_label_issues(labels, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1)
    return [
        LabelError(
            index, int(labels[index]), int(probabilities[index].argmax()), float(probabilities[index, labels[index]])
        )
        for index in map(int, found)
    ]


def find_folds(run: Path, class_names: Sequence[str], files: Collection[str]) -> Path | None:
    """Returns the newest folder of `cross-validate` next to a run whose images and classes are those of the run."""
    places = [run.parents[1] / OUT_OF_FOLD, *run.parents[1].glob(f"*/{OUT_OF_FOLD}")]
    existing = [path for path in places if path.is_file()]
    for path in sorted(existing, key=lambda path: path.stat().st_mtime, reverse=True):
        with suppress(UserError):  # of other data
            if read_out_of_fold(path.parent, class_names).keys() <= set(files):
                return path.parent
    return None


def read_out_of_fold(folder: Path, class_names: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns the probabilities `(K,)` of each file that `cross-validate` has predicted.

    Raises:
        UserError: the file is missing, damaged, or has other classes.
    """
    path, columns = folder / OUT_OF_FOLD, [f"probability_{name}" for name in class_names]
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = csv.DictReader(stream)
            if [name for name in rows.fieldnames or () if name.startswith("probability_")] != columns:
                raise UserError(f"--folds: {path} has other classes than the network\ngive the folds of the same data")
            return {row["file"]: np.array([float(row[name]) for name in columns], np.float32) for row in rows}
    except OSError as error:
        raise UserError(
            f"--folds: {path} cannot be read: {error.strerror}\ngive the folder of cross-validate, such as runs/folds"
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"--folds: {path} is damaged: {error}\nrun cross-validate again") from error


def write_label_errors(
    errors: Iterable[LabelError], files: Sequence[str], class_names: Sequence[str], path: Path
) -> None:
    """Writes label_errors.csv; raises UserError if it cannot be written."""
    rows = (
        [files[each.position], class_names[each.given], class_names[each.suggested], f"{each.score:.6f}"]
        for each in errors
    )
    write_csv(path, ["file", "given_label", "suggested_label", "score"], rows)
