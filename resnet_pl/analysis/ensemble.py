"""Several trained nets tested as one: their class probabilities are averaged (Table 5)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import nn

from resnet_pl.classifier import ImageClassifier
from resnet_pl.data import ImageDataModule
from resnet_pl.data.loader import Batch
from resnet_pl.evaluation.metrics import ClassificationMetrics
from resnet_pl.utils import UserError


class Ensemble(LightningModule):
    """Averages what its members say; each is given the images as its own data module prepares them.

    Args:
        members: nets of the same classes, their weights loaded.
    """

    def __init__(self, members: Sequence[ImageClassifier]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.metrics = ClassificationMetrics(len(members[0].class_names))
        self.results: dict[str, Any] = {}

    def test_step(self, batches: Sequence[Batch], batch_idx: int) -> None:
        """Takes a batch of the same images from every member's loader."""
        scores = [member.probabilities(batch) for member, batch in zip(self.members, batches, strict=True)]
        self.metrics.update(torch.stack(scores).mean(0), batches[0].labels)

    validation_step = test_step

    def on_test_epoch_end(self) -> None:
        """Leaves the figures in `results`."""
        self.results = self.metrics.compute()
        self.metrics.reset()

    on_validation_epoch_end = on_test_epoch_end


def check_members(members: Sequence[tuple[str, ImageClassifier, ImageDataModule]], split: str) -> None:
    """Makes sure that nets can be tested together.

    Args:
        members: name, net and data of each.
        split: what they are tested on.

    Raises:
        UserError: they have other classes or other images to be tested on, or one was trained on another's test image.
    """
    for (name, net, data), (other, other_net, other_data) in permutations(members, 2):
        if net.class_names != other_net.class_names:
            raise UserError(f"an ensemble's nets must have the same classes, {name} and {other} have not")
        tested = set(data.split(split).names)
        leak = sorted(tested.intersection(getattr(other_data.splits.get("train"), "names", ())))
        if leak and data.root == other_data.root:
            raise UserError(
                f"{len(leak)} {split} images of {name} are training images of {other}, such as {leak[0]}\n"
                "an ensemble needs nets that were trained with one split: give both the same --data.split_seed"
            )
        if list(data.split(split).names) != list(other_data.split(split).names):
            raise UserError(f"{name} and {other} have other {split} images\nname one folder for all with --data.root")
