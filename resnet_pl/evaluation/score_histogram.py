"""AUROC, average precision and thresholds from histograms of probabilities; memory does not grow with the dataset."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics import Metric
from typing_extensions import override

# Bins have equal width in asinh(2 log-odds), log-odds = log(p / (1 - p)): they are narrow for uncertain predictions,
# and the range covers all probabilities in float32. The largest below 1 has log-odds of 16.6, the smallest of -103.
SCALE = 0.5
LOW, HIGH = math.asinh(-104 / SCALE), math.asinh(17 / SCALE)


class ScoreHistogram(Metric):
    """Histograms of the probability of each class: over the images that have the class, and over the others.

    `auroc`, `average_precision` and `best_thresholds` take the histograms in place of all probabilities, which the
    metrics of torchmetrics store. They take at most 8 MB for up to 2,048 classes. AUROC and mean average precision
    differ from those of scikit-learn by less than 0.001, unless many images have nearly the same probability.

    Args:
        num_classes: number of classes.
    """

    counts: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        # Fine bins for few classes: early in a training, all images can have nearly the same probability.
        self.bins = max(512, min(2**15, 2**17 // num_classes), min(2**12, 2**20 // num_classes))
        self.add_state("counts", torch.zeros(2, num_classes, self.bins, dtype=torch.int32), dist_reduce_fx="sum")

    @override
    def update(self, probabilities: Tensor, present: Tensor) -> None:
        """Adds a batch.

        Args:
            probabilities: `(N, K)` float32; NaN counts as the smallest one.
            present: `(N, K)` bool, whether an image has a class.
        """
        bins = score_bins(probabilities, self.bins)
        rows = torch.arange(bins.shape[1], device=bins.device) + (~present).long() * bins.shape[1]
        index = (rows * self.bins + bins).flatten()
        self.counts.view(-1).scatter_add_(0, index, torch.ones_like(index, dtype=torch.int32))

    @override
    def compute(self) -> Tensor:
        """Returns the numbers of images, `(2, K, bins)` float64 on the CPU: with the class, and without it."""
        return self.counts.cpu().double()


def score_bins(probabilities: Tensor, bins: int) -> Tensor:
    """Returns the bin of each probability, int64, from 0; NaN is in the first one."""
    position = (probabilities.logit() / SCALE).asinh().nan_to_num(LOW).clamp_(LOW, HIGH)
    return ((position - LOW) * (bins / (HIGH - LOW))).long().clamp_(max=bins - 1)


def bin_edges(bins: int) -> Tensor:
    """Returns the lower edge of each bin as a probability, `(bins,)` float64."""
    return (torch.linspace(LOW, HIGH, bins + 1, dtype=torch.float64)[:-1].sinh() * SCALE).sigmoid()


def auroc(counts: Tensor) -> Tensor:
    """Returns the area under the ROC curve of each class against all others, `(K,)`; NaN if one side has no images.

    Args:
        counts: histograms, `(2, K, bins)`.
    """
    positives, negatives = counts
    below = negatives.cumsum(1) - negatives / 2  # images of the same bin count half
    return (positives * below).sum(1) / (positives.sum(1) * negatives.sum(1))


def average_precision(counts: Tensor) -> Tensor:
    """Returns the average precision of each class, `(K,)`: sum of precision × step of recall; NaN without images.

    Args:
        counts: histograms, `(2, K, bins)`.
    """
    within = counts.flip(2)
    # Of a bin, the average image with the class: it comes after half of the others. `above` has a higher probability.
    above = within.cumsum(2) - within
    found, others = above[0] + (within[0] + 1) / 2, above[1] + within[1] / 2
    return (within[0] * found / (found + others)).sum(1) / within[0].sum(1)


def best_thresholds(counts: Tensor) -> Tensor:
    """Returns the probability of each class from which its F1 is largest, `(K,)` float32; 0.5 without images.

    If several neighboring thresholds have the same F1, the middle one is chosen.

    Args:
        counts: histograms, `(2, K, bins)`.
    """
    found, others = counts.flip(2).cumsum(2).flip(2)
    total = counts[0].sum(1, keepdim=True)
    f1 = 2 * found / (found + others + total).clamp_min(1)
    best = f1 == f1.amax(1, keepdim=True)
    first = best.long().argmax(1, keepdim=True)
    position = torch.arange(f1.shape[1])
    # The bins from the first best one up to the next that is worse.
    run = (position >= first) & (((~best) & (position >= first)).cumsum(1) == 0)
    middle = (run * position).sum(1) // run.sum(1)
    thresholds = bin_edges(f1.shape[1])[middle]
    return torch.where(total[:, 0] > 0, thresholds, 0.5).float()
