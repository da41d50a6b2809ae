"""Ensembles: class probabilities averaged over several trained models (ResNet paper, Table 5)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import nn

from resnet_pl.classifier import ImageClassifier
from resnet_pl.data import ImageDataModule
from resnet_pl.data.batch import Batch
from resnet_pl.evaluation.metrics import ClassificationMetrics
from resnet_pl.utils import UserError


class Ensemble(LightningModule):
    """Averages class probabilities over its members.

    Each member gets the batch from its own data module, because members may differ in image size.

    Args:
        members: models with the same classes.

    Attributes:
        results: the metrics, after a test or validation.
    """

    def __init__(self, members: Sequence[ImageClassifier]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.metrics = ClassificationMetrics(len(members[0].class_names))
        self.results: dict[str, Any] = {}

    def test_step(self, batches: Sequence[Batch], batch_idx: int) -> None:
        """Updates the metrics; `batches` has the same images from the loader of each member."""
        probabilities = []
        for member, batch in zip(self.members, batches, strict=True):
            assert isinstance(member, ImageClassifier)  # nn.ModuleList does not know the type of its modules
            probabilities.append(member.probabilities(batch))
        self.metrics.update(torch.stack(probabilities).mean(0), batches[0].labels)

    validation_step = test_step

    def on_test_epoch_end(self) -> None:
        """Computes `results`."""
        self.results = self.metrics.compute()
        self.metrics.reset()

    on_validation_epoch_end = on_test_epoch_end


def check_members(members: Sequence[tuple[str, ImageClassifier, ImageDataModule]], split: str) -> None:
    """Checks that models can be evaluated as an ensemble.

    Args:
        members: name, model and data module of each member.
        split: the split to evaluate on.

    Raises:
        UserError: the members have different classes or different images, or a member was trained on images of `split`.
    """
    for (name, model, data), (other, other_model, other_data) in permutations(members, 2):
        if model.class_names != other_model.class_names:
            raise UserError(f"the models of an ensemble must have the same classes; {name} and {other} do not")
        tested = set(data.split(split).names)
        leak = sorted(tested.intersection(getattr(other_data.splits.get("train"), "names", ())))
        if leak and data.root == other_data.root:
            raise UserError(
                f"{len(leak)} {split} images of {name} are training images of {other}, for example {leak[0]}\n"
                "train all models of an ensemble with the same --data.split_seed"
            )
        if list(data.split(split).names) != list(other_data.split(split).names):
            raise UserError(f"{name} and {other} have different {split} images\ngive one folder with --data.root")
