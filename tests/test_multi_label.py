"""Images with several classes: metrics, thresholds, and the commands from training to prediction."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score, roc_auc_score
from torch import Tensor

from resnet_pl import load_run
from resnet_pl.analysis import cross_validate
from resnet_pl.analysis.ensemble import Ensemble
from resnet_pl.callbacks.checkpoints import checkpoint_callbacks
from resnet_pl.classifier import ImageClassifier
from resnet_pl.data import MixUp, TensorDataModule
from resnet_pl.data.tensors import TensorImageDataset
from resnet_pl.evaluation.multi_label import MultiLabelMetrics
from resnet_pl.losses import AsymmetricLoss, FocalLoss, MultiLabelLoss
from resnet_pl.reports.results import read_results
from resnet_pl.reports.run_reader import read_run
from resnet_pl.utils import UserError
from tests.cli.commands import BARE, refused, rows, run
from tests.tiny import Tiny, classifier, trainer


class Several(TensorDataModule):
    """Images whose red, green and blue channels are bright if they have the class of this name; some have none."""

    multi_label = True

    def __init__(self, batch_size: int = 20, image_size: int = 8, mix: MixUp | None = None) -> None:
        super().__init__(batch_size=batch_size, image_size=image_size, mix=mix)

    def find_splits(self) -> dict[str, TensorImageDataset]:
        self.classes = ["red", "green", "blue"]
        generator = torch.Generator().manual_seed(0)
        labels = (torch.rand(160, 3, generator=generator) < torch.tensor([0.5, 0.3, 0.2])).float()
        noise = torch.randint(0, 156, (160, 3, 8, 8), generator=generator)
        images = (noise + 100 * labels[:, :, None, None]).to(torch.uint8)
        every = TensorImageDataset(images, labels, [f"image/{i:03}" for i in range(160)])
        parts = {"train": range(80), "val": range(80, 120), "test": range(120, 160)}
        return {name: every[list(part)] for name, part in parts.items()}


# ------------------------------------------------------------------------------------ metrics
def outputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    labels = (torch.rand(500, 4, generator=generator) < torch.tensor([0.1, 0.3, 0.5, 0.9])).float()
    return (1.5 * torch.randn(500, 4, generator=generator) + 2 * labels - 0.5).sigmoid(), labels


def evaluated() -> MultiLabelMetrics:
    metrics = MultiLabelMetrics(4)
    for p, y in zip(*(each.split(64) for each in outputs()), strict=True):
        metrics.update(p, y)
    return metrics


def check_decisions(found: dict[str, Any], thresholds: Tensor) -> None:
    probabilities, labels = outputs()
    predicted = (probabilities >= thresholds).numpy()
    for name, score in (("precision", precision_score), ("recall", recall_score), ("f1", f1_score)):
        assert found[f"{name}_macro"] == pytest.approx(score(labels, predicted, average="macro")), name
    assert found["f1_micro"] == pytest.approx(f1_score(labels, predicted, average="micro"))


def test_every_metric_agrees_with_scikit_learn() -> None:
    probabilities, labels = outputs()
    found = evaluated().compute()
    assert found["map"] == pytest.approx(average_precision_score(labels, probabilities), abs=1e-3)
    assert found["auroc"] == pytest.approx(roc_auc_score(labels, probabilities), abs=1e-3)
    loss = torch.nn.functional.binary_cross_entropy(probabilities, labels)
    assert (found["images"], found["loss"]) == (500, pytest.approx(float(loss), rel=1e-5))
    exact = ((probabilities >= 0.5) == labels.bool()).all(1).float().mean()
    assert found["exact_match"] == pytest.approx(float(exact))
    check_decisions(found, torch.tensor(0.5))


def test_chosen_thresholds_have_the_largest_f1() -> None:
    probabilities, labels = outputs()
    metrics = evaluated()
    before, found = metrics.compute(), metrics.compute(choose_thresholds=True)
    check_decisions(found, metrics.thresholds)
    assert found["exact_match"] is None and found["f1_macro"] > before["f1_macro"] + 0.01
    for k in range(4):
        grid = [f1_score(labels[:, k], probabilities[:, k] >= t) for t in np.linspace(0, 1, 100)]
        assert f1_score(labels[:, k], probabilities[:, k] >= metrics.thresholds[k]) > max(grid) - 0.005
    # They are in force in the next evaluation, and stay after a reset.
    metrics.reset()
    metrics.update(probabilities, labels)
    check_decisions(metrics.compute(), metrics.thresholds)


def test_the_loss_of_certain_predictions() -> None:
    # In float32, the probability of the log-odds 20 is 1.
    metrics = MultiLabelMetrics(2)
    metrics.update(torch.tensor([[20.0, -20.0]]).sigmoid(), torch.tensor([[0.0, 1.0]]))
    assert metrics.compute()["loss"] == pytest.approx(20, abs=2)


# ------------------------------------------------------------------------------------ commands
OPTIONS = [
    *["--data", "tests.test_multi_label.Several", "--model.backbone", "cifar_resnet", "--model.backbone.depth", "8"],
    *[
        "--trainer.max_epochs",
        "2",
        "--name",
        "several",
        "--dashboard.graph",
        "false",
        "--model.class_weights",
        "balanced",
    ],
]


def test_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    run("fit", *OPTIONS, "--data.mix", "MixUp", "--model.label_smoothing", "0.1")
    folder = Path("runs/several/version_0")
    logged = [{key: value for key, value in row.items() if value} for row in rows(folder)]
    assert not any({"train/top1", "val/top1"} & row.keys() for row in logged)
    scores = [float(row["val/map"]) for row in logged if "val/map" in row]
    assert f"Best val/map: {max(scores):.4f}" in capsys.readouterr().out
    best = torch.load(folder / "checkpoints/best.ckpt", weights_only=True)
    assert best["epoch"] == scores.index(max(scores)) and len(set(best["resnet_pl"]["thresholds"])) == 3

    run("validate", "--ckpt_path", "best")
    again = read_results(folder / "results-val.json")
    chosen = next(row for row in logged if row.get("val/map") and float(row["val/map"]) == max(scores))
    for name in ("map", "f1_macro", "f1_micro", "loss"):
        assert again[name] == pytest.approx(float(chosen[f"val/{name}"]), rel=1e-4), name

    run("test", "--ckpt_path", "best")
    results = read_results(folder / "results.json")
    model, data = load_run(folder)
    images = data.split("test")
    with torch.no_grad():
        probabilities = model(images.images).sigmoid()
    thresholds = torch.tensor(best["resnet_pl"]["thresholds"])
    predicted, truth = probabilities >= thresholds, images.labels.bool()
    assert results["exact_match"] == pytest.approx(float((predicted == truth).all(1).float().mean()))
    assert results["per_class"]["red"]["threshold"] == pytest.approx(float(thresholds[0]))
    assert results["per_class"]["red"]["recall"] == pytest.approx(float(predicted[truth[:, 0], 0].float().mean()))
    with (folder / "misclassified.csv").open(newline="") as file:
        wrong = {row["file"]: row for row in csv.DictReader(file)}
    assert len(wrong) == int((predicted != truth).any(1).sum())

    run("predict", "--ckpt_path", "best")
    with (folder / "predictions.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    for row, found, true in zip(lines, predicted, truth, strict=True):
        names = ["|".join(name for name, each in zip(data.classes, one, strict=True) if each) for one in (found, true)]
        assert [row["prediction"], row["truth"]] == names
        assert (row["path"] in wrong) == (names[0] != names[1])
        assert row["path"] not in wrong or [wrong[row["path"]][key] for key in ("prediction", "truth")] == names

    # A temperature changes the probabilities, not the predicted classes.
    loss = results["loss"]
    assert "each class has a threshold" in refused(
        capsys, "calibrate", "--ckpt_path", folder, "--target_precision", 0.9
    )
    run("calibrate", "--ckpt_path", folder)
    calibration = torch.load(folder / "checkpoints/best.ckpt", weights_only=True)["resnet_pl"]["calibration"]
    run("test", "--ckpt_path", "best")
    results = read_results(folder / "results.json")
    assert results["loss"] == pytest.approx(calibration["test"]["after"]["loss"], rel=1e-4)
    assert loss == pytest.approx(calibration["test"]["before"]["loss"], rel=1e-4) and calibration["temperature"] != 1
    assert results["exact_match"] == pytest.approx(float((predicted == truth).all(1).float().mean()))
    model = load_run(folder)[0]

    # Python, an ensemble with augmentation, and the comparison.
    first = model.predict([images.images[0]])[0]
    assert set(first.class_names) == {name for name, each in zip(data.classes, predicted[0], strict=True) if each}
    run("test", "--ensemble", folder, folder / "checkpoints/last.ckpt", "--tta", "flip", "--output", "both")
    assert 0 < read_results(Path("both/results.json"))["map"] <= 1
    assert (read_run(folder).monitor, read_run(folder).test_score) == ("val/map", results["map"])
    run("compare", folder)
    assert "best val/map" in capsys.readouterr().out


# ------------------------------------------------------------------------------------ Python
def test_a_resumed_run_keeps_its_thresholds_and_its_loss(tmp_path: Path) -> None:
    settings = {"enable_checkpointing": True, "default_root_dir": tmp_path}
    model = classifier(class_weights="balanced")
    trainer(**settings).fit(model, datamodule=Several())
    assert isinstance(model.criterion, MultiLabelLoss) and model.results["map"] > 0
    labels = Several().find_splits()["train"].labels
    assert model.criterion.pos_weight == pytest.approx((1 - labels).sum(0) / labels.sum(0))
    loaded = ImageClassifier.load_from_checkpoint(next(tmp_path.rglob("*.ckpt")), map_location="cpu", weights_only=True)
    assert loaded.hparams["multi_label"] is True and loaded.thresholds is not None and model.thresholds is not None
    assert torch.equal(loaded.thresholds, model.thresholds) and loaded.thresholds.tolist() != [0.5] * 3


def test_a_run_that_ends_within_an_epoch_saves_the_thresholds_of_its_last_validation(tmp_path: Path) -> None:
    model = classifier()
    settings = {"max_steps": 2, "max_epochs": -1, "enable_checkpointing": True}
    trainer(callbacks=checkpoint_callbacks(tmp_path), **settings).fit(model, datamodule=Several())
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 2 and model.thresholds is not None
    assert saved["resnet_pl"]["thresholds"] == model.thresholds.tolist() != [0.5] * 3


def test_cross_validation_does_not_choose_thresholds_on_the_images_it_predicts() -> None:
    data, model = Several(), classifier()
    trainer(limit_train_batches=1).fit(model, datamodule=data)
    assert model.thresholds is not None
    model.thresholds.fill_(0.999)
    found = list(cross_validate.predict(model.eval(), data))
    assert found and any(prediction for _, _, prediction, *_ in found)
    for _, _, prediction, *probabilities in found:
        expected = [name for name, p in zip(data.classes, probabilities, strict=True) if float(p) >= 0.5]
        assert prediction == "|".join(expected)


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        ({"multi_label": False}, Several(), "Several has several labels per image, but the network is for one"),
        ({"multi_label": True}, Tiny(), "Tiny has one label per image, but the network is for several"),
        ({"loss": FocalLoss()}, Several(), "FocalLoss is for one class per image"),
        ({"loss": AsymmetricLoss()}, Tiny(), "AsymmetricLoss is for several classes per image"),
    ],
)
def test_another_kind_of_data_is_refused(model: dict[str, Any], data: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        trainer().fit(classifier(**model), datamodule=data)


def test_a_loss_from_python() -> None:
    model = classifier(loss=AsymmetricLoss())
    trainer(limit_train_batches=1, limit_val_batches=1).fit(model, datamodule=Several())
    assert isinstance(model.criterion, AsymmetricLoss)


def test_a_monitor_that_only_a_test_has_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    options = [*BARE, "--data", f"{__name__}.Several", "--checkpoint.monitor", "val/exact_match"]
    assert "val/exact_match is not logged" in refused(capsys, "fit", *options)


def test_an_ensemble_of_both_kinds_is_refused() -> None:
    one, several = classifier(num_classes=4), classifier(num_classes=4, multi_label=True)
    one.configure_model()
    several.configure_model()
    with pytest.raises(UserError, match="some models are for one class per image, others for several"):
        Ensemble([one, several])


def test_loaders_of_the_user(tmp_path: Path) -> None:
    images = torch.rand(12, 3, 8, 8)
    pairs = [(image, torch.tensor([1.0, 0.0, 1.0])) for image in images]
    model = classifier(num_classes=3, multi_label=True)
    loader = torch.utils.data.DataLoader(pairs, batch_size=6)  # type: ignore[arg-type]
    trainer().fit(model, loader, loader)
    assert model.results["images"] == 12
    wrong = torch.utils.data.DataLoader([(image, 1) for image in images], batch_size=6)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="multi_label needs"):
        trainer().fit(classifier(num_classes=3, multi_label=True), wrong)
