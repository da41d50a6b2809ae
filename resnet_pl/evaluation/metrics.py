"""Metrics of an evaluation; their memory does not grow with the size of the dataset."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from resnet_pl.evaluation.calibration_error import AcceptedPredictions, ConfidenceBins, adaptive_error, binned_error
from resnet_pl.evaluation.score_histogram import ScoreHistogram, auroc
from resnet_pl.utils import UserError

# Names of the results of `ClassificationMetrics.compute`: numbers that are logged, and others.
MACRO = ("precision_macro", "recall_macro", "f1_macro", "balanced_accuracy", "auroc")
# Names that are newer than the option `model.metrics`: a metric of the user's with such a name replaces ours.
NEWER = ("adaptive_calibration_error", *MACRO)
LOGGED = ("top1", "top5", "loss", "calibration_error", *NEWER)
NAMES = (*LOGGED, "images", "confusion", "reliability", "accepted")
Z95 = NormalDist().inv_cdf(0.975)


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
        self.others = FurtherMetrics(num_classes, others or {}, "a multiclass metric", "(N,)")
        # The default nan_strategy ignores NaN, which would hide divergence.
        self.loss = MeanMetric(nan_strategy="disable")
        # With five classes or fewer, top-5 accuracy is always 1.
        self.top5 = (
            MulticlassAccuracy(num_classes, top_k=5, average="micro", validate_args=False) if num_classes > 5 else None
        )
        # validate_args=False: validation would synchronize with the GPU in every batch.
        self.confusion = MulticlassConfusionMatrix(num_classes, validate_args=False)
        self.confidences, self.accepted = ConfidenceBins(), AcceptedPredictions()
        self.scores = ScoreHistogram(num_classes)

    def update(self, probabilities: Tensor, labels: Tensor) -> None:
        """Adds a batch of float32 probabilities `(N, K)` and labels `(N,)`."""
        likelihood = probabilities.gather(1, labels[:, None]).clamp_min(torch.finfo(probabilities.dtype).tiny)
        self.loss.update(-likelihood.log())
        if self.top5 is not None:
            self.top5.update(probabilities, labels)
        self.confusion.update(probabilities.argmax(1), labels)
        self.confidences.update(probabilities, labels)
        self.accepted.update(probabilities, labels)
        self.scores.update(probabilities, F.one_hot(labels, self.num_classes).bool())
        self.others.update_all(probabilities, labels)

    def compute(self) -> dict[str, Any]:
        """Returns the metrics over the images of all processes.

        Returns:
            `top1`, `top5` (None for five classes or fewer), `loss` (cross-entropy in nats), `calibration_error` with
            bins of equal width, `adaptive_calibration_error` with bins of equal numbers of images, those of
            `macro_averages`, `auroc` (the mean over the classes, each against all others), `images` (their number),
            `confusion`, a `(K, K)` int64 tensor with labels as rows and predictions as columns; `reliability`, the
            sums of the bins of equal width, see `ConfidenceBins`; `accepted`, see `AcceptedPredictions`, None without a
            threshold; and the further metrics: a float, or nested lists of floats if a metric has several values.
        """
        confusion = self.confusion.compute().cpu()
        images = int(confusion.sum())
        equal_width, fine = self.confidences.compute()
        return {
            "top1": int(confusion.diag().sum()) / max(1, images),
            "top5": None if self.top5 is None else float(self.top5.compute()),
            "loss": float(self.loss.compute()),
            "calibration_error": binned_error(equal_width),
            "adaptive_calibration_error": adaptive_error(fine),
            **macro_averages(confusion),
            "auroc": float(auroc(self.scores.compute()).nanmean()),
            "images": images,
            "confusion": confusion,
            "reliability": equal_width,
            "accepted": None if self.accepted.threshold is None else self.accepted.compute(),
            **self.others.compute(),
        }

    def reset(self) -> None:
        """Resets all metrics."""
        for metric in self.modules():
            if isinstance(metric, Metric):
                metric.reset()


class FurtherMetrics(nn.ModuleDict):
    """The metrics of `model.metrics`.

    Args:
        num_classes: number of classes.
        factories: functions that create the metrics, called with the number of classes, by name.
        kind: what each has to be, for the message.
        labels: shape of the labels, for the message.

    Raises:
        UserError: the name of a metric is not allowed.
    """

    def __init__(
        self, num_classes: int, factories: Mapping[str, Callable[[int], Metric]], kind: str, labels: str
    ) -> None:
        super().__init__({name: _create(name, factory, num_classes) for name, factory in factories.items()})
        self.advice = f"use {kind}: it gets probabilities (N, K) and labels {labels}"

    def update_all(self, probabilities: Tensor, labels: Tensor) -> None:
        """Adds a batch; raises UserError if a metric rejects it."""
        for name, metric in self.items():
            assert isinstance(metric, Metric)  # nn.ModuleDict does not know the type of its modules
            try:
                metric.update(probabilities, labels)
            except (RuntimeError, ValueError) as error:
                reason = str(error).splitlines()[0]
                raise UserError(f"model.metrics.{name}: {reason}\n{self.advice}") from error

    def compute(self) -> dict[str, Any]:
        """Returns the values by name; nested lists for a metric with several."""
        # `tolist` of a scalar is a number.
        return {name: metric.compute().tolist() for name, metric in self.items() if isinstance(metric, Metric)}


def _create(name: str, factory: Callable[[int], Metric], num_classes: int) -> Metric:
    """Creates a further metric; raises UserError if its name or class is not usable."""
    if name in {*NAMES} - {*NEWER} or not name.isidentifier() or hasattr(nn.ModuleDict, name):
        raise UserError(f"model.metrics.{name}: this name is not available\nuse another, such as my_{name}")
    try:
        return factory(num_classes)
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"model.metrics.{name}: {error}\nuse a class whose first argument is the number of classes, such as "
            "torchmetrics.classification.MulticlassF1Score"
        ) from error


def macro_averages(confusion: Tensor) -> dict[str, float]:
    """Returns `precision_macro`, `recall_macro`, `f1_macro` and `balanced_accuracy`, as scikit-learn defines them.

    They are means over the classes that have images or are predicted; a class that is never predicted has the precision
    0. Balanced accuracy is the mean recall of the classes that have images. NaN without images.

    Args:
        confusion: `(K, K)`, labels as rows.
    """
    return averages_of_counts(confusion.diag(), confusion.sum(1), confusion.sum(0))


def averages_of_counts(correct: Tensor, images: Tensor, predicted: Tensor) -> dict[str, float]:
    """Returns `macro_averages` of the numbers of correct, true and predicted images of each class, each `(K,)`."""
    correct, images, predicted = (counts.double() for counts in (correct, images, predicted))
    seen = images + predicted > 0
    recall = correct / images.clamp_min(1)
    return {
        "precision_macro": float((correct / predicted.clamp_min(1))[seen].mean()),
        "recall_macro": float(recall[seen].mean()),
        "f1_macro": float((2 * correct / (images + predicted).clamp_min(1))[seen].mean()),
        "balanced_accuracy": float(recall[images > 0].mean()),
    }


def per_class(confusion: Tensor, class_names: list[str]) -> dict[str, dict[str, Any]]:
    """Returns the results of each class.

    Returns:
        By class: the number of `images` and of `correct` ones, `top1` (the same as recall, for readers of earlier
        files), and the scores of `class_scores`. What is not defined is None: recall without images, precision without
        predictions.
    """
    columns = [counts.tolist() for counts in (confusion.diag(), confusion.sum(1), confusion.sum(0))]
    return {
        name: {"images": images, "correct": correct, "top1": correct / images if images else None}
        | class_scores(correct, images, predicted)
        for name, correct, images, predicted in zip(class_names, *columns, strict=True)
    }


def class_scores(correct: int, images: int, predicted: int) -> dict[str, Any]:
    """Returns `precision`, `recall` and `f1` of a class, each with its 95 % interval, such as `recall_interval`.

    The intervals are Wilson's. F1 is 2 J / (1 + J) of the share J of correct images among those that have the class or
    are predicted to have it, and so is its interval.

    Args:
        correct: images that have the class and are predicted to have it.
        images: images that have the class.
        predicted: images that are predicted to have it.
    """
    scores: dict[str, Any] = {}
    for name, trials in (("precision", predicted), ("recall", images), ("f1", images + predicted - correct)):
        values = [correct / trials, *wilson_interval(correct, trials)] if trials else []
        values = [2 * value / (1 + value) for value in values] if name == "f1" else values
        scores |= {name: values[0] if values else None, f"{name}_interval": values[1:] or None}
    return scores


def reliability_rows(bins: Tensor) -> list[dict[str, Any]]:
    """Returns the bins of `reliability` that have images, as `reports.reliability.reliability_diagram` takes them.

    Args:
        bins: number of images, sum of confidences and number of correct predictions of each bin, `(3, B)`.
    """
    count = bins.shape[1]
    return [
        {
            "low": index / count,
            "high": (index + 1) / count,
            "images": int(images),
            "confidence": confidence / images,
            "accuracy": correct / images,
            "interval": wilson_interval(round(correct), round(images)),
        }
        for index, (images, confidence, correct) in enumerate(bins.T.tolist())
        if images
    ]


def accepted_scores(accepted: int, correct: int, images: int) -> dict[str, Any]:
    """Returns `coverage`, the share of accepted images, and `precision`, the share of these that are correct.

    Each has its 95 % interval (Wilson). The precision is None if no image is accepted.

    Args:
        accepted: images whose prediction reaches the confidence threshold.
        correct: correct ones among them.
        images: all images.
    """
    scores: dict[str, Any] = {"images": accepted, "correct": correct}
    for name, successes, trials in (("coverage", accepted, images), ("precision", correct, accepted)):
        interval = list(wilson_interval(successes, trials)) if trials else None
        scores |= {name: successes / trials if trials else None, f"{name}_interval": interval}
    return scores


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Returns the 95 % interval of a proportion (Wilson, 1927): right for small numbers and near 0 and 1 too."""
    share, z2 = successes / trials, Z95**2
    center = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z95 / (1 + z2 / trials) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    return max(0.0, center - half), min(1.0, center + half)
