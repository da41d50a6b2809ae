"""Losses for imbalanced classes and several classes per image, and class weights in training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from resnet_pl.classifier import ImageClassifier
from resnet_pl.data.tensors import TensorImageDataset
from resnet_pl.losses import AsymmetricLoss, FocalLoss, MultiLabelLoss, balanced_weights
from resnet_pl.utils import UserError
from tests.tiny import Tiny, classifier, trainer

LOGITS = 3 * torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(40) % 5


def test_focal_loss_without_focus_is_cross_entropy() -> None:
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    assert FocalLoss(0.0)(LOGITS, LABELS) == pytest.approx(float(F.cross_entropy(LOGITS, LABELS)), rel=1e-5)
    weighted = F.cross_entropy(LOGITS, LABELS, weight, reduction="none").mean()
    assert FocalLoss(0.0, weight)(LOGITS, LABELS) == pytest.approx(float(weighted), rel=1e-5)


def test_focal_loss_of_two_classes_is_that_of_torchvision() -> None:
    # Of two classes, p = sigmoid(difference of the logits).
    labels = LABELS % 2
    expected = sigmoid_focal_loss(LOGITS[:, 1] - LOGITS[:, 0], labels.float(), alpha=-1, gamma=2, reduction="mean")
    assert FocalLoss()(LOGITS[:, :2], labels) == pytest.approx(float(expected), rel=1e-5)


def test_focal_loss_of_mixed_labels_and_of_certain_predictions() -> None:
    mixed = 0.3 * F.one_hot(LABELS, 5) + 0.7 * F.one_hot(LABELS.roll(1), 5)
    parts = 0.3 * FocalLoss(2)(LOGITS, LABELS) + 0.7 * FocalLoss(2)(LOGITS, LABELS.roll(1))
    assert FocalLoss(2)(LOGITS, mixed) == pytest.approx(float(parts), rel=1e-5)
    certain = torch.tensor([[200.0, -200.0]], requires_grad=True)
    for label in (0, 1):
        FocalLoss(0.5)(certain, torch.tensor([label])).backward()
        assert certain.grad is not None and certain.grad.isfinite().all()


def test_asymmetric_loss_without_asymmetry_is_binary_cross_entropy() -> None:
    several = (torch.rand(40, 5, generator=torch.Generator().manual_seed(1)) < 0.3).float()
    expected = F.binary_cross_entropy_with_logits(LOGITS, several, reduction="none").sum(1).mean()
    assert AsymmetricLoss(0, 0, 0)(LOGITS, several) == pytest.approx(float(expected), rel=1e-5)
    p = LOGITS.sigmoid()
    shifted = (p - 0.05).clamp_min(0)
    by_hand = -(several * (1 - p) * p.log() + (1 - several) * shifted**4 * (1 - shifted).log()).sum(1).mean()
    assert AsymmetricLoss(gamma_positive=1)(LOGITS, several) == pytest.approx(float(by_hand), rel=1e-4)


def test_multi_label_loss_smooths_labels() -> None:
    several = (torch.rand(40, 5, generator=torch.Generator().manual_seed(1)) < 0.3).float()
    expected = F.binary_cross_entropy_with_logits(LOGITS, 0.8 * several + 0.1)
    assert MultiLabelLoss(0.2)(LOGITS, several) == pytest.approx(float(expected), rel=1e-6)


# ------------------------------------------------------------------------------------ class weights
class Skewed(Tiny):
    """`Tiny` with 36, 24, 12 and 8 images of the classes."""

    def read(self) -> dict[str, Any]:
        images = super().read()["train"]
        images.labels = torch.tensor([0] * 36 + [1] * 24 + [2] * 12 + [3] * 8)
        return {"train": images}


def trained(model: ImageClassifier, data: Tiny, **kwargs: Any) -> ImageClassifier:
    trainer(**({"limit_train_batches": 1, "limit_val_batches": 1} | kwargs)).fit(model, datamodule=data)
    return model


@pytest.mark.parametrize("loss", [None, FocalLoss(gamma=0)])
def test_balanced_weights_are_those_of_scikit_learn_and_the_reported_loss_has_none(loss: nn.Module | None) -> None:
    from sklearn.utils.class_weight import compute_class_weight

    data = Skewed(val_split=0.2, test_split=0.2)
    model = trained(classifier(loss=loss, class_weights="balanced"), data, limit_val_batches=1.0)
    labels = data.splits["train"].labels.numpy()
    expected = compute_class_weight("balanced", classes=np.arange(4), y=labels)
    assert model.criterion.weight == pytest.approx(expected, rel=1e-6)
    images = data.splits["val"]
    with torch.no_grad():
        plain = F.cross_entropy(model.eval()(images.images), images.labels)
    assert model.results["loss"] == pytest.approx(float(plain), rel=1e-4)


def test_a_checkpoint_restores_the_weights_of_its_training(tmp_path: Path) -> None:
    settings = {"enable_checkpointing": True, "default_root_dir": tmp_path, "logger": False}
    first = trained(classifier(class_weights="balanced"), Skewed(), **settings)
    path = next(tmp_path.rglob("*.ckpt"))
    loaded = ImageClassifier.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    assert torch.equal(loaded.criterion.weight, first.criterion.weight) and first.criterion.weight[3] > 1.5
    # Resumed with other images, the run continues with its own weights.
    resumed = classifier(class_weights="balanced")
    trainer(max_epochs=2, limit_train_batches=1).fit(resumed, datamodule=Tiny(), ckpt_path=path, weights_only=True)
    assert torch.equal(resumed.criterion.weight, first.criterion.weight)


def test_a_class_that_all_images_have_is_learned() -> None:
    labels = torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    images = TensorImageDataset(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), labels, list("abcd"))
    assert balanced_weights(images, 2, multi_label=True).tolist() == [0.25, 3.0]


class NoWeight(nn.Module):
    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"class_weights": [1.0, 2.0]}, "model.class_weights: 2 weights for 4 classes"),
        ({"class_weights": "balanced", "loss": NoWeight()}, "NoWeight has no attribute `weight`"),
        ({"class_weights": "balanced", "loss": FocalLoss(weight=torch.ones(4))}, "has a weight already"),
    ],
)
def test_mistakes(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        trained(classifier(**kwargs), Tiny())


def test_weights_of_data_without_known_labels() -> None:
    from tests.own import PlainData

    model = ImageClassifier(classifier().backbone, class_weights="balanced")
    with pytest.raises(UserError, match="balanced needs the labels"):
        trainer(limit_train_batches=1).fit(model, datamodule=PlainData())


class PlainWeight(nn.Module):
    """A loss whose weight is not a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight: Tensor | None = None

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, self.weight)


def test_the_weights_of_any_loss_become_a_buffer() -> None:
    model = trained(classifier(loss=PlainWeight(), class_weights="balanced"), Skewed())
    assert "criterion.weight" in model.state_dict()
