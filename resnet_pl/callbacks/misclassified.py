"""Writes misclassified.csv: the images of a test that are classified wrongly, the worst first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from resnet_pl.callbacks.access import class_names, display_path, gather_rows
from resnet_pl.data.batch import Batch
from resnet_pl.reports.tables import write_csv


class MisclassifiedWriter(Callback):
    """Writes the file, the true class, the prediction and its probability of each misclassified image.

    The rows are sorted by the probability, the most confident mistake first. Nothing is written if the steps of the
    module do not return `probabilities`.

    Args:
        path: the CSV file.
        images: the tested split; None for data that does not give access to its images, which are then numbered in the
            order of the loader.
    """

    def __init__(self, path: Path, images: Any = None) -> None:
        self.path, self.images = path, images
        self._mistakes: list[tuple[float, int, int, int]] = []  # -probability, index, label, prediction
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
        probabilities: Tensor = outputs["probabilities"]
        labels = (outputs["labels"] if "labels" in outputs else Batch.of(batch).labels).to(probabilities.device)
        indices = outputs.get("indices")
        if self.images is None or indices is None:
            order = torch.arange(self._seen, self._seen + len(labels), device=labels.device)
            indices = order * trainer.world_size + trainer.global_rank
        self._seen += len(labels)
        confidence, predicted = probabilities.max(1)
        wrong = predicted != labels
        columns = -confidence, indices, labels, predicted
        self._mistakes += zip(*(column[wrong].tolist() for column in columns), strict=True)

    on_validation_batch_end = on_test_batch_end

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        rows = gather_rows(trainer, self._mistakes)
        if not trainer.is_global_zero or not self._seen:
            return
        names = class_names(pl_module, 1 + max((max(row[2:]) for row in rows), default=0))
        lines = (
            [display_path(self.images, index), names[label], names[predicted], f"{-negated:.6f}"]
            for negated, index, label, predicted in sorted(rows)
        )
        write_csv(self.path, ["file", "truth", "prediction", "probability"], lines)

    on_validation_end = on_test_end
