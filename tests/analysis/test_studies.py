"""`paper responses`, `paper gradients` and `paper lesion` on the command line, with small runs."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from PIL import Image

from resnet_pl import ImageClassifier, load_run
from resnet_pl.analysis import STUDIES
from resnet_pl.analysis.layers import load
from resnet_pl.analysis.responses import response_stds
from resnet_pl.cli import main
from resnet_pl.data import Digits

PROJECT = Path(__file__).parent.parent.parent
SMALL = [
    *["fit", "--config", str(PROJECT / "configs/digits.yaml"), "--model.backbone.depth", "8", "--seed_everything", "3"],
    *["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--dashboard.graph", "false"],
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A residual run, a plain run with a learning rate of zero, and a run of a model without BatchNorm."""
    root = tmp_path_factory.mktemp("layers")
    still = ["--name", "still", "--model.backbone", "cifar_plain", "--model.optimizer.lr", "0"]
    bare = ["--name", "bare", "--model.backbone", "torchvision.models.squeezenet1_1", "--model.optimizer.lr", "0"]
    for options in ([], still):
        assert main.main([*SMALL, *options, "--trainer.default_root_dir", str(root)]) == 0
    other = [word for word in SMALL if word not in ("--model.backbone.depth", "8")]
    assert main.main([*other, *bare, "--data.image_size", "32", "--trainer.default_root_dir", str(root)]) == 0
    return root


def run(folder: Path, study: str, *argv: object) -> list[dict[str, str]]:
    """Runs a study that must succeed; returns the rows of its CSV."""
    assert main.main(["paper", study, *map(str, argv), "--output", str(folder)]) == 0
    assert Image.open(folder / f"{study}.png").size[0] == 1080
    with (folder / f"{study}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def error_of(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    capsys.readouterr()
    assert main.main(["paper", *map(str, argv)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[0].startswith("error: ") and len(lines) <= 2
    return "\n".join(lines)


@pytest.mark.parametrize("argv", [["paper"], ["paper", "--help"], ["paper", "-h"]])
def test_the_studies_are_listed(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(argv) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert listed == STUDIES == ["responses", "gradients", "lesion", "shattering", "curves"]


@pytest.mark.parametrize("study", STUDIES)
def test_a_study_has_a_help_page(study: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["paper", study, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"paper {study} " in shown and "--output" in shown and len(shown.splitlines()) < 40


@pytest.mark.parametrize("study", STUDIES)
def test_without_the_word_paper_the_command_is_suggested(study: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main([study, "runs", "--output", "x"]) == 2
    assert f"paper {study}" in capsys.readouterr().err


def test_an_unknown_study_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    message = error_of(capsys, "respones")
    assert "respones" in message and "responses, gradients" in message
    assert "--output" in error_of(capsys, "--output", "x")


def test_responses_of_several_models(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = run(tmp_path, "responses", runs / "digits/version_0", runs / "still/version_0/checkpoints/last.ckpt")
    assert [row["model"] for row in rows] == ["cifar_resnet 8"] * 7 + ["cifar_plain 8"] * 7
    assert [row["index"] for row in rows] == [str(i) for i in range(1, 8)] * 2
    assert "180 images, the val split" in capsys.readouterr().out
    checkpoint = runs / "digits/version_0/checkpoints/best.ckpt"
    assert rows[0]["checkpoint"] == str(checkpoint) and rows[0]["layer"] == "conv1" and rows[0]["step"] == "2"
    model = ImageClassifier.load_from_checkpoint(checkpoint, map_location="cpu").eval()
    data = Digits()
    data.setup("fit")
    outputs = []
    model.backbone.layer3[0].bn2.register_forward_hook(lambda module, inputs, output: outputs.append(output.clone()))
    with torch.no_grad():
        model(data.splits["val"].images)
    assert rows[6]["layer"] == "layer3.0.conv2"
    assert float(rows[6]["std"]) == pytest.approx(float(outputs[0].double().std(correction=0)), rel=1e-6)


def test_responses_on_part_of_another_split(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full = run(tmp_path, "responses", runs / "digits/version_0", "--split", "train")
    assert "1,257 images, the train split" in full[0]["measured_on"]
    part = run(tmp_path, "responses", runs / "digits/version_0", "--split", "train", "--images", 100)
    assert "100 of 1,257 images" in part[0]["measured_on"]
    loaded = load(runs / "digits/version_0")
    chosen = loaded.data.split("train").images[[number * 1257 // 100 for number in range(100)]]
    direct = response_stds(loaded.model.backbone, [chosen], loaded.model)
    assert [float(row["std"]) for row in part] == pytest.approx(list(direct.values()), rel=1e-6)


def test_images_in_another_folder(
    photo_folder: Path, make_photos, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit = ["--config", PROJECT / "configs/folder.yaml", "--model.weights", "null", "--data.root", photo_folder]
    fit += ["--model.backbone", "cifar_resnet", "--model.backbone.depth", 8, "--data.image_size", 16]
    fit += ["--data.num_workers", 0, "--trainer.max_steps", 1, "--trainer.default_root_dir", tmp_path / "runs"]
    assert main.main(["fit", *map(str, fit)]) == 0
    checkpoint = next((tmp_path / "runs").rglob("last.ckpt"))
    moved = ["--data.root", photo_folder.rename(tmp_path / "moved")]
    training = ["responses", checkpoint, "--split", "train", *moved]
    rows = run(tmp_path, *training)
    assert "24 images, the train split" in rows[0]["measured_on"]
    assert len(run(tmp_path, "gradients", checkpoint, *moved)) == len(rows) + 1
    # Training crops are not applied: another crop changes nothing.
    loaded = load(checkpoint, [*map(str, moved), "--data.crop", "ResizeCenterCrop"])
    images = torch.stack([loaded.data.split("train")[0, index][0] for index in range(24)])
    direct = response_stds(loaded.model.backbone, [images], loaded.model)
    assert [float(row["std"]) for row in rows] == pytest.approx(list(direct.values()), rel=1e-5)
    other = make_photos(tmp_path / "other", first=50)
    assert "train" in error_of(capsys, "gradients", checkpoint, "--data.root", other)


def test_initial_gradients_are_those_of_the_run(runs: Path, tmp_path: Path) -> None:
    rows = run(tmp_path, "gradients", runs / "still/version_0", runs / "digits/version_0", "--batches", 3)
    assert [row["layer"] for row in rows[6:8]] == ["layer3.0.conv2", "fc"] and len(rows) == 16
    assert rows[0]["measured_on"].startswith("3 batches of 64, the train split")
    # With a learning rate of zero the checkpoint has the initial weights.
    for row in rows[:8]:
        assert float(row["initial"]) == pytest.approx(float(row["trained"]), rel=1e-6) and float(row["initial"]) > 0
    assert all(float(row["initial"]) != pytest.approx(float(row["trained"]), rel=1e-3) for row in rows[8:])


def test_gradients_agree_with_a_backward_pass(runs: Path, tmp_path: Path) -> None:
    checkpoint = runs / "digits/version_0/checkpoints/last.ckpt"
    rows = run(tmp_path, "gradients", checkpoint, "--batches", 1)
    model = ImageClassifier.load_from_checkpoint(checkpoint, map_location="cpu").train()
    data = Digits()
    data.setup("fit")
    batch = data.augment(next(iter(data.train_dataloader())))
    torch.nn.functional.cross_entropy(model(batch.images), batch.labels, label_smoothing=0.1).backward()
    for row in rows:
        weight = model.backbone.get_submodule(row["layer"]).weight
        assert float(row["trained"]) == pytest.approx(float(weight.grad.norm()), rel=1e-4)


def test_errors_without_blocks(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [runs / "digits/version_0", runs / "still/version_0"]
    rows = run(tmp_path, "lesion", *paths, "--counts", 2, "--images", 150, "--draws", 2)
    text = capsys.readouterr().out
    assert "150 of 180 images, the val split" in text
    assert "cifar_plain 8: not deleted, because they change the dimensions: layer2.0, layer3.0" in text
    blocks = ["layer1.0", "layer2.0", "layer3.0"]
    residual = [row for row in rows if row["model"] == "cifar_resnet 8"]
    assert [row["blocks"] for row in residual[:4]] == ["", *blocks] and [row["deleted"] for row in residual[4:]] == [
        "2"
    ] * 2
    assert [row["blocks"] for row in rows[len(residual) :]] == ["", "layer1.0"]
    model, data = load_run(paths[0])
    images = data.split("val")
    chosen = [number * 180 // 150 for number in range(150)]

    def error() -> float:
        with torch.no_grad():
            wrong = model(images.images[chosen]).argmax(1) != images.labels[chosen]
        return 100 * float(wrong.float().mean())

    expected = [error()]
    for name in blocks:
        block = model.backbone.get_submodule(name)
        hook = block.register_forward_hook(lambda block, inputs, output: block.downsample(inputs[0]).relu())
        expected.append(error())
        hook.remove()
    assert [float(row["error"]) for row in residual[:4]] == pytest.approx(expected, abs=1e-4)
    assert len(set(expected)) > 1
    assert "squeezenet1_1 has no block" in error_of(capsys, "lesion", runs / "bare/version_0")


def test_errors(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "squeezenet1_1 has no 3×3 convolution" in error_of(capsys, "responses", runs / "bare/version_0")
    assert "checkpoint not found" in error_of(capsys, "responses", tmp_path)
    checkpoint = (runs / "digits/version_0/checkpoints/best.ckpt").read_bytes()
    Path("half.ckpt").write_bytes(checkpoint[: len(checkpoint) // 2])
    assert "half.ckpt is truncated" in error_of(capsys, "gradients", "half.ckpt")
    assert "invalid choice" in error_of(capsys, "responses", runs / "digits/version_0", "--split", "all")
    assert "checkpoints" in error_of(capsys, "gradients")
    assert "batches" in error_of(capsys, "gradients", runs / "digits/version_0", "--batches", 0)
    Path("file").touch()
    assert "cannot be written" in error_of(capsys, "responses", runs / "digits/version_0", "--output", "file")


def test_a_module_of_another_kind_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit = ["fit", "--model", "tests.own.PlainModule", "--data", "tests.own.PlainData", "--trainer.max_epochs", "1"]
    assert main.main([*fit, "--trainer.default_root_dir", str(tmp_path), "--checkpoint.monitor", "val_acc"]) == 0
    checkpoint = next(tmp_path.rglob("last.ckpt"))
    for study in ("responses", "gradients", "lesion"):
        assert "needs an ImageClassifier" in error_of(capsys, study, checkpoint)
