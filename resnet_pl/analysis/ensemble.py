"""Ensembles: class probabilities averaged over several trained models (ResNet paper, Table 5)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import permutations
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn

from resnet_pl.classifier import ImageClassifier
from resnet_pl.data import ImageDataModule
from resnet_pl.data.batch import Batch
from resnet_pl.evaluation.multi_label import MultiLabelMetrics
from resnet_pl.utils import UserError


class Ensemble(LightningModule):
    """Averages class probabilities over its members.

    Each member gets the batch from its own data module, because members may differ in image size.

    Args:
        members: models with the same classes.

    Attributes:
        results: the metrics, after a test or validation.

    Raises:
        UserError: some members are for one class per image, others for several.
    """

    def __init__(self, members: Sequence[ImageClassifier]) -> None:
        super().__init__()
        if len({member.thresholds is None for member in members}) > 1:
            raise UserError(
                "--ensemble: some models are for one class per image, others for several\n"
                "their probabilities have different meanings: give models of one kind"
            )
        self.members = nn.ModuleList(members)
        self.metrics = type(members[0].metrics)(len(members[0].class_names), members[0].own_metrics)
        if isinstance(self.metrics, MultiLabelMetrics):
            self.metrics.thresholds = torch.stack([each for m in members if (each := m.thresholds) is not None]).mean(0)
        self.results: dict[str, Any] = {}

    @property
    def class_names(self) -> list[str]:
        """Name of each class."""
        return self.members[0].class_names  # pyright: ignore[reportReturnType] - of an ImageClassifier

    @property
    def thresholds(self) -> Tensor | None:
        """Probability from which a class is predicted, see `ImageClassifier.thresholds`."""
        return getattr(self.metrics, "thresholds", None)

    def predict_step(self, batches: Sequence[Batch], batch_idx: int) -> dict[str, Tensor]:
        """Returns the mean `probabilities`, `labels` and `indices`.

        Args:
            batches: the same images from the loader of each member.
            batch_idx: index of the batch.
        """
        probabilities = []
        for member, batch in zip(self.members, batches, strict=True):
            assert isinstance(member, ImageClassifier)  # nn.ModuleList does not know the type of its modules
            probabilities.append(member.probabilities(batch))
        mean = torch.stack(probabilities).mean(0)
        return {"probabilities": mean, "labels": batches[0].labels, "indices": batches[0].indices}

    def test_step(self, batches: Sequence[Batch], batch_idx: int) -> dict[str, Tensor]:
        """Updates the metrics; returns what `predict_step` does."""
        outputs = self.predict_step(batches, batch_idx)
        self.metrics.update(outputs["probabilities"], outputs["labels"])
        return outputs

    validation_step = test_step

    def on_test_epoch_start(self) -> None:
        """Begins to count."""
        self.metrics.to(torch.float32).reset()  # with precision bf16-true, sums would be too inexact

    on_validation_epoch_start = on_test_epoch_start

    def on_test_epoch_end(self) -> None:
        """Computes `results`."""
        self.results = self.metrics.compute()
        self.metrics.reset()

    on_validation_epoch_end = on_test_epoch_end


class EnsembleData(LightningDataModule):
    """Loads each batch once for every member, prepared as for its training.

    Args:
        members: data modules with the same images in the same order.
    """

    def __init__(self, members: Sequence[ImageDataModule]) -> None:
        super().__init__()
        self.members = members
        size = min(member.eval_batch_size for member in members)
        for member in members:
            member.eval_batch_size = size

    def val_dataloader(self) -> JointLoader:
        """Returns the validation images."""
        return JointLoader([member.val_dataloader() for member in self.members])

    def test_dataloader(self) -> JointLoader:
        """Returns the test images."""
        return JointLoader([member.test_dataloader() for member in self.members])

    def predict_dataloader(self) -> JointLoader:
        """Returns the images to predict on."""
        return JointLoader([member.predict_dataloader() for member in self.members])

    @property
    def predict_images(self) -> Any:
        """The images to predict on."""
        return self.members[0].predict_images


class JointLoader:
    """Yields a list with one batch of each loader. Lightning's `CombinedLoader` does not do that in `predict`.

    Args:
        loaders: loaders with the same number of batches.
    """

    def __init__(self, loaders: Sequence[Any]) -> None:
        self.loaders = loaders

    def __len__(self) -> int:
        return min(map(len, self.loaders))

    def __iter__(self) -> Iterator[list[Batch]]:
        return map(list, zip(*self.loaders, strict=True))


def check_members(members: Sequence[tuple[str, Any, Any]], split: str | None) -> None:
    """Checks that models can be evaluated as an ensemble.

    Args:
        members: name, model and data module of each member.
        split: the split to evaluate on; None for images without a split.

    Raises:
        UserError: the members have different classes or different images, or a member was trained on images of `split`.
    """
    for (name, model, data), (other, other_model, other_data) in permutations(members, 2):
        if model.class_names != other_model.class_names:
            raise UserError(f"the models of an ensemble must have the same classes; {name} and {other} do not")
        if split is None:
            continue
        tested = set(data.split(split).names)
        leak = sorted(tested.intersection(getattr(other_data.splits.get("train"), "names", ())))
        if leak and data.root == other_data.root:
            raise UserError(
                f"{len(leak)} {split} images of {name} are training images of {other}, for example {leak[0]}\n"
                "train all models of an ensemble with the same --data.split_seed"
            )
        if list(data.split(split).names) != list(other_data.split(split).names):
            raise UserError(f"{name} and {other} have different {split} images\ngive one folder with --data.root")
