"""`test` and `validate`: a single checkpoint, test-time augmentation, ensembles, other data."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resnet_pl import ImageClassifier
from resnet_pl.analysis.ensemble import EnsembleData
from resnet_pl.data import Digits
from resnet_pl.load import load_run
from resnet_pl.models import cifar_resnet
from resnet_pl.reports.results import read_results
from tests.cli.commands import SMALL, printed, refused, rows, run
from tests.cli.test_calibrate import change

QUICK = [*SMALL, "--trainer.max_epochs", "1", "--trainer.logger", "false"]


def top1(scores: torch.Tensor, labels: torch.Tensor) -> float:
    return (scores.argmax(1) == labels).double().mean().item()


# ------------------------------------------------------------------------------------ one checkpoint


@pytest.mark.parametrize("name", ["best.ckpt", "last.ckpt"])
def test_test_needs_only_the_checkpoint(copy: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    run("test", "--ckpt_path", copy / "checkpoints" / name)
    out = capsys.readouterr().out
    results = read_results(copy / "results.json")
    assert results["images"] == 360 and results["split"] == "test"
    assert results["checkpoint"] == f"checkpoints/{name}"
    assert "test: 360 images, the test split stored in the checkpoint" in out
    assert f"{results['top1']:.2%}" in out and "calibration error" in out
    assert f"Saved to {copy / 'results.json'}" in out
    assert sum(entry["images"] for entry in results["per_class"].values()) == 360
    correct = sum(entry["correct"] for entry in results["per_class"].values())
    assert results["top1"] == correct / 360
    assert (copy / "confusion.png").is_file()
    assert not Path("runs/digits/version_1").exists()


def test_test_agrees_with_a_plain_computation(copy: Path) -> None:
    run("test", "--ckpt_path", copy / "checkpoints/best.ckpt")
    results = read_results(copy / "results.json")
    from sklearn.datasets import load_digits

    model = ImageClassifier.load_from_checkpoint(copy / "checkpoints/best.ckpt", map_location="cpu").eval()
    data = Digits()
    data.setup("test")
    images = data.splits["test"]
    with torch.no_grad():
        probabilities = model(images.images).softmax(1)
    assert results["top1"] == pytest.approx(float((probabilities.argmax(1) == images.labels).float().mean()))
    loss = -probabilities[torch.arange(360), images.labels].log().mean()
    assert results["loss"] == pytest.approx(float(loss), rel=1e-5)
    where = [int(name.split("/")[1]) for name in images.names]
    assert (load_digits().target[where] == images.labels.numpy()).all()


def test_results_are_plain_json(copy: Path) -> None:
    run("test", "--ckpt_path", copy / "checkpoints/best.ckpt")
    results = json.loads((copy / "results.json").read_text())
    assert set(results) >= {"top1", "top5", "loss", "calibration_error", "images", "per_class", "versions", "epoch"}
    assert set(results) >= {"precision_macro", "recall_macro", "f1_macro", "balanced_accuracy", "auroc"}
    assert len(results["per_class"]["3"]["f1_interval"]) == 2


def test_results_of_another_checkpoint_are_added(copy: Path) -> None:
    run("test", "--ckpt_path", copy / "checkpoints/best.ckpt")
    first = read_results(copy / "results.json")
    run("test", "--ckpt_path", copy / "checkpoints/last.ckpt")
    both = read_results(copy / "results.json")
    assert both["top1"] == first["top1"] and both["checkpoint"] == "checkpoints/best.ckpt"
    assert any(isinstance(v, dict) and v.get("checkpoint") == "checkpoints/last.ckpt" for v in both.values())


def test_each_protocol_is_a_separate_result(copy: Path) -> None:
    best = copy / "checkpoints/best.ckpt"
    run("test", "--ckpt_path", best)
    first = read_results(copy / "results.json")["top1"]
    run("test", "--ckpt_path", best, "--trainer.precision", "bf16-mixed")
    run("test", "--ckpt_path", best, "--trainer.limit_test_batches", 1)
    run("test", "--ckpt_path", best, "--data.image_size", 24)
    results = read_results(copy / "results.json")
    assert results["top1"] == first and results["protocol"] == "single view"
    others = {key for key, value in results.items() if isinstance(value, dict) and "protocol" in value}
    expected = {"precision bf16-mixed", "64 of 360 images", "image_size 24"}
    assert others == {f"single view, {way}" for way in expected}


def test_validate_writes_results_val(copy: Path) -> None:
    run("validate", "--ckpt_path", copy / "checkpoints/best.ckpt")
    results = read_results(copy / "results-val.json")
    assert results["images"] == 180 and not (copy / "results.json").exists()
    wrong = 180 - round(180 * results["top1"])
    assert len((copy / "misclassified-val.csv").read_text().splitlines()) == 1 + wrong
    assert not (copy / "misclassified.csv").exists()
    best = max(float(row["val/top1"]) for row in rows(copy) if row["val/top1"])
    assert results["top1"] == pytest.approx(best, abs=1e-6)


def test_output_folder(copy: Path) -> None:
    run("test", "--ckpt_path", copy / "checkpoints/best.ckpt", "--output", "elsewhere")
    assert Path("elsewhere/results.json").is_file() and not (copy / "results.json").exists()


def test_a_checkpoint_outside_a_run_writes_to_the_working_folder(copy: Path) -> None:
    shutil.move(copy / "checkpoints/best.ckpt", "mine.ckpt")
    shutil.rmtree("runs")
    run("test", "--ckpt_path", "mine.ckpt")
    assert read_results(Path("results.json"))["checkpoint"] == "mine.ckpt"
    assert not Path("runs").exists()


def test_the_command_line_overrides_the_checkpoint(copy: Path) -> None:
    words = ["--data.eval_batch_size", 100, "--trainer.precision", "bf16-mixed", "--trainer.limit_test_batches", 1]
    run("test", "--ckpt_path", copy / "checkpoints/best.ckpt", *words)
    results = read_results(copy / "results.json")
    assert (results["precision"], results["images"]) == ("bf16-mixed", 100)


@pytest.mark.parametrize("command", ["test", "predict"])
def test_a_folder_without_write_permission_is_refused_before_the_evaluation(
    command: str, copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: access(path, mode) and Path(path) != copy.absolute())
    monkeypatch.setattr(ImageClassifier, f"{command}_step", lambda *args: pytest.fail("it evaluates"))
    assert "--output" in refused(capsys, command, "--ckpt_path", copy)


def test_precision_comes_from_the_checkpoint(place: Path) -> None:
    run("fit", *QUICK, "--trainer.precision", "bf16-mixed")
    run("test", "--ckpt_path", "best")
    assert read_results(Path("runs/digits/version_0/results.json"))["precision"] == "bf16-mixed"


def test_best_is_the_best_checkpoint_of_the_newest_run(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("fit", *QUICK, "--name", "other")
    run("test", "--ckpt_path", "best", "--name", "digits")
    assert (copy / "results.json").is_file()
    run("test", "--ckpt_path", "best")
    assert Path("runs/other/version_0/results.json").is_file()
    assert "runs/absent/version_N" in refused(capsys, "test", "--ckpt_path", "best", "--name", "absent")


def test_a_run_folder_is_its_best_checkpoint(copy: Path) -> None:
    run("test", "--ckpt_path", copy)
    assert read_results(copy / "results.json")["checkpoint"] == "checkpoints/best.ckpt"


def test_the_checkpoint_is_named_in_a_file(copy: Path) -> None:
    Path("again.yaml").write_text(f"ckpt_path: {copy}/checkpoints/best.ckpt\n")
    run("test", "--config", "again.yaml")
    assert (copy / "results.json").is_file()


def test_a_different_network_than_the_checkpoint(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "test", "--ckpt_path", copy / "checkpoints/best.ckpt", "--model.backbone.depth", 14)
    assert "different network" in message and "model.backbone" in message
    assert not (copy / "results.json").exists()


def test_classes_that_look_like_numbers(place: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("1e3", "007", "yes"):
        for i in range(6):
            path = place / "photos" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(path)
    small = ["--data.image_size", 32, "--data.batch_size", 4, "--data.num_workers", 0, "--trainer.max_epochs", 1]
    model = ["--model.backbone", "cifar_resnet", "--model.backbone.depth", 8, "--name", "numbers"]
    run("fit", "--data", "ImageFolder", "--data.root", "photos", *small, *model)
    run("test", "--ckpt_path", "best")
    assert set(read_results(Path("runs/numbers/version_0/results.json"))["per_class"]) == {"1e3", "007", "yes"}


# ------------------------------------------------------------------------------------ other data


@pytest.fixture
def photos(place: Path) -> Path:
    """Photos of the classes 0 to 9."""
    rng = np.random.default_rng(0)
    for name in range(10):
        for i in range(4):
            path = place / "photos" / str(name) / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(path)
    return place / "photos"


OTHER = "data: {class_path: ImageFolder, init_args: {root: photos, image_size: 24, num_workers: 0, test_split: 20}}"


@pytest.mark.parametrize(
    "argv",
    [
        ["--config", "other.yaml"],
        ["--data", "ImageFolder", "--data.root", "photos", "--data.image_size=24", "--data.test_split=20"],
        ["--data=ImageFolder", "--data.root", "photos", "--data.image_size=24", "--data.test_split=20"],
        [
            *["--data.class_path", "resnet_pl.data.ImageFolder", "--data.init_args.root", "photos"],
            *["--data.init_args.image_size", "24", "--data.test_split=20"],
        ],
    ],
)
def test_data_of_another_class_replaces_that_of_the_checkpoint(argv: list[str], copy: Path, photos: Path) -> None:
    Path("other.yaml").write_text(OTHER)
    run("test", "--ckpt_path", copy, *argv, "--data.num_workers", 0)
    results = read_results(copy / "results.json")
    # Arguments of Digits, such as its image size, do not apply to the other class.
    assert results["protocol"] == "single view, image_size 24" and "photos" in results["data"]
    assert results["per_class"].keys() == set("0123456789") and results["images"] <= 40


def test_data_of_the_same_class_keeps_the_arguments_of_the_checkpoint(copy: Path) -> None:
    Path("same.yaml").write_text("data: {class_path: resnet_pl.data.Digits, init_args: {eval_batch_size: 100}}")
    run("fit", *QUICK, "--data.test_split", 100, "--data.image_size", 24, "--name", "small")
    run("test", "--ckpt_path", "best", "--name", "small", "--config", "same.yaml")
    results = read_results(Path("runs/small/version_0/results.json"))
    assert (results["images"], results["protocol"]) == (100, "single view")


def test_data_with_other_classes_is_rejected(copy: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "9").rename(photos / "nine")
    Path("other.yaml").write_text(OTHER)
    assert "nine" in refused(capsys, "test", "--ckpt_path", copy, "--config", "other.yaml")


# ------------------------------------------------------------------------------------ protocols


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The run folders of two models that differ in depth, seed and normalization."""
    root = tmp_path_factory.mktemp("pair")
    run("fit", *SMALL, "--trainer.default_root_dir", root, "--name", "a")
    other = ["--model.backbone.depth", "14", "--seed_everything", "1", "--data.std", "channel", "--name", "b"]
    run("fit", *SMALL, "--trainer.default_root_dir", root, *other)
    return [root / "a/version_0", root / "b/version_0"]


@pytest.fixture
def copies(pair: list[Path], place: Path) -> list[Path]:
    """Copies of both that a test may write to."""
    return [Path(shutil.copytree(path, place / path.parent.name / path.name)) for path in pair]


def by_hand(folder: Path, flip: bool = False, temperature: float = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities of a run's best checkpoint on its test set in one batch, and the labels."""
    model, data = load_run(folder)
    images = data.split("test")
    views = [images.images, images.images.flip(-1)] if flip else [images.images]
    with torch.no_grad():
        return torch.stack([(model(view) / temperature).softmax(1) for view in views]).mean(0), images.labels


def test_results_of_each_augmentation(copies: list[Path]) -> None:
    few = ["--trainer.limit_test_batches", 1]
    for views, batches in (("none", []), ("flip", []), ("10-crop", few), ("multi-scale", few)):
        run("test", "--ckpt_path", copies[0], "--tta", views, *batches)
    results = read_results(copies[0] / "results.json")
    assert results["protocol"] == "single view" and results["top1"] == top1(*by_hand(copies[0]))
    flipped = results["horizontal flip"]
    scores, labels = by_hand(copies[0], flip=True)
    assert flipped["top1"] == top1(scores, labels)
    loss = -scores.gather(1, labels[:, None]).log().mean().item()
    assert flipped["loss"] == pytest.approx(loss, rel=1e-5)
    assert {f"{views}, 64 of 360 images" for views in ("10-crop", "multi-scale 16 18 27 34 46")} < results.keys()
    losses = {results["loss"]} | {
        value["loss"] for value in results.values() if isinstance(value, dict) and "loss" in value
    }
    assert len(losses) == 4


def test_misclassified_images_of_an_ensemble_with_augmentation(copies: list[Path]) -> None:
    run("test", "--ensemble", copies[0], copies[1], "--tta", "flip", "--output", "both")
    with Path("both/misclassified.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    (first, labels), (second, _) = by_hand(copies[0], flip=True), by_hand(copies[1], flip=True)
    confidence, predicted = ((first + second) / 2).max(1)
    names = load_run(copies[0])[1].split("test").names
    wrong = {names[i]: i for i in (predicted != labels).nonzero().flatten().tolist()}
    assert list(found[0]) == ["file", "truth", "prediction", "probability"] and len(wrong) > 20
    assert {row["file"] for row in found} == wrong.keys()
    shown = [float(row["probability"]) for row in found]
    assert shown == sorted(shown, reverse=True)
    for row, share in zip(found, shown, strict=True):
        index = wrong[row["file"]]
        assert (row["truth"], row["prediction"]) == (str(int(labels[index])), str(int(predicted[index])))
        assert share == pytest.approx(float(confidence[index]), abs=1e-5)


def test_precise_bn_is_for_one_test_unless_it_is_saved(copies: list[Path], place: Path) -> None:
    # A calibration is not saved: it is that of the other statistics.
    change(copies[0] / "checkpoints/best.ckpt", calibration={"temperature": 1.0, "threshold": 0.5})
    before = (copies[0] / "checkpoints/best.ckpt").read_bytes()
    run("test", "--ckpt_path", copies[0], "--precise_bn", "all", "--save_to", "precise.ckpt")
    assert (copies[0] / "checkpoints/best.ckpt").read_bytes() == before
    results = read_results(copies[0] / "results.json")
    assert results["protocol"] == "single view, precise BN over all images"
    run("test", "--ckpt_path", "precise.ckpt", "--output", "saved")
    run("test", "--ckpt_path", copies[0], "--output", "plain")
    saved, plain = read_results(place / "saved/results.json"), read_results(place / "plain/results.json")
    assert saved["loss"] == pytest.approx(results["loss"], rel=1e-6) and saved["loss"] != pytest.approx(plain["loss"])
    assert "accepted" in results and "accepted" not in saved


def test_precise_bn_after_the_first_epoch_uses_all_images(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("fit", *SMALL, "--trainer.max_epochs", 1)
    out = printed(capsys, "test", "--ckpt_path", "last", "--precise_bn", "all")
    data = load_run("last")[1]
    count = len(data.split("train"))
    count -= count % data.batch_size  # training drops the last batch
    assert f"recomputed on {count:,} training images" in out


def test_published_weights_are_tested_without_a_checkpoint(place: Path) -> None:
    torch.manual_seed(3)
    model = cifar_resnet(8).eval()
    torch.save({f"module.{key}": value for key, value in model.state_dict().items()}, "published.pth")
    weights = ["--model.weights", "published.pth", "--data.mean", "[0.2, 0.3, 0.4]", "--data.std", "[0.5, 0.5, 0.5]"]
    run("test", *SMALL[:4], *weights)
    results = read_results(place / "results.json")
    assert results["checkpoint"] == "weights published.pth" and results["images"] == 360
    data = Digits()
    data.setup("test")
    images = data.split("test")
    normalized = (images.images / 255 - torch.tensor([0.2, 0.3, 0.4])[:, None, None]) / 0.5
    with torch.no_grad():
        assert results["top1"] == pytest.approx(top1(model(normalized), images.labels))


def test_contradicting_options_are_rejected(copies: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    test = ["test", "--ckpt_path", copies[0]]
    message = refused(capsys, *test, "--tta", "multi-scale", "--scales", "16", "12")
    assert "--scales" in message and "12" in message and "16" in message
    assert "multi-scale" in refused(capsys, *test, "--scales", "16", "32")
    assert "--precise_bn" in refused(capsys, *test, "--save_to", "x.ckpt")
    averaged = ["--precise_bn", "all", "--save_to", "x.ckpt", "--ensemble", "x.ckpt"]
    assert "--ensemble" in refused(capsys, *test, *averaged)
    assert "export --ckpt_path PATH --format safetensors" in refused(capsys, *test, "--save_to", "x.safetensors")
    assert "tta" in refused(capsys, *test, "--tta", "11-crop")
    message = refused(capsys, *test, "--data.mean", "pixel")
    assert "data.mean" in message and "channel, not pixel" in message
    run(*test, "--data.mean", "channel")
    assert "nowhere.ckpt" in refused(capsys, "test", "--ensemble", copies[0], "nowhere.ckpt")


# ------------------------------------------------------------------------------------ ensembles


def test_an_ensemble_averages_the_probabilities_of_its_members(
    copies: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    change(copies[1] / "checkpoints/best.ckpt", calibration={"temperature": 0.25, "threshold": 0.5})
    run("test", "--ensemble", *copies)
    assert "calibrated (temperatures 1, 0.25), not their mean; no confidence threshold" in capsys.readouterr().out
    results = read_results(copies[0] / "results.json")
    one, labels = by_hand(copies[0])
    two, _ = by_hand(copies[1], temperature=0.25)
    together = (one + two) / 2
    assert results["top1"] == top1(together, labels)
    assert results["loss"] == pytest.approx(-together.gather(1, labels[:, None]).log().mean().item(), rel=1e-5)
    assert results["protocol"].startswith("single view, ensemble with") and str(copies[1]) in results["protocol"]


def test_members_with_other_batch_sizes_get_the_same_images(pair: list[Path]) -> None:
    data = [load_run(path, {"batch_size": size})[1] for path, size in zip(pair, (64, 48), strict=True)]
    labels = [[batch.labels for batch in batches] for batches in EnsembleData(data).test_dataloader()]
    assert all(torch.equal(first, second) for first, second in labels) and len(labels) == 8


def test_members_with_other_splits_are_rejected(
    copies: list[Path], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("fit", *SMALL, "--trainer.default_root_dir", place, "--name", "c", "--data.split_seed", "5")
    message = refused(capsys, "test", "--ensemble", copies[0], place / "c/version_0")
    assert str(place / "c/version_0") in message and "split_seed" in message


@pytest.mark.parametrize("joined", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_data_options_apply_to_every_member(joined: bool, photo_folder: Path, place: Path) -> None:
    backbone = ["--model.backbone", "cifar_resnet", "--model.backbone.depth", 8, "--trainer.logger", "false"]
    data = ["--data", "ImageFolder", "--data.root", photo_folder, "--data.image_size", 16, "--data.batch_size", 4]
    for seed in (0, 1):
        few = ["--trainer.max_epochs", 1, "--name", f"seed{seed}", "--seed_everything", seed, "--data.num_workers", 0]
        run("fit", *backbone, *data, *few)
    photo_folder.rename(place / "moved")
    members = [Path(f"runs/seed{seed}/version_0") for seed in (0, 1)]
    root = ["--data.root=moved"] if joined else ["--data.root", "moved"]
    run("test", "--ensemble", *members, *root)
    results = read_results(members[0] / "results.json")
    scores = []
    for member in members:
        model, datamodule = load_run(member, {"root": "moved"})
        with torch.no_grad():
            scores.append(torch.cat([model.probabilities(batch) for batch in datamodule.test_dataloader()]))
            labels = torch.cat([batch.labels for batch in datamodule.test_dataloader()])
    assert results["images"] == len(labels) and results["top1"] == top1((scores[0] + scores[1]) / 2, labels)
