"""Temperature scaling, and the confidence threshold of predictions (Guo et al., 2017, arXiv:1706.04599)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from resnet_pl.evaluation.calibration_error import AcceptedPredictions, ConfidenceBins, adaptive_error, binned_error
from resnet_pl.evaluation.metrics import accepted_scores
from resnet_pl.utils import UserError

# Range of the temperatures; those of trained networks are between 0.5 and 5.
LOW, HIGH = 0.02, 50.0


def rescale(probabilities: Tensor, temperature: float) -> Tensor:
    """Returns probabilities of independent classes (sigmoid) with their logits divided by a temperature."""
    return probabilities if temperature == 1 else (probabilities.logit() / temperature).sigmoid()


def mean_loss(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> float:
    """Returns the loss of the logits divided by a temperature, in nats.

    Args:
        logits: `(N, K)`.
        labels: `(N,)` for cross-entropy; `(N, K)`, 1 for each class of an image, for binary cross-entropy.
        temperature: the temperature.
    """
    scaled = logits.double() / temperature
    if labels.ndim == 2:
        return float(F.binary_cross_entropy_with_logits(scaled, labels.double()))
    return float(F.cross_entropy(scaled, labels))


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Returns the temperature with the smallest loss on images that the network was not trained on.

    The loss is a convex function of 1 / temperature, so it has one minimum.

    Args:
        logits: `(N, K)`.
        labels: see `mean_loss`.

    Raises:
        UserError: the logits are not finite, or the loss has no minimum between the allowed temperatures, because all
            predictions are right, or because the network has learned nothing.
    """
    from scipy.optimize import minimize_scalar  # here, because this module is imported with the classifier

    def loss(log_temperature: float) -> float:
        return mean_loss(logits, labels, math.exp(log_temperature))

    low, high = math.log(LOW), math.log(HIGH)
    found: Any = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    if not math.isfinite(found.fun):
        raise UserError("calibrate: the network computes NaN or infinite logits\nuse another checkpoint")
    if loss(low) <= found.fun:
        raise UserError(
            f"calibrate: all predictions for the {len(labels):,} validation images are right: "
            "no temperature is the best\nhold out more images with --data.val_split when training"
        )
    if loss(high) <= found.fun:
        raise UserError(
            f"calibrate: chance is as good as the predictions for the {len(labels):,} validation images\n"
            "train the network first"
        )
    return math.exp(found.x)


def calibration_scores(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Returns `loss`, `calibration_error` and `adaptive_calibration_error`, see `ClassificationMetrics`.

    With several classes per image, the calibration errors are those of all decisions, one per image and class.

    Args:
        logits: `(N, K)`, divided by the temperature.
        labels: see `mean_loss`.
    """
    bins = ConfidenceBins(sync_on_compute=False)  # each process has the logits of all
    if labels.ndim == 2:
        present = logits.sigmoid().flatten()
        bins.update(torch.stack([1 - present, present], 1), labels.flatten().long())
    else:
        bins.update(logits.softmax(1), labels)
    equal_width, fine = bins.compute()
    errors = {"calibration_error": binned_error(equal_width), "adaptive_calibration_error": adaptive_error(fine)}
    return {"loss": mean_loss(logits, labels), **errors}


def choose_threshold(logits: Tensor, labels: Tensor, precision: float) -> float | None:
    """Returns the smallest confidence threshold whose accepted predictions have a precision; None if all have it.

    It is in the middle between the last accepted confidence and the next lower one.

    Args:
        logits: `(N, K)`, divided by the temperature.
        labels: `(N,)`.
        precision: the precision to reach.

    Raises:
        UserError: no threshold reaches the precision.
    """
    confidence, predicted = logits.softmax(1).max(1)
    confidence, order = confidence.sort(descending=True)
    correct = (predicted == labels)[order].cumsum(0)
    reached = correct >= precision * torch.arange(1, len(labels) + 1)
    reached[:-1] &= confidence[:-1] > confidence[1:]  # images with equal confidence are accepted together
    if not reached.any():
        raise UserError(
            f"--target_precision {precision:g}: no confidence threshold reaches it on the {len(labels):,} validation "
            "images\ngive a lower precision"
        )
    last = int(reached.nonzero()[-1])
    return None if last == len(labels) - 1 else float(confidence[last : last + 2].double().mean())


def accepted_at(threshold: float, logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """Returns the `accepted_scores` of predictions with a confidence threshold.

    Args:
        threshold: the threshold.
        logits: `(N, K)`, divided by the temperature.
        labels: `(N,)`.
    """
    counts = AcceptedPredictions(threshold, sync_on_compute=False)
    counts.update(logits.softmax(1), labels)
    accepted, correct = counts.compute().tolist()
    return accepted_scores(accepted, correct, len(labels))
