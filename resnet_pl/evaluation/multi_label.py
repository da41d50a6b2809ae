"""Metrics for images with several classes, and the thresholds of their predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from typing_extensions import override

from resnet_pl.evaluation.metrics import FurtherMetrics, class_scores
from resnet_pl.evaluation.score_histogram import ScoreHistogram, auroc, average_precision, best_thresholds, bin_edges

# Names of the results of `MultiLabelMetrics.compute`: numbers that are logged, and others.
_MACRO = ("f1_macro", "f1_micro", "precision_macro", "recall_macro")
MULTI_LABEL_LOGGED = ("map", *_MACRO, "exact_match", "auroc", "loss")
MULTI_LABEL_NAMES = (*MULTI_LABEL_LOGGED, "images", "classes")


class Decisions(Metric):
    """Counts right and wrong decisions of each class, and the images without a wrong one.

    Args:
        num_classes: number of classes.
    """

    classes: Tensor
    images: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.add_state("classes", torch.zeros(2, num_classes, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros(2, dtype=torch.int64), dist_reduce_fx="sum")

    @override
    def update(self, predicted: Tensor, present: Tensor) -> None:
        """Adds a batch of predicted and true classes, each `(N, K)` bool."""
        self.classes += torch.stack([(predicted & present).sum(0), predicted.sum(0)])
        exact = (predicted == present).all(1)
        self.images += torch.stack([exact.sum(), torch.ones_like(exact).sum()])

    @override
    def compute(self) -> tuple[Tensor, Tensor]:
        """Returns `(2, K)`: correct and predicted images of each class; and `(2,)`: exact matches and images."""
        return self.classes.cpu(), self.images.cpu()


class MultiLabelMetrics(nn.Module):
    """All metrics of one evaluation of images with several classes; exact for any number of processes.

    Args:
        num_classes: number of classes.
        others: functions that create further metrics, called with the number of classes, by name.

    Attributes:
        thresholds: probability of each class from which it is predicted, `(K,)`; 0.5 before the first validation.

    Raises:
        UserError: the name of a further metric is not allowed.
    """

    thresholds: Tensor

    def __init__(self, num_classes: int, others: Mapping[str, Callable[[int], Metric]] | None = None) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.loss = MeanMetric(nan_strategy="disable")
        self.scores, self.decisions = ScoreHistogram(num_classes), Decisions(num_classes)
        self.others = FurtherMetrics(num_classes, others or {}, "a multilabel metric", "(N, K)")
        # Checkpoints hold it with the metadata: with averaged weights, the state dict is of another time.
        self.register_buffer("thresholds", torch.full((num_classes,), 0.5), persistent=False)

    def update(self, probabilities: Tensor, labels: Tensor) -> None:
        """Adds a batch of float32 probabilities `(N, K)` and labels `(N, K)`, 1 for each class of an image, else 0."""
        info, present = torch.finfo(probabilities.dtype), labels > 0.5
        # A probability that is rounded to 1 is above 1 - eps / 4.
        absent = (1 - probabilities).clamp_min(info.eps / 4)
        likelihood = torch.where(present, probabilities.clamp_min(info.tiny), absent)
        self.loss.update(-likelihood.log().mean(1))
        self.scores.update(probabilities, present)
        self.decisions.update(probabilities >= self.thresholds, present)
        self.others.update_all(probabilities, present.long())

    def compute(self, choose_thresholds: bool = False) -> dict[str, Any]:
        """Returns the metrics over the images of all processes.

        Args:
            choose_thresholds: whether to set the threshold of each class at which its F1 is largest on these images.

        Returns:
            `map` (mean average precision over the classes that have images), `f1_macro`, `precision_macro` and
            `recall_macro` (means over the classes that have images or are predicted), `f1_micro` (of all decisions
            together), `exact_match` (fraction of images with all classes right; None if the thresholds are chosen on
            the same images), `auroc`, `loss` (binary cross-entropy in nats, mean over the classes), `images` (their
            number), and `classes`, `(3, K)` int64: correct images, images and predictions of each class; and the
            further metrics.
        """
        counts = self.scores.compute()
        (correct, predicted), (exact, images) = self.decisions.compute()
        if choose_thresholds:
            self.thresholds = best_thresholds(counts).to(self.thresholds)
            above = counts * (bin_edges(counts.shape[2]).float() >= self.thresholds.cpu()[:, None])
            correct, predicted = above[0].sum(1).long(), above.sum((0, 2)).long()
        present = counts[0].sum(1).long()
        seen = present + predicted > 0
        macro = {
            "f1_macro": 2 * correct / (present + predicted),
            "precision_macro": correct / predicted.clamp_min(1),
            "recall_macro": correct / present.clamp_min(1),
        }
        return {
            "map": float(average_precision(counts).nanmean()),
            **{name: float(scores[seen].double().mean()) for name, scores in macro.items()},
            "f1_micro": int(2 * correct.sum()) / max(1, int((present + predicted).sum())),
            "exact_match": None if choose_thresholds else int(exact) / max(1, int(images)),
            "auroc": float(auroc(counts).nanmean()),
            "loss": float(self.loss.compute()),
            "images": int(images),
            "classes": torch.stack([correct, present, predicted]),
            **self.others.compute(),
        }

    def reset(self) -> None:
        """Resets all metrics, not the thresholds."""
        for metric in self.modules():
            if isinstance(metric, Metric):
                metric.reset()


def per_class_of_several(classes: Tensor, thresholds: Tensor, class_names: list[str]) -> dict[str, dict[str, Any]]:
    """Returns the results of each class: number of `images`, `correct` ones, `threshold`, and those of `class_scores`.

    Args:
        classes: correct images, images and predictions of each class, `(3, K)`.
        thresholds: probability from which a class is predicted, `(K,)`.
        class_names: the names.
    """
    rows = zip(class_names, thresholds.tolist(), *classes.tolist(), strict=True)
    return {
        name: {"images": images, "correct": correct, "threshold": threshold, **class_scores(correct, images, predicted)}
        for name, threshold, correct, images, predicted in rows
    }
