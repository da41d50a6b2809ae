"""What is measured when a net is evaluated; memory does not grow with the data set."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix


class BinnedCalibrationError(Metric):
    """Expected calibration error over equal bins of confidence (Guo et al., 2017).

    torchmetrics' own keeps every confidence until the end; this one keeps three sums a bin.

    Args:
        bins: number of bins.
    """

    def __init__(self, bins: int = 15) -> None:
        super().__init__()
        self.bins = bins
        for name in ("count", "confidence", "correct"):
            self.add_state(name, torch.zeros(bins), dist_reduce_fx="sum")

    def update(self, probabilities: Tensor, labels: Tensor) -> None:
        """Adds a batch of `(N, K)` probabilities and `(N,)` labels."""
        confidence, predicted = probabilities.max(1)
        which = (confidence * self.bins).long().clamp_(0, self.bins - 1)
        columns = {"count": torch.ones_like(confidence), "confidence": confidence, "correct": predicted == labels}
        for name, column in columns.items():
            state = getattr(self, name)
            # Summed within the batch first: one image hardly changes a float32 sum over many, and Apple's GPUs have
            # no float64.
            state += torch.zeros_like(state).scatter_add_(0, which, column.to(state))

    def compute(self) -> Tensor:
        """Mean gap between confidence and accuracy, 0 to 1."""
        return (self.confidence - self.correct).abs().sum() / self.count.sum()


class ClassificationMetrics(nn.Module):
    """Everything measured over one evaluation, exact under any number of processes.

    Args:
        num_classes: number of classes.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        # By default torchmetrics leaves out what is not a number, and a net that fails would look well.
        self.loss = MeanMetric(nan_strategy="disable")
        # Top-5 says nothing where five guesses cover the classes.
        self.top5 = (
            MulticlassAccuracy(num_classes, top_k=5, average="micro", validate_args=False) if num_classes > 5 else None
        )
        # What torchmetrics would validate, the loss has been computed of; and a GPU would wait for it in every batch.
        self.confusion = MulticlassConfusionMatrix(num_classes, validate_args=False)
        self.calibration_error = BinnedCalibrationError()

    def update(self, probabilities: Tensor, labels: Tensor) -> None:
        """Adds a batch of `(N, K)` float32 probabilities and `(N,)` labels."""
        likelihood = probabilities.gather(1, labels[:, None]).clamp_min(torch.finfo(probabilities.dtype).tiny)
        self.loss.update(-likelihood.log())
        if self.top5 is not None:
            self.top5.update(probabilities, labels)
        self.confusion.update(probabilities.argmax(1), labels)
        self.calibration_error.update(probabilities, labels)

    def compute(self) -> dict[str, Any]:
        """Collects from all processes.

        Returns:
            `top1`, `top5` (None for five classes or fewer), `loss` (cross-entropy, nats), `calibration_error`,
            `images`, and `confusion`, a `(K, K)` int64 tensor, rows the truth and columns the prediction.
        """
        confusion = self.confusion.compute().cpu()
        images = int(confusion.sum())
        return {
            "top1": int(confusion.diag().sum()) / max(1, images),
            "top5": None if self.top5 is None else float(self.top5.compute()),
            "loss": float(self.loss.compute()),
            "calibration_error": float(self.calibration_error.compute()),
            "images": images,
            "confusion": confusion,
        }

    def reset(self) -> None:
        """Forgets everything."""
        for metric in self.children():
            metric.reset()


def per_class(confusion: Tensor, class_names: list[str]) -> dict[str, dict[str, Any]]:
    """Images, correct ones and top-1 of each class; top-1 is None where a class has no image."""
    totals, correct = confusion.sum(1).tolist(), confusion.diag().tolist()
    return {
        name: {"images": total, "correct": right, "top1": right / total if total else None}
        for name, total, right in zip(class_names, totals, correct, strict=True)
    }
