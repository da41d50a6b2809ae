"""Losses for imbalanced classes and for several classes per image, and class weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from resnet_pl.data.samplers import class_counts
from resnet_pl.types import NonNegativeFloat, UnitInterval
from resnet_pl.utils import UserError


class FocalLoss(nn.Module):
    """Focal loss: cross-entropy in which images that are classified well count less (Lin et al., arXiv:1708.02002).

    Args:
        gamma: focusing parameter; 0 is cross-entropy.
        weight: weight of each class, set by `model.class_weights`; the loss is the mean over the images.
    """

    weight: Tensor | None

    def __init__(self, gamma: NonNegativeFloat = 2.0, weight: Tensor | None = None) -> None:
        super().__init__()
        self.gamma = gamma
        self.register_buffer("weight", weight)

    @override
    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns the loss of logits `(N, K)` and labels `(N,)`, or class probabilities `(N, K)` after MixUp."""
        log_p = logits.log_softmax(1)
        targets = F.one_hot(labels, logits.shape[1]) if labels.ndim == 1 else labels
        # Clamped: for gamma below 1 the gradient at p = 1 would be infinite.
        losses = -targets * (-torch.expm1(log_p)).clamp_min(1e-7) ** self.gamma * log_p
        return (losses if self.weight is None else losses * self.weight).sum(1).mean()


class MultiLabelLoss(nn.BCEWithLogitsLoss):
    """Binary cross-entropy of each class, for images with several classes.

    Args:
        label_smoothing: label smoothing factor s: labels become s / 2 and 1 - s / 2.
        pos_weight: weight of the images that have the class, `(K,)`; set by `model.class_weights`.
    """

    def __init__(self, label_smoothing: UnitInterval = 0.0, pos_weight: Tensor | None = None) -> None:
        super().__init__(pos_weight=pos_weight)
        self.label_smoothing = label_smoothing

    @override
    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Returns the loss of logits `(N, K)` and labels `(N, K)` in [0, 1]."""
        smooth = self.label_smoothing
        return super().forward(input, target * (1 - smooth) + smooth / 2 if smooth else target)


class AsymmetricLoss(nn.Module):
    """Asymmetric loss for images with several classes (Ridnik et al., arXiv:2009.14119).

    Classes that an image does not have are far more frequent than those it has; easy ones of them count less. The loss
    is the sum over the classes and the mean over the images.

    Args:
        gamma_negative: focusing parameter for the classes that an image does not have.
        gamma_positive: focusing parameter for the classes that it has.
        clip: probability below which a class that an image does not have is ignored.
    """

    def __init__(
        self,
        gamma_negative: NonNegativeFloat = 4.0,
        gamma_positive: NonNegativeFloat = 0.0,
        clip: UnitInterval = 0.05,
    ) -> None:
        super().__init__()
        self.gamma_negative, self.gamma_positive, self.clip = gamma_negative, gamma_positive, clip

    @override
    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns the loss of logits `(N, K)` and labels `(N, K)` in [0, 1]."""
        logits = logits.float()
        p = logits.sigmoid()
        shifted = (p - self.clip).clamp_min(0)
        positive = labels * F.logsigmoid(logits)
        if self.gamma_positive:
            positive = positive * (1 - p).clamp_min(1e-7) ** self.gamma_positive
        if self.clip:
            negative = (1 - labels) * torch.log1p(-shifted)
        else:
            negative = (1 - labels) * F.logsigmoid(-logits)
        if self.gamma_negative:
            negative = negative * shifted.clamp_min(1e-7) ** self.gamma_negative
        return -(positive + negative).sum(1).mean()


def check_kind(loss: nn.Module, multi_label: bool) -> None:
    """Raises UserError if a loss is for one class per image, and an image can have several, or the reverse."""
    if not multi_label and isinstance(loss, MultiLabelLoss | AsymmetricLoss):
        raise UserError(
            f"model.loss: {type(loss).__name__} is for several classes per image, the data has one\n"
            "use --model.loss null (cross-entropy) or FocalLoss"
        )
    if multi_label and isinstance(loss, nn.CrossEntropyLoss | FocalLoss):
        raise UserError(
            f"model.loss: {type(loss).__name__} is for one class per image, the data has several\n"
            "use --model.loss null (binary cross-entropy) or AsymmetricLoss"
        )


def set_class_weights(
    loss: nn.Module, weights: Any, num_classes: int, images: Any = None, multi_label: bool = False
) -> None:
    """Sets the class weights of a loss; they are buffers, and so a part of checkpoints.

    Args:
        loss: a loss with an attribute `weight`, or `pos_weight` if an image can have several classes.
        weights: weight of each class, or `balanced`.
        num_classes: number of classes.
        images: the training images; None if a checkpoint will restore the weights.
        multi_label: whether an image can have several classes.

    Raises:
        UserError: the loss has no such attribute, or has weights already; there is not one weight per class; or the
            classes of the training images are not known.
    """
    name = "pos_weight" if multi_label else "weight"
    if not hasattr(loss, name):
        raise UserError(
            f"model.class_weights: {type(loss).__name__} has no attribute `{name}`\n"
            "remove the option, or use a loss that has it"
        )
    if getattr(loss, name) is not None:
        raise UserError(f"model.class_weights: model.loss has a {name} already\nremove one of them")
    if weights != "balanced":
        values = torch.tensor(weights, dtype=torch.float32)
    else:
        values = torch.ones(num_classes) if images is None else balanced_weights(images, num_classes, multi_label)
    check_number(values, num_classes, "model.class_weights")
    if name in vars(loss):  # not a buffer yet
        delattr(loss, name)
    loss.register_buffer(name, values)


def balanced_weights(images: Any, num_classes: int, multi_label: bool = False) -> Tensor:
    """Returns weights with which all classes count equally, `(K,)` float32; 1 for a class without images.

    Args:
        images: the training images.
        num_classes: number of classes, K.
        multi_label: whether an image can have several classes. The weight of a class is then (images without it) /
            (images with it); else it is images / (K × images of the class), as in scikit-learn.

    Raises:
        UserError: the classes of the images are not known.
    """
    if (counts := class_counts(images, num_classes)) is None:
        raise UserError(
            f"model.class_weights: balanced needs the labels of the training images, and {type(images).__name__} has "
            "none\ngive one weight for each class: --model.class_weights '[1, 2, …]'"
        )
    present, total = counts.clamp_min(1).double(), len(images)
    # A class that all images have keeps a small weight: with 0 it would not be learned.
    weights = (total - counts).clamp_min(1) / present if multi_label else total / (num_classes * present)
    return torch.where(counts > 0, weights, 1.0).float()


def check_number(weights: Any, num_classes: int, option: str) -> None:
    """Raises UserError if there is not one weight per class."""
    if isinstance(weights, Tensor) and weights.ndim == 1 and len(weights) != num_classes:
        raise UserError(f"{option}: {len(weights)} weights for {num_classes} classes\ngive one for each class")
