"""Metrics of an evaluation; their memory does not grow with the size of the dataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix
from typing_extensions import override

from resnet_pl.utils import UserError

# Names of the results of `ClassificationMetrics.compute`: numbers that are logged, and others.
LOGGED = ("top1", "top5", "loss", "calibration_error")
NAMES = (*LOGGED, "images", "confusion")


class BinnedCalibrationError(Metric):
    """Expected calibration error (ECE) with bins of equal width (Guo et al., 2017, arXiv:1706.04599).

    `torchmetrics.CalibrationError` stores the confidence of every image; this class stores three sums per bin.

    Args:
        bins: number of bins.
    """

    count: Tensor
    confidence: Tensor
    correct: Tensor

    def __init__(self, bins: int = 15) -> None:
        super().__init__()
        self.bins = bins
        for name in ("count", "confidence", "correct"):
            self.add_state(name, torch.zeros(bins), dist_reduce_fx="sum")

    @override
    def update(self, probabilities: Tensor, labels: Tensor) -> None:
        """Adds a batch of probabilities `(N, K)` and labels `(N,)`."""
        confidence, predicted = probabilities.max(1)
        bin_index = (confidence * self.bins).long().clamp_(0, self.bins - 1)
        columns = {"count": torch.ones_like(confidence), "confidence": confidence, "correct": predicted == labels}
        for name, column in columns.items():
            state = getattr(self, name)
            # Sums of the batch first: adding single images to a large float32 sum loses precision, and Apple's GPUs
            # have no float64.
            state += torch.zeros_like(state).scatter_add_(0, bin_index, column.to(state))

    @override
    def compute(self) -> Tensor:
        """Returns the mean gap between confidence and accuracy, 0 to 1."""
        return (self.confidence - self.correct).abs().sum() / self.count.sum()


class ClassificationMetrics(nn.Module):
    """All metrics of one evaluation; exact for any number of processes.

    Args:
        num_classes: number of classes.
        others: functions that create further metrics, called with the number of classes, by name.

    Raises:
        UserError: the name of a further metric is not allowed.
    """

    def __init__(self, num_classes: int, others: Mapping[str, Callable[[int], Metric]] | None = None) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.others = nn.ModuleDict(
            {name: _create(name, factory, num_classes) for name, factory in (others or {}).items()}
        )
        # The default nan_strategy ignores NaN, which would hide divergence.
        self.loss = MeanMetric(nan_strategy="disable")
        # With five classes or fewer, top-5 accuracy is always 1.
        self.top5 = (
            MulticlassAccuracy(num_classes, top_k=5, average="micro", validate_args=False) if num_classes > 5 else None
        )
        # validate_args=False: validation would synchronize with the GPU in every batch.
        self.confusion = MulticlassConfusionMatrix(num_classes, validate_args=False)
        self.calibration_error = BinnedCalibrationError()

    def update(self, probabilities: Tensor, labels: Tensor) -> None:
        """Adds a batch of float32 probabilities `(N, K)` and labels `(N,)`."""
        likelihood = probabilities.gather(1, labels[:, None]).clamp_min(torch.finfo(probabilities.dtype).tiny)
        self.loss.update(-likelihood.log())
        if self.top5 is not None:
            self.top5.update(probabilities, labels)
        self.confusion.update(probabilities.argmax(1), labels)
        self.calibration_error.update(probabilities, labels)
        for name, metric in self._others().items():
            try:
                metric.update(probabilities, labels)
            except (RuntimeError, ValueError) as error:
                raise UserError(
                    f"model.metrics.{name}: {str(error).splitlines()[0]}\n"
                    "use a multiclass metric: it gets probabilities (N, K) and labels (N,)"
                ) from error

    def compute(self) -> dict[str, Any]:
        """Returns the metrics over the images of all processes.

        Returns:
            `top1`, `top5` (None for five classes or fewer), `loss` (cross-entropy in nats), `calibration_error`,
            `images` (their number), and `confusion`, a `(K, K)` int64 tensor with labels as rows and predictions as
            columns; and the further metrics: a float, or nested lists of floats if a metric has several values.
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
            # `tolist` of a scalar is a number.
            **{name: metric.compute().tolist() for name, metric in self._others().items()},
        }

    def _others(self) -> dict[str, Metric]:
        return {name: metric for name, metric in self.others.items() if isinstance(metric, Metric)}

    def reset(self) -> None:
        """Resets all metrics."""
        for metric in self.modules():
            if isinstance(metric, Metric):
                metric.reset()


def _create(name: str, factory: Callable[[int], Metric], num_classes: int) -> Metric:
    """Creates a further metric; raises UserError if its name or class is not usable."""
    if name in NAMES or not name.isidentifier() or hasattr(nn.ModuleDict, name):
        raise UserError(f"model.metrics.{name}: this name is not available\nuse another, such as my_{name}")
    try:
        return factory(num_classes)
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"model.metrics.{name}: {error}\nuse a class whose first argument is the number of classes, such as "
            "torchmetrics.classification.MulticlassF1Score"
        ) from error


def per_class(confusion: Tensor, class_names: list[str]) -> dict[str, dict[str, Any]]:
    """Returns the number of images, of correct predictions, and top-1 of each class; top-1 is None without images."""
    totals, diagonal = confusion.sum(1).tolist(), confusion.diag().tolist()
    return {
        name: {"images": total, "correct": correct, "top1": correct / total if total else None}
        for name, total, correct in zip(class_names, totals, diagonal, strict=True)
    }
