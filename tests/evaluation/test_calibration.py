"""Temperature scaling: the fit, and probabilities with a temperature."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from resnet_pl import ImageClassifier
from resnet_pl.evaluation.calibration import choose_threshold, fit_temperature, mean_loss
from resnet_pl.run_dir import UNKNOWN
from resnet_pl.utils import UserError
from tests.test_multi_label import Several
from tests.tiny import Tiny, classifier, trainer


def overconfident(count: int = 2000, factor: float = 2.5) -> tuple[Tensor, Tensor]:
    """Logits that are `factor` times those of a calibrated model, and labels."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(count, 5, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return factor * logits, labels


@pytest.mark.parametrize("factor", [0.3, 1.0, 2.5])
def test_the_temperature_is_the_minimum_of_a_grid(factor: float) -> None:
    logits, labels = overconfident(factor=factor)
    temperature = fit_temperature(logits, labels)
    assert temperature == pytest.approx(factor, rel=0.1)
    grid = torch.logspace(-1.5, 1.5, 200).tolist()
    losses = [mean_loss(logits, labels, t) for t in grid]
    assert mean_loss(logits, labels, temperature) <= min(losses)
    assert temperature == pytest.approx(grid[losses.index(min(losses))], rel=0.04)  # a step of the grid is 3.5 %
    # Independent classes: binary cross-entropy.
    present = (torch.rand(2000, 5, generator=torch.Generator().manual_seed(1)) < (logits / factor).sigmoid()).float()
    assert fit_temperature(logits, present) == pytest.approx(factor, rel=0.1)


def test_no_temperature_is_the_best() -> None:
    logits = 9 * torch.eye(3)
    with pytest.raises(UserError, match="all predictions for the 3 validation images are right"):
        fit_temperature(logits, torch.arange(3))
    with pytest.raises(UserError, match="chance is as good"):
        fit_temperature(-logits, torch.arange(3))
    with pytest.raises(UserError, match="NaN or infinite"):
        fit_temperature(logits * torch.nan, torch.arange(3))


def test_the_confidence_threshold() -> None:
    """Three of four are right above 0.7; the image with the highest confidence is wrong."""
    confidence = torch.tensor([0.95, 0.9, 0.8, 0.8, 0.7, 0.6])
    logits = torch.stack([confidence.log(), (1 - confidence).log()], 1)
    labels = torch.tensor([1, 0, 0, 0, 1, 1])
    assert choose_threshold(logits, labels, 0.7) == pytest.approx(0.75)
    assert choose_threshold(logits, labels, 0.5) is None
    assert choose_threshold(logits, labels, 0.55) == pytest.approx(0.65)
    with pytest.raises(UserError, match=r"0\.8: no confidence threshold reaches it on the 6 validation images"):
        choose_threshold(logits, labels, 0.8)
    # The first of two images with the same confidence is right: together they are not.
    with pytest.raises(UserError, match="no confidence threshold"):
        choose_threshold(logits[2:4], torch.tensor([0, 1]), 0.9)


def calibrated(path: Path, threshold: float | None = 0.99, data: Tiny | Several | None = None) -> Path:
    """Trains a model for one step and writes a checkpoint with the temperature 4."""
    model, run = classifier(), trainer(limit_train_batches=1)
    run.fit(model, datamodule=data or Tiny())
    run.save_checkpoint(path)
    checkpoint = torch.load(path, weights_only=True)
    assert "calibration" not in checkpoint["resnet_pl"]
    checkpoint["resnet_pl"]["calibration"] = {"temperature": 4.0, "threshold": threshold}
    torch.save(checkpoint, path)
    return path


def load(path: Path) -> ImageClassifier:
    return ImageClassifier.load_from_checkpoint(path, map_location="cpu", weights_only=True).eval()


def test_a_calibrated_checkpoint_divides_the_logits_and_says_unknown(tmp_path: Path) -> None:
    model = load(calibrated(tmp_path / "a.ckpt"))
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    found = model.predict(images, transform=lambda image: image)
    with torch.no_grad():
        expected = (model(images) / 4).softmax(1)
    assert torch.allclose(torch.stack([each.probabilities for each in found]), expected)
    assert [each.class_name for each in found] == [UNKNOWN] * 5 and found[0].class_names == []
    model.confidence_threshold = found[0].probability
    assert model.predict(images[0], transform=lambda image: image)[0].class_name == f"class {expected[0].argmax()}"


def test_a_training_from_a_calibrated_checkpoint_starts_without_calibration(tmp_path: Path) -> None:
    path = calibrated(tmp_path / "a.ckpt")
    loaded, resumed = load(path), classifier()
    assert (loaded.temperature, loaded.confidence_threshold) == (4.0, 0.99)
    run = trainer(max_epochs=2, limit_train_batches=1)
    run.fit(resumed, datamodule=Tiny(), ckpt_path=path, weights_only=True)
    trainer(limit_train_batches=1).fit(loaded, datamodule=Tiny())
    for model in (resumed, loaded):
        assert (model.temperature, model.confidence_threshold) == (1.0, None)
    run.save_checkpoint(tmp_path / "b.ckpt")
    assert "calibration" not in torch.load(tmp_path / "b.ckpt", weights_only=True)["resnet_pl"]


def test_the_predicted_classes_of_several_do_not_change(tmp_path: Path) -> None:
    """Their thresholds change with the probabilities, and are saved without the temperature."""
    path = calibrated(tmp_path / "a.ckpt", None, Several())
    model, stored = load(path), torch.load(path, weights_only=True)["resnet_pl"]["thresholds"]
    thresholds = torch.tensor(stored)
    assert model.thresholds is not None
    assert model.thresholds == pytest.approx((thresholds.logit() / 4).sigmoid()) and stored != [0.5] * 3
    run = trainer()
    run.test(model, datamodule=Several(), verbose=False)
    run.save_checkpoint(tmp_path / "b.ckpt")
    saved = torch.load(tmp_path / "b.ckpt", weights_only=True)["resnet_pl"]
    assert saved["thresholds"] == pytest.approx(stored, rel=1e-5) and saved["calibration"]["temperature"] == 4
