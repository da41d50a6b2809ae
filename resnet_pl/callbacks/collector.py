"""Collects the predictions of an evaluation, and the network's inputs of its most confident mistakes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from resnet_pl.callbacks.access import gather_rows, image_indices, worst_decisions
from resnet_pl.data.batch import Batch


@dataclass(order=True)
class Mistake:
    """A wrong prediction.

    Attributes:
        rank: minus the probability of the wrong decision, so that the most confident mistake is the first one.
        index: index of the image in its split.
        predicted: the predicted class; with several classes per image, the one whose decision is wrong.
        inputs: what the network got, `(C, H, W)`.
    """

    rank: float
    index: int
    predicted: int
    inputs: Tensor


class PredictionCollector(Callback):
    """Collects probabilities and labels from all processes, in the order of the images.

    Args:
        images: the evaluated split; None for data that does not give access to its images.
        mistakes: number of mistakes whose inputs are collected.

    Attributes:
        indices: index of each image in the split, `(N,)`; empty if the steps of the module return no `probabilities`,
            or no `labels` for batches of another kind than `Batch`.
        labels: `(N,)` int64; with several classes per image `(N, K)`, 1 for each of its classes.
        probabilities: `(N, K)` float32.
        mistakes: the most confident mistakes.
    """

    def __init__(self, images: Any = None, mistakes: int = 0) -> None:
        self.images, self.number = images, mistakes
        self.indices = self.labels = self.probabilities = torch.empty(0)
        self.mistakes: list[Mistake] = []
        self._own: list[tuple[Tensor, Tensor, Tensor]] = []
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
        """Collects a batch."""
        if not isinstance(outputs, dict) or "probabilities" not in outputs:
            return
        found = Batch.find(batch, batch_idx)
        labels = outputs.get("labels", None if found is None else found.labels)
        if labels is None:
            return
        probabilities, labels = outputs["probabilities"].float().cpu(), labels.cpu()
        indices = image_indices(trainer, outputs, self.images, self._seen, len(labels)).cpu()
        self._seen += len(labels)
        self._own.append((indices, labels, probabilities))
        if not self.number or found is None:
            return
        certainty, predicted, wrong = worst_decisions(probabilities, labels, getattr(pl_module, "thresholds", None))
        worst = [row for row in certainty.argsort(descending=True).tolist() if wrong[row]][: self.number]
        self.mistakes += [
            Mistake(-float(certainty[row]), int(indices[row]), int(predicted[row]), found.images[row].cpu())
            for row in worst
        ]
        self.mistakes = sorted(self.mistakes)[: self.number]

    on_validation_batch_end = on_test_batch_end

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gathers what all processes have collected."""
        rows = gather_rows(trainer, self._own)
        self.mistakes = sorted(gather_rows(trainer, self.mistakes))[: self.number]
        if rows:
            indices, labels, probabilities = (torch.cat(column) for column in zip(*rows, strict=True))
            order = indices.argsort()
            self.indices, self.labels, self.probabilities = indices[order], labels[order], probabilities[order]

    on_validation_end = on_test_end
