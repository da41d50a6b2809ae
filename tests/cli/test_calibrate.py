"""`calibrate`, and what the other commands do with a calibrated checkpoint."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from resnet_pl import ImageClassifier, load_run
from resnet_pl.reports.results import read_results
from tests.cli.commands import refused, run
from tests.evaluation.test_metrics import reference


def outputs(path: Path, split: str) -> tuple[Tensor, Tensor]:
    """Logits and labels of a split, computed without the Trainer."""
    model, data = load_run(path)
    images = data.split(split)
    with torch.no_grad():
        return model(images.images), images.labels


def stored(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def change(path: Path, **metadata: Any) -> Path:
    """Changes the metadata of a checkpoint."""
    checkpoint = stored(path)
    checkpoint["resnet_pl"] |= metadata
    torch.save(checkpoint, path)
    return path


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_commands_use_the_calibration(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = copy / "checkpoints/best.ckpt"
    logits, labels = outputs(best, "val")
    run("calibrate", "--ckpt_path", best, "--target_precision", 0.5)
    calibration = stored(best)["resnet_pl"]["calibration"]
    temperature, threshold = calibration["temperature"], calibration["threshold"]
    losses = {
        t: float(torch.nn.functional.cross_entropy(logits / t, labels)) for t in torch.logspace(-1, 1, 100).tolist()
    }
    assert temperature == pytest.approx(min(losses, key=lambda t: losses[t]), rel=0.05)
    assert calibration["val"]["after"]["loss"] <= min(losses.values()) < calibration["val"]["before"]["loss"]

    confidence, predicted = (logits / temperature).softmax(1).max(1)
    precision = {float(p): float((predicted == labels)[confidence >= p].float().mean()) for p in confidence}
    smallest = min(p for p in precision if precision[p] >= 0.5)
    assert max(p for p in precision if p < smallest) < threshold < smallest

    # `test` and the report of `calibrate` agree with NumPy.
    logits, labels = outputs(best, "test")
    expected = reference((logits / temperature).softmax(1), labels)
    out = capsys.readouterr().out
    run("test", "--ckpt_path", best)
    results = read_results(copy / "results.json")
    for name in ("loss", "calibration_error", "adaptive_calibration_error"):
        assert results[name] == pytest.approx(expected[name], abs=1e-3), name
        assert calibration["test"]["after"][name] == pytest.approx(results[name], abs=1e-5), name
    confidence, predicted = (logits / temperature).softmax(1).max(1)
    accepted = confidence >= threshold
    assert results["accepted"]["coverage"] == pytest.approx(float(accepted.float().mean()))
    assert results["accepted"]["precision"] == pytest.approx(float((predicted == labels)[accepted].float().mean()))
    assert f"{results['accepted']['precision']:.1%}" in out and f"temperature {temperature:.4g}," in out
    assert f"temperature {temperature:.3g}" in capsys.readouterr().out
    assert Image.open(copy / "reliability.png").size[0] > 400

    run("predict", "--ckpt_path", best, "--submission", "submission.csv")
    found, model = table(copy / "predictions.csv"), load_run(best)[0]
    names = [name if known else "unknown" for name, known in zip(map(str, predicted.tolist()), accepted, strict=True)]
    assert [row["prediction"] for row in found] == names and {"class_1", "class_5"} <= found[0].keys()
    assert [row["class_1"] for row in found] == [str(index) for index in predicted.tolist()]
    assert [row["label"] for row in table(Path("submission.csv"))] == [row["class_1"] for row in found]
    run("report", "--ckpt_path", best)
    reported = table(copy / "report/predictions.csv")
    columns = ("truth", "prediction", "class_1")
    assert [[row[key] for key in columns] for row in reported] == [[row[key] for key in columns] for row in found]
    out = capsys.readouterr().out
    assert f"{names.count('unknown')} of 360 predictions are unknown" in out and "contact_sheet.png" in out
    assert [each.class_name for each in model.predict(load_run(best)[1].split("test").images[:9])] == names[:9]


def test_a_calibration_that_no_prediction_could_use(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calibrate = ["calibrate", "--ckpt_path", copy / "checkpoints/best.ckpt"]
    for target in (0, 1):
        assert "such as 0.99" in refused(capsys, *calibrate, "--target_precision", target)
    assert "use the 16 of the checkpoint" in refused(capsys, *calibrate, "--data.image_size", 24)
    assert "calibration" not in stored(copy / "checkpoints/best.ckpt")["resnet_pl"]


def test_only_the_calibration_of_the_file_changes(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = copy / "checkpoints/best.ckpt"
    link = best.with_name("link.ckpt")
    link.symlink_to("best.ckpt")
    best.chmod(0o640)
    before, times = stored(best), best.stat().st_mtime_ns
    run("calibrate", "--ckpt_path", link)
    after = stored(best)
    assert "export again" not in capsys.readouterr().out
    assert link.is_symlink() and (best.stat().st_mode & 0o777, best.stat().st_mtime_ns) == (0o640, times)
    calibration = after["resnet_pl"].pop("calibration")
    assert calibration["threshold"] is None and calibration["images"] == 180
    pairs = zip(before["state_dict"].values(), after["state_dict"].values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs) and str(before) == str(after)
    (copy / "model.onnx").touch()  # of an earlier export
    run("calibrate", "--ckpt_path", best, "--reset")
    assert f"export again: {copy / 'model.onnx'}" in capsys.readouterr().out
    assert "calibration" not in stored(best)["resnet_pl"]
    assert ImageClassifier.load_from_checkpoint(best, map_location="cpu", weights_only=True).temperature == 1


def test_what_cannot_be_calibrated(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = copy / "checkpoints/best.ckpt"
    calibrate = ["calibrate", "--ckpt_path", best]
    weights = ["--model.weights", "x.pth", "--model.backbone", "resnet18", "--data", "Digits"]
    assert "published weights have no checkpoint" in refused(capsys, "calibrate", *weights)
    assert "no test images" in refused(capsys, *calibrate, "--trainer.limit_test_batches", 0)
    data = stored(best)["resnet_pl"]["data"]
    splits = {name: names for name, names in data["splits"].items() if name != "val"}
    change(best, data=data | {"splits": splits})
    assert "has no val split" in refused(capsys, *calibrate)
    assert "calibration" not in stored(best)["resnet_pl"]
