"""95 % intervals of the metrics of an evaluation, for its number of images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from resnet_pl.evaluation.metrics import MACRO, Z95, averages_of_counts, wilson_interval

Interval = tuple[float, float]


def metric_intervals(
    results: dict[str, Any], confusion: Tensor | None, labels: Tensor, probabilities: Tensor
) -> dict[str, Interval]:
    """Returns the intervals of those metrics for which one is known.

    Wilson's for proportions of images, the normal approximation for the loss, the percentile bootstrap for averages
    over classes. The calibration error has none: the resampled one is biased upward.

    Args:
        results: value of each metric.
        confusion: `(K, K)`, labels as rows; None with several classes per image.
        labels: `(N,)` int64.
        probabilities: `(N, K)`.
    """
    count = len(labels)
    intervals = {
        name: wilson_interval(round(results[name] * count), count)
        for name in ("top1", "top5", "exact_match")
        if results.get(name) is not None
    }
    if confusion is None:
        return intervals
    likelihood = probabilities.gather(1, labels[:, None]).double().clamp_min(torch.finfo(torch.float32).tiny)
    losses = -likelihood.log()
    half = Z95 * float(losses.std()) / count**0.5 if count > 1 else float("nan")
    intervals["loss"] = (float(losses.mean()) - half, float(losses.mean()) + half)
    return intervals | bootstrap_intervals(confusion)


def bootstrap_intervals(confusion: Tensor, samples: int = 1000, seed: int = 0) -> dict[str, Interval]:
    """Returns the percentile bootstrap intervals of `macro_averages`: the images are drawn again, with replacement.

    Args:
        confusion: `(K, K)`, labels as rows.
        samples: number of draws.
        seed: seed of the draws.
    """
    rng, images = np.random.default_rng(seed), int(confusion.sum())
    # Drawing images is drawing cells of the matrix; almost all cells of many classes are empty.
    rows, columns = confusion.nonzero().T
    shares, classes = confusion[rows, columns].double().numpy() / images, len(confusion)
    drawn: list[dict[str, float]] = []
    for _ in range(samples):
        counts = torch.from_numpy(rng.multinomial(images, shares))
        parts = ((rows, counts * (rows == columns)), (rows, counts), (columns, counts))
        sums = [torch.zeros(classes, dtype=torch.int64).index_add_(0, index, part) for index, part in parts]
        drawn.append(averages_of_counts(*sums))
    names = [name for name in MACRO if name in drawn[0]]
    limits = {name: np.nanquantile([each[name] for each in drawn], [0.025, 0.975]) for name in names}
    return {name: (float(low), float(high)) for name, (low, high) in limits.items()}
