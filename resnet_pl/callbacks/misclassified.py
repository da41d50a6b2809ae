"""Writes misclassified.csv: the images of a test that are classified wrongly, the worst first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from resnet_pl.callbacks.access import (
    CLASS_SEPARATOR,
    class_names,
    display_path,
    gather_rows,
    image_indices,
    worst_decisions,
)
from resnet_pl.data.batch import Batch
from resnet_pl.reports.tables import write_csv


class MisclassifiedWriter(Callback):
    """Writes the file, the true class, the prediction and its probability of each misclassified image.

    Of images with several classes, all are written, separated by `|`, with the probability of the wrong decision that
    was most certain. The rows are sorted by the probability, the most confident mistake first. Nothing is written if
    the steps of the module do not return `probabilities`.

    Args:
        path: the CSV file.
        images: the tested split; None for data that does not give access to its images, which are then numbered in the
            order of the loader.
    """

    def __init__(self, path: Path, images: Any = None) -> None:
        self.path, self.images = path, images
        self._mistakes: list[tuple[float, int, list[int], list[int]]] = []  # -probability, index, truth, prediction
        self._seen = 0

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collects the mistakes of a batch."""
        if not isinstance(outputs, dict) or "probabilities" not in outputs:
            return
        probabilities: Tensor = outputs["probabilities"].cpu()
        batch = Batch.find(batch)
        if (labels := outputs.get("labels", None if batch is None else batch.labels)) is None:
            return
        labels = labels.cpu()
        indices = image_indices(trainer, outputs, self.images, self._seen, len(labels))
        self._seen += len(labels)
        thresholds = getattr(pl_module, "thresholds", None)
        confidence, predicted, wrong = worst_decisions(probabilities, labels, thresholds)
        found, true = predicted[:, None], labels[:, None]
        if thresholds is not None:
            found, true = probabilities >= thresholds.cpu(), labels > 0.5
        for row in wrong.nonzero().flatten().tolist():
            self._mistakes.append(
                (-float(confidence[row]), int(indices[row]), _classes(true[row]), _classes(found[row]))
            )

    on_validation_batch_end = on_test_batch_end

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gathers the mistakes of all processes and writes the file."""
        rows = gather_rows(trainer, self._mistakes)
        if not trainer.is_global_zero or not self._seen:
            return
        names = class_names(pl_module, 1 + max((max((*true, *found)) for *_, true, found in rows), default=0))
        lines = (
            [
                display_path(self.images, index),
                *(CLASS_SEPARATOR.join(names[i] for i in each) for each in sets),
                f"{-p:.6f}",
            ]
            for p, index, *sets in sorted(rows)
        )
        write_csv(self.path, ["file", "truth", "prediction", "probability"], lines)

    on_validation_end = on_test_end


def _classes(row: Tensor) -> list[int]:
    """The classes of one image: from an index `(1,)`, or from one decision per class `(K,)` bool."""
    return (row.nonzero().flatten() if row.dtype == torch.bool else row).tolist()
