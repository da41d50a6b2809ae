"""`export`: files that agree with the checkpoint, `predict` with them, and what cannot be exported."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

from resnet_pl import ImageClassifier, cifar_resnet, load_model, load_run
from resnet_pl.cli.export import inference_model
from resnet_pl.cli.main import main
from resnet_pl.data import CenterCrop, Letterbox, ResizeCenterCrop
from resnet_pl.data.crops import Crop
from resnet_pl.data.decode import PixelFormat
from resnet_pl.data.resizing import Size
from resnet_pl.evaluation.classify import Preprocessing
from resnet_pl.export.check import Comparison, read_images
from resnet_pl.export.formats import WRITERS
from resnet_pl.export.inference import InferenceModel, exporting
from resnet_pl.utils import UserError
from tests.cli.commands import PROJECT, printed, refused, run
from tests.conftest import MakePhotos, write_photos

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

# Height and width: odd remainders, portrait, smaller than the input, aspect ratios above 16, and an ordinary one.
SIZES = [(61, 97), (97, 61), (7, 10), (5, 203), (203, 5), (333, 501), (16, 16)]

THRESHOLD = 0.5


def pixels(height: int, width: int) -> np.ndarray:
    """Returns a smooth image with some noise, `(H, W, 3)` uint8: noise alone is gray after resizing."""
    rng = np.random.default_rng(height * width)
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    smooth = np.stack([red, green, 255 - red], -1) + rng.normal(0, 20, (height, width, 3))
    return smooth.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run folder with a calibrated checkpoint and its checked ONNX file."""
    folder = Path(shutil.copytree(trained, tmp_path_factory.mktemp("exported") / "version_0"))
    content = torch.load(folder / "checkpoints/best.ckpt", weights_only=True)
    content["resnet_pl"]["calibration"] = {"temperature": 0.1, "threshold": THRESHOLD}
    torch.save(content, folder / "checkpoints/best.ckpt")
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
@pytest.mark.parametrize("crop", [ResizeCenterCrop(), CenterCrop(), Letterbox(7)])
@pytest.mark.parametrize("size", [32, 33, (24, 48), (50, 30)])
def test_the_preprocessing_is_that_of_the_evaluation_within_one_gray_level(crop: Crop, size: Size) -> None:
    class Pixels(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images

        def to_probabilities(self, images: Tensor) -> Tensor:
            return images

    changed = []
    network = InferenceModel(Pixels(), size, crop)  # pyright: ignore[reportArgumentType] - only these methods are used
    for height, width in SIZES:
        image = torch.from_numpy(pixels(height, width))
        expected = crop(image.permute(2, 0, 1), size)
        difference = (network(torch.stack([image, image]))[1] * 255 - expected).abs()
        assert difference.max() < 1.01, (height, width)
        changed.append((difference > 0.5).float().mean().item())
    # Without rounding between width and height it is a tenth.
    assert np.mean(changed) < 0.02


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
            assert np.abs(probabilities - expected.numpy()).max() < 1e-3, size
            predicted = model.predict([torch.from_numpy(each.copy()).permute(2, 0, 1) for each in images[:count]])
            for row, prediction in zip(probabilities, predicted, strict=True):
                assert np.abs(row - prediction.probabilities.numpy()).max() < 0.02, size


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
    assert (words["temperature"], words["confidence_threshold"], words["unknown"]) == (0.1, THRESHOLD, "unknown")
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
    for file in (float_file, copy / "model-int8.onnx"):
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        (probabilities,) = session.run(None, {"images": given})
        top1.append((probabilities.argmax(1) == images.labels.numpy()).mean())
    before, after = (float(text.rstrip("%")) for text in row[2:4])
    # The first is that of the checkpoint, whose rounding differs: one in 100 images is close to a tie.
    assert before == pytest.approx(100 * top1[0], abs=1) and after == pytest.approx(100 * top1[1], abs=0.006)
    assert float(row[4]) == pytest.approx(after - before, abs=0.011)
    assert (copy / "model-int8.onnx").stat().st_size < 0.6 * float_file.stat().st_size
    Image.fromarray(pixels(20, 30)).save("digit.png")
    run("predict", "--ckpt_path", copy / "model-int8.onnx", "--images", "digit.png")


def test_int8_that_loses_accuracy_writes_nothing(
    copy: Path, float_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resnet_pl.export.check.Comparison.accuracies", lambda comparison: (0.9, 0.85))
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
        best, second = float(one["probability_1"]), float(one["probability_2"])
        assert best == pytest.approx(float(two["probability_1"]), abs=0.02)
        if min(abs(best - THRESHOLD), best - second) > 0.02:
            assert one["prediction"] == two["prediction"]
    assert 0 < [row["prediction"] for row in found].count("unknown") < len(SIZES)


# ------------------------------------------------------------------------------------ the check
def test_a_file_that_differs_is_not_written(
    exported: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("resnet_pl.export.check.LARGEST", -1)
    Path("model.pt2").write_text("the file of an earlier export")
    export = ["export", "--ckpt_path", exported, "--output", "model.pt2", "--check", "--images", photos]
    message = refused(capsys, *export, "--preprocessing", "none")
    assert re.search(r"largest difference of a probability: [0-9.e-]+, limit -1", message)
    assert [path.name for path in Path().iterdir()] == ["model.pt2"]
    assert Path("model.pt2").read_text() == "the file of an earlier export"


def test_sigterm_leaves_no_file(exported: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The process of the tests must not end if the command does not handle the signal.
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    monkeypatch.setitem(WRITERS, "safetensors", lambda *_: signal.raise_signal(signal.SIGTERM))
    try:
        assert main(["export", "--ckpt_path", str(exported), "--output", "model.safetensors"]) == 143
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not [*place.iterdir()]


def test_temporary_files_of_killed_exports_are_removed(exported: Path, place: Path) -> None:
    killed, running = Path(".model.safetensors.0123abcd"), Path(".model.safetensors.4567cdef")
    for path in (killed, running):
        path.touch()
    os.utime(killed, (0, 0))
    run("export", "--ckpt_path", exported, "--output", "model.safetensors")
    assert Path("model.safetensors").exists() and running.exists() and not killed.exists()


@pytest.mark.parametrize("preprocessing", ["none", pytest.param("graph", marks=pytest.mark.slow)])
def test_a_graph_of_torch_export_agrees_with_the_checkpoint(
    preprocessing: str, exported: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export = ["export", "--ckpt_path", exported, "--output", "new/model.pt2", "--check", "--images", photos]
    out = printed(capsys, *export, "--preprocessing", preprocessing)
    assert "7 images" in out and "equal predictions, margin > 0.02" in out
    assert 'torch.export.load("new/model.pt2").module()' in out
    assert ("float32 (N, 3, 16, 16) in [0, 1]" if preprocessing == "none" else "uint8 (N, H, W, 3) RGB") in out
    with zipfile.ZipFile("new/model.pt2") as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("resnet_pl.json"))
        words = json.loads(archive.read(name))
    assert json.loads(words["classes"]) == [str(digit) for digit in range(10)]
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    if preprocessing == "none":
        model, _ = load_run(exported)
        found = torch.export.load("new/model.pt2").module()(images)
        with torch.no_grad():
            assert torch.allclose(found, (model(images) / 0.1).softmax(1), atol=1e-5)


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
    model = load_model(resnet)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(words[name])[:, None, None] for name in ("mean", "std"))
    with torch.no_grad():
        assert torch.allclose(network((images / 255 - mean) / std), model(images), atol=1e-5)


# ------------------------------------------------------------------------------------ docs/deploy.md
@pytest.mark.skipif(not (PROJECT / "docs").exists(), reason="a project without the docs")
def test_the_client_of_the_page_needs_no_package_of_this_project(exported: Path, photos: Path) -> None:
    page = (PROJECT / "docs/deploy.md").read_text(encoding="utf-8")
    code = re.search(r"^```python\n(# client\.py.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert code is not None and code[1].count("\n") <= 25
    Path("client.py").write_text(code[1] + "assert not {'torch', 'resnet_pl'} & sys.modules.keys()\n")
    rotated = Image.Exif()
    rotated[0x0112] = 6  # turned by 90 degrees
    Image.fromarray(pixels(60, 90)).save("turned.jpg", exif=rotated)
    Image.fromarray(pixels(60, 90)).convert("RGBA").save("clear.png")
    clear = Image.open("clear.png")
    clear.putalpha(Image.fromarray(pixels(60, 90)[:, :, 1]))
    clear.save("clear.png")
    paths = ["turned.jpg", "clear.png", *map(str, sorted(photos.rglob("*.png")))]
    words = [sys.executable, "client.py", str(exported / "model.onnx"), *paths]
    found = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    model, _ = load_run(exported)
    for line, path, expected in zip(found, paths, model.predict(paths), strict=True):
        name, _, probability = line.removeprefix(path).strip().rpartition(" ")
        assert name == expected.class_name
        assert float(probability) == pytest.approx(expected.probability, abs=0.01)


# ------------------------------------------------------------------------------------ bad input
def test_what_cannot_be_exported_is_refused_in_two_lines(
    exported: Path, resnet: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    export = ["export", "--ckpt_path", exported]
    assert "safetensors" in refused(capsys, *export, "--format", "coreml")
    assert ".onnx, .pt2, .safetensors" in refused(capsys, *export, "--output", "model.pt")
    assert "end its name with .onnx" in refused(capsys, *export, "--output", "model.pt2", "--format", "onnx")
    assert "--check" in refused(capsys, *export, "--images", "photos")
    assert "weights alone" in refused(capsys, *export, "--format", "safetensors", "--check")
    assert "gone.ckpt" in refused(capsys, "export", "--ckpt_path", "gone.ckpt")
    assert "a checkpoint" in refused(capsys, "export", "--model.weights", "ResNet18_Weights.DEFAULT")
    photos = ["export", "--ckpt_path", resnet]
    message = refused(capsys, *photos, "--data.crop", f"{__name__}.OwnCrop")
    assert "the crop OwnCrop" in message and "--preprocessing none" in message
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert "onnxscript" in refused(capsys, *export)
    assert not list(Path().iterdir())


class Branching(nn.Module):
    """A network that torch cannot export: a branch depends on the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(images.mean((2, 3))) * (2 if images.sum() > 0 else 1)


class FewFiles:
    """Three image files; the second one is damaged."""

    names = ("0.png", "1.png", "2.png")
    pixel_format = PixelFormat()

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in self.names:
            Image.fromarray(pixels(20, 30)).save(root / name)
        (root / "1.png").write_bytes((root / "1.png").read_bytes()[:200])


def test_an_unsupported_operation_is_named() -> None:
    model = ImageClassifier(Branching(), num_classes=10, channels_last=False).eval()
    model.configure_model()
    with pytest.raises(UserError, match=r"Branching cannot be exported: .*\n.*--format safetensors"):
        InferenceModel(model, 16, ResizeCenterCrop()).trace()


def test_an_unreadable_image_is_named_or_skipped(tmp_path: Path) -> None:
    images, network = FewFiles(tmp_path), InferenceModel(ImageClassifier(cifar_resnet(8)), 16, ResizeCenterCrop())
    with pytest.raises(UserError, match=r"1\.png"), exporting(network.model):
        list(read_images(images, range(3), skip_bad=False))
    assert [index for index, _ in read_images(images, range(3), skip_bad=True)] == [0, 2]
    with pytest.raises(OSError, match="full"), exporting(network.model):
        raise OSError(28, "the disk is full")


def test_images_with_other_channels_need_no_preprocessing() -> None:
    model, gray = ImageClassifier(cifar_resnet(8)), Preprocessing(16, ResizeCenterCrop(), PixelFormat(1))
    with pytest.raises(UserError, match=r"images with 1 channel cannot be exported\nadd --preprocessing none"):
        inference_model(model, gray, "onnx", prepared=False)
    network, takes = inference_model(model, gray, "onnx", prepared=True)
    assert network.channels == 1 and takes == "float32 (N, 1, 16, 16) in [0, 1]"


def test_predict_reads_images_as_the_training_did(place: Path) -> None:
    for number, name in enumerate(["a/0", "a/1", "b/2", "b/3", "b/4", "a/5"]):
        Path(name).parent.mkdir(exist_ok=True)
        values = pixels(20, 20 + number)[:, :, 0].astype(np.uint16) * 10
        Image.fromarray(values).save(f"{name}.png")  # 12 bits
    data = ["--data.root", ".", "--data.in_channels", 1, "--data.max_value", 4095, "--data.image_size", 16]
    data += [
        "--data.mean",
        "channel",
        "--data.std",
        "channel",
        "--data.batch_transforms",
        "[]",
        "--data.num_workers",
        0,
    ]
    net = ["--model.backbone", "cifar_resnet", "--model.backbone.depth", 8, "--model.backbone.in_channels", 1]
    few = ["--trainer.max_steps", 1, "--trainer.logger", "false", "--data.val_split", 0.34, "--data.test_split", 0]
    run("fit", "--data", "ImageFolder", *data, *net, *few, "--data.batch_size", 2)
    run("export", "--ckpt_path", "best", "--preprocessing", "none", "--output", "model.onnx")
    run("predict", "--ckpt_path", "model.onnx", "--images", "a", "b", "--output", "file")
    run("predict", "--ckpt_path", "best", "--images", "a", "b", "--output", "checkpoint")
    for one, two in zip(rows(Path("checkpoint")), rows(Path("file")), strict=True):
        assert float(one["probability"]) == pytest.approx(float(two["probability"]), abs=1e-4)


def test_other_onnx_files_are_refused(exported: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from onnx import TensorProto, helper, save_model

    given = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N"])
    graph = helper.make_graph([helper.make_node("Relu", ["images"], ["probabilities"])], "other", [given], [
        helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N"])
    ])  # fmt: skip
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), "other.onnx")
    Path("damaged.onnx").write_bytes((exported / "model.onnx").read_bytes()[:5000])
    predict = ["predict", "--images", photos, "--ckpt_path"]
    assert "other.onnx was not written by this project" in refused(capsys, *predict, "other.onnx")
    assert "damaged.onnx cannot be read" in refused(capsys, *predict, "damaged.onnx")
    assert "--images FILES" in refused(capsys, "predict", "--ckpt_path", exported / "model.onnx")
    assert "--tta" in refused(capsys, *predict, exported / "model.onnx", "--tta", "flip")
    assert "not a checkpoint" in refused(capsys, "test", "--ckpt_path", exported / "model.onnx")


# ------------------------------------------------------------------------------------ other networks
NETWORKS = {
    **{f"resnet{depth}": ["--data.image_size", 64] for depth in (18, 34, 50, 101, 152)},
    "cifar_resnet": ["--model.backbone.depth", 20, "--data.image_size", 33],
    "torchvision.models.convnext_tiny": ["--data.image_size", "[64,96]"],
    "torchvision.models.vit_b_16": ["--data.image_size", 224, "--data.crop", "Letterbox"],
    "timm.create_model": ["--model.backbone.model_name", "mobilenetv3_small_100", "--data.image_size", 64],
}


@pytest.mark.slow
@pytest.mark.parametrize("backbone", NETWORKS)
def test_other_networks(backbone: str, photos: Path, make_photos: MakePhotos) -> None:
    if backbone.startswith("timm"):
        pytest.importorskip("timm")
    training = make_photos(Path("training"), count=4)
    data = ["--data", "ImageFolder", "--data.root", training, "--data.num_workers", 0, "--data.batch_size", 4]
    few = ["--trainer.limit_train_batches", 1, "--trainer.max_epochs", 1, "--trainer.logger", "false"]
    run("fit", *data, *few, "--model.backbone", backbone, *NETWORKS[backbone], "--model.optimizer.lr", 0.001)
    checkpoint = Path("runs/resnet/version_0/checkpoints/best.ckpt")
    content = torch.load(checkpoint, weights_only=True)
    # After one step the outputs are large. Without it, a difference of one gray level changes probabilities by more.
    content["resnet_pl"]["calibration"] = {"temperature": 2.0, "threshold": None}
    torch.save(content, checkpoint)
    for form in ("onnx", "pt2"):
        run("export", "--ckpt_path", "best", "--format", form, "--check", "--images", photos)


@pytest.mark.slow
def test_several_classes_per_image(tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = sorted(photos.rglob("*.png"))
    lines = [f"{path},{'a;b' if i % 2 else 'b'},{'train' if i < 4 else 'val'}" for i, path in enumerate(paths)]
    Path("labels.csv").write_text("\n".join(["path,label,split", *lines]))
    few = ["--trainer.limit_train_batches", 1, "--trainer.max_epochs", 1, "--trainer.logger", "false"]
    data = [
        "--data",
        "ImageTable",
        "--data.labels",
        "labels.csv",
        "--data.label_separator",
        ";",
        "--data.num_workers",
        0,
    ]
    net = ["--model.backbone", "cifar_resnet", "--model.backbone.depth", 8, "--data.image_size", 16]
    run("fit", *data, *net, *few, "--data.batch_size", 4, "--data.num_workers", 0)
    out = printed(capsys, "export", "--ckpt_path", "best", "--check", "--images", photos)
    assert "equal decisions per class, margin > 0.02" in out
    run("predict", "--ckpt_path", "best", "--images", photos, "--output", "checkpoint")
    run("predict", "--ckpt_path", "runs/resnet/version_0/model.onnx", "--images", photos, "--output", "file")
    assert [row["prediction"] for row in rows(Path("file"))] == [row["prediction"] for row in rows(Path("checkpoint"))]
