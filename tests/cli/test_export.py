"""`export`: files that agree with the checkpoint, `predict` with them, and what cannot be exported."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

from resnet_pl import load_run
from resnet_pl.data import Letterbox, ResizeCenterCrop
from resnet_pl.data.crops import Crop, Size
from resnet_pl.export.check import Comparison
from resnet_pl.export.formats import WRITERS
from resnet_pl.export.inference import InferenceModel
from tests.cli.commands import printed, refused, run

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

# Height and width: odd remainders, portrait, smaller than the input, aspect ratios above 16, and an ordinary one.
SIZES = [(61, 97), (97, 61), (7, 10), (5, 203), (203, 5), (333, 501), (16, 16)]


def pixels(height: int, width: int) -> np.ndarray:
    """Returns a smooth image with some noise, `(H, W, 3)` uint8: noise alone is gray after resizing."""
    rng = np.random.default_rng(height * width)
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    smooth = np.stack([red, green, 255 - red], -1) + rng.normal(0, 20, (height, width, 3))
    return smooth.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run folder with the checked ONNX file of its best checkpoint."""
    folder = Path(shutil.copytree(trained, tmp_path_factory.mktemp("exported") / "version_0"))
    run("export", "--ckpt_path", folder, "--check")
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Images of all sizes, in folders that are named after classes."""
    for number, size in enumerate(SIZES):
        path = tmp_path / f"photos/{number}/a.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(pixels(*size)).save(path)
    return tmp_path / "photos"


# ------------------------------------------------------------------------------------ the graph
@pytest.mark.parametrize("crop", [ResizeCenterCrop(), Letterbox(7)])
@pytest.mark.parametrize("size", [32, 33, (24, 48), (50, 30)])
def test_the_preprocessing_is_that_of_the_evaluation_within_one_gray_level(crop: Crop, size: Size) -> None:
    class Pixels(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images

        def to_probabilities(self, images: Tensor) -> Tensor:
            return images

    network = InferenceModel(Pixels(), size, crop)  # pyright: ignore[reportArgumentType] - only these methods are used
    for height, width in SIZES:
        image = torch.from_numpy(pixels(height, width))
        expected = crop(image.permute(2, 0, 1), size)
        difference = (network(torch.stack([image, image]))[1] * 255 - expected).abs()
        assert difference.max() < 1.01, (height, width)


def test_the_onnx_file_equals_the_graph_on_images_of_any_size(exported: Path) -> None:
    session = onnxruntime.InferenceSession(exported / "model.onnx", providers=["CPUExecutionProvider"])
    model, data = load_run(exported)
    network = InferenceModel(model, data.image_size, data.eval_crop)
    for size in SIZES:
        images = np.stack([pixels(*size), pixels(*size)[::-1], pixels(*size)[:, ::-1]])
        for count in (1, 3):
            (probabilities,) = session.run(None, {"images": images[:count]})
            with torch.no_grad():
                expected = network(torch.from_numpy(images[:count].copy()))
            assert np.abs(probabilities - expected.numpy()).max() < 1e-4, size
            predicted = model.predict([torch.from_numpy(each.copy()).permute(2, 0, 1) for each in images[:count]])
            assert probabilities.argmax(1).tolist() == [int(each.class_name) for each in predicted], size


def test_the_onnx_file_is_complete_and_describes_itself(exported: Path) -> None:
    import onnx

    model = onnx.load(exported / "model.onnx", load_external_data=False)
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert [each.version for each in model.opset_import if not each.domain] >= [18]
    session = onnxruntime.InferenceSession(exported / "model.onnx", providers=["CPUExecutionProvider"])
    (given,), (returned,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape[3]) == ("images", "tensor(uint8)", 3)
    assert all(isinstance(free, str) for free in given.shape[:3]) and returned.shape[1] == 10
    words = {key: json.loads(each) for key, each in session.get_modelmeta().custom_metadata_map.items()}
    checkpoint = exported / "checkpoints/best.ckpt"
    assert words["checkpoint_sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert words["classes"] == [str(digit) for digit in range(10)] and words["image_size"] == 16
    assert (words["temperature"], words["confidence_threshold"], words["unknown"]) == (1.0, None, "unknown")
    assert words["arch"] == "cifar_resnet" and words["arch_args"]["depth"] == 8


# ------------------------------------------------------------------------------------ int8
@pytest.fixture
def float_file(exported: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The ONNX file of the run, which `export` copies: writing it again would take seconds."""
    path = exported / "model.onnx"
    monkeypatch.setitem(WRITERS, "onnx", lambda network, target, metadata: shutil.copy(path, target))
    return path


def test_int8_is_smaller_and_nearly_as_accurate(
    copy: Path, float_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = printed(capsys, "export", "--ckpt_path", copy, "--int8", "--max_drop", 0.1)
    (row,) = [line.split() for line in out.splitlines() if line.startswith("  top-1 accuracy")]
    images = load_run(copy)[1].split("test")
    given = np.stack([images.load_full_image(index).permute(1, 2, 0).numpy() for index in range(len(images))])
    top1 = []
    for file in (float_file, copy / "model.onnx"):
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        (probabilities,) = session.run(None, {"images": given})
        top1.append((probabilities.argmax(1) == images.labels.numpy()).mean())
    before, after = (float(text.rstrip("%")) for text in row[2:4])
    # The first is that of the checkpoint, whose rounding differs: one in 100 images is close to a tie.
    assert before == pytest.approx(100 * top1[0], abs=1) and after == pytest.approx(100 * top1[1], abs=0.006)
    assert float(row[4]) == pytest.approx(after - before, abs=0.011)
    assert (copy / "model.onnx").stat().st_size < 0.6 * float_file.stat().st_size
    Image.fromarray(pixels(20, 30)).save("digit.png")
    run("predict", "--ckpt_path", copy / "model.onnx", "--images", "digit.png")


def test_int8_that_loses_accuracy_writes_nothing(
    copy: Path, float_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resnet_pl.export.int8.accuracies", lambda comparison: (0.9, 0.85))
    said = refused(capsys, "export", "--ckpt_path", copy, "--int8", "--max_drop", 0.04)
    assert "drops from 90.00% to 85.00%" in said and not list(copy.glob("*model*"))


def test_int8_needs_validation_images(copy: Path, float_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last = copy / "checkpoints/last.ckpt"
    saved = torch.load(last, weights_only=True)
    saved["resnet_pl"]["data"]["splits"].pop("val")
    torch.save(saved, last)
    said = refused(capsys, "export", "--ckpt_path", last, "--int8")
    assert "--int8 needs validation images" in said and not list(copy.glob("*model*"))
    assert "--int8" in refused(capsys, "export", "--ckpt_path", last, "--max_drop", 0.1)
    assert "not possible for pt2" in refused(capsys, "export", "--ckpt_path", last, "--int8", "--format", "pt2")


# ------------------------------------------------------------------------------------ predictions
def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_predict_writes_the_same_files_as_with_the_checkpoint(
    exported: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("predict", "--ckpt_path", exported, "--images", photos, "--output", "checkpoint")
    out = printed(capsys, "predict", "--ckpt_path", exported / "model.onnx", "--images", photos)
    expected, found = rows(Path("checkpoint")), rows(exported)
    assert f"Saved to {exported / 'predictions.csv'} and {exported / 'contact_sheet.png'}" in out
    assert len(found) == len(SIZES) and [row.keys() for row in found] == [row.keys() for row in expected]
    for one, two in zip(expected, found, strict=True):
        assert [one[key] for key in ("path", "truth")] == [two[key] for key in ("path", "truth")]
        assert float(one["probability"]) == pytest.approx(float(two["probability"]), abs=0.02)
        assert one["prediction"] == two["prediction"] or float(one["probability"]) - float(one["probability_2"]) < 0.02


def test_a_calibrated_file_without_preprocessing(exported: Path, photos: Path) -> None:
    content = torch.load(exported / "checkpoints/best.ckpt", weights_only=True)
    content["resnet_pl"]["calibration"] = {"temperature": 3.0, "threshold": 0.5}
    torch.save(content, "calibrated.ckpt")
    run("export", "--ckpt_path", "calibrated.ckpt", "--preprocessing", "none", "--check", "--images", photos)
    session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
    words = {key: json.loads(each) for key, each in session.get_modelmeta().custom_metadata_map.items()}
    assert (words["temperature"], words["confidence_threshold"]) == (3.0, 0.5)
    assert words["input"] == "float32 (N, 3, 16, 16) in [0, 1]"
    model, _ = load_run(exported)
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    (found,) = session.run(None, {"images": images.numpy()})
    with torch.no_grad():
        assert np.abs(found - (model(images) / 3).softmax(1).numpy()).max() < 1e-5
    run("predict", "--ckpt_path", "model.onnx", "--images", photos)
    unknown = [row["prediction"] == "unknown" for row in rows(Path())]
    assert any(unknown)


# ------------------------------------------------------------------------------------ the check
def test_a_file_that_differs_is_not_written(
    exported: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    export = ["export", "--ckpt_path", exported, "--output", "new/model.pt2", "--check", "--images", photos]
    monkeypatch.setattr("resnet_pl.export.check.LARGEST", 0.0)
    message = refused(capsys, *export)
    assert "largest difference of a probability: 0.0" in message and "limit 0.0" in message
    assert not list(Path("new").iterdir())
    monkeypatch.undo()
    out = printed(capsys, *export)
    assert "7 images" in out and "equal predictions, margin > 0.02" in out and "new/model.pt2" in out
    module = torch.export.load("new/model.pt2").module()
    model, _ = load_run(exported)
    for size in SIZES:
        image = torch.from_numpy(pixels(*size))
        expected = model.predict(image.permute(2, 0, 1))[0].probabilities
        assert (module(image[None])[0] - expected).abs().max() < 0.02


def test_only_clear_predictions_must_be_equal() -> None:
    expected = torch.tensor([[0.505, 0.495], [0.9, 0.1], [0.2, 0.8]])
    swapped = torch.tensor([[0.495, 0.505], [0.9, 0.1], [0.2, 0.8]])
    labels = torch.tensor([0, 0, -1])
    assert Comparison(expected, swapped, labels).problem() == "mean difference of a probability: 0.0033, limit 0.001"
    assert [row[1] for row in Comparison(expected, swapped, labels).rows()][::3] == ["2 of 2", "100.00%, 50.00%"]
    thresholds = torch.tensor([0.3, 0.79])  # several classes: the second decision of the last image is not clear
    several = Comparison(expected, expected.roll(1, 1), labels, thresholds)
    assert several.rows()[0][1:] == ("2 of 5", "all", False)
    unusable = Comparison(expected, torch.full_like(expected, torch.nan), labels).problem()
    assert unusable is not None and "largest difference of a probability: nan" in unusable


# ------------------------------------------------------------------------------------ weights
class OwnCrop(ResizeCenterCrop):
    """A crop of the user's own for training and evaluation."""

    def for_evaluation(self) -> Crop:
        return self


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a ResNet-18 whose images are gone."""
    from tests.conftest import write_photos

    root = tmp_path_factory.mktemp("resnet")
    photos = write_photos(root / "photos", count=4)
    few = ["--trainer.limit_train_batches", 1, "--trainer.max_epochs", 1, "--trainer.logger", "false"]
    data = ["--data", "ImageFolder", "--data.root", photos, "--data.image_size", 32, "--data.num_workers", 0]
    run("fit", *data, "--data.batch_size", 4, "--model.backbone", "resnet18", *few, "--trainer.default_root_dir", root)
    shutil.rmtree(photos)
    return root / "resnet/version_0"


def test_weights_load_into_torchvision(resnet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    out = printed(capsys, "export", "--ckpt_path", resnet, "--format", "safetensors")
    path = resnet / "model.safetensors"
    assert f"Saved to {path}" in out and stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(
        (resnet / "config.yaml").stat().st_mode
    )
    with safetensors.safe_open(path, "pt") as file:
        words = {name: json.loads(each) for name, each in file.metadata().items()}
    assert (words["arch"], words["classes"], words["image_size"]) == ("resnet18", ["ant", "bee", "cat"], 32)
    network = getattr(torchvision.models, words["arch"])(num_classes=len(words["classes"])).eval()
    network.load_state_dict(safetensors.load_file(path))
    model, _ = load_run(resnet, data=[None])  # without the images of the training
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(words[name])[:, None, None] for name in ("mean", "std"))
    with torch.no_grad():
        assert torch.allclose(network((images / 255 - mean) / std), model(images), atol=1e-5)
