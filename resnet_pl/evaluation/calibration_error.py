"""How well the confidence of predictions agrees with their accuracy; memory does not grow with the dataset."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from typing_extensions import override

from resnet_pl.evaluation.score_histogram import score_bins

BINS = 15
# Bins from which those with equal numbers of images are made. They are narrow near 0 and 1.
FINE = 2**15


class ConfidenceBins(Metric):
    """Number of images, sum of confidences and number of correct predictions, by confidence.

    The confidence is the probability of the most probable class. `torchmetrics.CalibrationError` stores that of every
    image; this class stores three sums per bin.

    Args:
        kwargs: arguments of `Metric`.
    """

    equal_width: Tensor
    fine: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("equal_width", torch.zeros(3, BINS), dist_reduce_fx="sum")
        self.add_state("fine", torch.zeros(3, FINE), dist_reduce_fx="sum")

    @override
    def update(self, probabilities: Tensor, labels: Tensor) -> None:
        """Adds a batch of probabilities `(N, K)` and labels `(N,)`."""
        confidence, predicted = probabilities.max(1)
        columns = torch.stack([torch.ones_like(confidence), confidence, (predicted == labels).to(confidence)])
        equal_width = (confidence * BINS).long().clamp_(0, BINS - 1)
        for state, index in ((self.equal_width, equal_width), (self.fine, score_bins(confidence, FINE))):
            # Sums of the batch first: adding single images to a large float32 sum loses precision, and Apple's GPUs
            # have no float64.
            state += torch.zeros_like(state).index_add_(1, index, columns.to(state))

    @override
    def compute(self) -> tuple[Tensor, Tensor]:
        """Returns the sums in bins of equal width `(3, 15)`, and in fine bins `(3, 32768)`."""
        return self.equal_width.cpu(), self.fine.cpu()


def binned_error(bins: Tensor) -> float:
    """Returns the mean gap between confidence and accuracy of the bins, 0 to 1; NaN without images.

    With bins of equal width it is the expected calibration error (ECE; Guo et al., 2017, arXiv:1706.04599).

    Args:
        bins: sums in each bin, `(3, B)`, see `ConfidenceBins`.
    """
    images, confidence, correct = bins
    return float((confidence - correct).abs().sum() / images.sum())


def adaptive_error(fine: Tensor) -> float:
    """Returns the adaptive calibration error, with 15 bins of equal numbers of images; NaN without images.

    Most confidences are near 1, in one bin of equal width (Nixon et al., 2019, arXiv:1904.01685). Images with nearly
    the same confidence, in one fine bin, are distributed proportionally over two bins.

    Args:
        fine: sums in each fine bin, `(3, B)`, see `ConfidenceBins`.
    """
    images, confidence, correct = fine[:, fine[0] > 0].double()
    if not len(images):
        return math.nan
    total = np.concatenate([[0], images.cumsum(0)])
    gap = np.concatenate([[0], (confidence - correct).cumsum(0)])
    steps = np.diff(np.interp(np.linspace(0, total[-1], BINS + 1), total, gap))
    return float(np.abs(steps).sum() / total[-1])


class AcceptedPredictions(Metric):
    """Counts the predictions that reach a confidence threshold, and the correct ones among them.

    Args:
        threshold: the threshold; with None, all predictions are counted.
        kwargs: arguments of `Metric`.
    """

    counts: Tensor

    def __init__(self, threshold: float | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.threshold = threshold
        self.add_state("counts", torch.zeros(2, dtype=torch.int64), dist_reduce_fx="sum")

    @override
    def update(self, probabilities: Tensor, labels: Tensor) -> None:
        """Adds a batch of probabilities `(N, K)` and labels `(N,)`."""
        confidence, predicted = probabilities.max(1)
        accepted = confidence >= (self.threshold or 0.0)
        self.counts += torch.stack([accepted.sum(), (accepted & (predicted == labels)).sum()])

    @override
    def compute(self) -> Tensor:
        """Returns the numbers of accepted and of correct ones, `(2,)`."""
        return self.counts.cpu()
