"""`Letterbox`, and inputs that are not square: crops, training, evaluation, prediction."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resnet_pl import ImageClassifier, ImageFolder, cifar_resnet, fit, load_run
from resnet_pl.data import Letterbox, RandomResizedCrop, ResizeCenterCrop, ScaleCrop
from resnet_pl.data.crops import Crop
from resnet_pl.data.rng import seeded_rng
from resnet_pl.utils import UserError
from tests.cli.commands import PROJECT, refused, run

SMALL = [
    *["--config", PROJECT / "configs/folder.yaml", "--data.batch_size", 8, "--data.num_workers", 0],
    *["--model.weights", "null", "--model.backbone", "cifar_resnet", "--model.backbone.depth", 8],
    *["--model.optimizer.lr", 0.05, "--dashboard", "false", "--trainer.log_every_n_steps", 1],
]


def write_edges(root: Path) -> Path:
    """Writes wide photos of two classes, which differ at the left edge only: a center crop does not show it."""
    rng = np.random.default_rng(0)
    for name, bar in (("left", 255), ("none", 100)):
        (root / name).mkdir(parents=True)
        for number in range(12):
            pixels = rng.integers(90, 110, (40, 120, 3), dtype=np.uint8)
            pixels[:, :24] = bar
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_edges(tmp_path / "photos")


def test_letterbox_keeps_the_entire_image() -> None:
    wide = torch.full((3, 30, 60), 200, dtype=torch.uint8)
    wide[:, :, :2] = 0
    padded = Letterbox(fill=7)(wide, 20)
    assert padded.shape == (3, 20, 20) and padded.dtype == torch.uint8
    assert (padded[:, :5] == 7).all() and (padded[:, 15:] == 7).all() and (padded[:, 5:15, 1:] > 190).all()
    assert (padded[:, 5:15, 0] < 100).all(), "the left edge is visible"
    assert (Letterbox()(wide.transpose(1, 2), 20)[:, :, :5] == 128).all()
    assert (Letterbox(7)(wide, (10, 20))[:, :, 1:] > 190).all(), "no padding: the shapes agree"
    for shape in ((1, 500), (500, 1), (3, 3)):
        assert Letterbox()(torch.zeros(3, *shape, dtype=torch.uint8), (16, 24)).shape == (3, 16, 24)
    with pytest.raises(ValueError, match="Letterbox: fill is 256"):
        Letterbox(256)


@pytest.mark.parametrize("crop", [ScaleCrop(), RandomResizedCrop(), ResizeCenterCrop(), Letterbox()])
@pytest.mark.parametrize("shape", [(300, 400), (400, 300), (50, 30), (1, 500), (500, 1)])
def test_any_image_becomes_a_rectangle(crop: Crop, shape: tuple[int, int]) -> None:
    assert crop(torch.zeros(3, *shape, dtype=torch.uint8), (16, 48)).shape == (3, 16, 48)
    assert crop(torch.zeros(3, *shape, dtype=torch.uint8), (48, 16)).shape == (3, 48, 16)


@pytest.mark.parametrize("crop", [ScaleCrop(), RandomResizedCrop()])
def test_boxes_have_the_shape_of_the_input(crop: Crop) -> None:
    with seeded_rng(0):
        boxes = torch.tensor([crop.get_params(500, 600, (32, 96)) for _ in range(400)], dtype=torch.float64)
    ratios = boxes[:, 3] / boxes[:, 2]
    assert ratios.median() == pytest.approx(3, rel=0.1)
    assert ratios.max() <= 3 * 4 / 3 * 1.05 and ratios.min() >= 3 * 3 / 4 * 0.95
    assert (boxes[:, 1] + boxes[:, 3]).max() > 560 and boxes[:, 1].min() < 40


def test_a_network_for_entire_images_is_evaluated_on_entire_images(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data.root", photos, "--data.image_size", 32, "--data.crop", "Letterbox"]
    run("fit", *SMALL, *data, "--trainer.max_epochs", 4, "--name", "boxed", "--data.crop.fill", 20)
    run("test", "--ckpt_path", "best", "--name", "boxed", "--tta", "flip")
    folder = Path("runs/boxed/version_0")
    results = json.loads((folder / "results.json").read_text())
    assert results["top1"] == 1.0, "the class is visible only at the edge"
    message = refused(capsys, "test", "--ckpt_path", "best", "--name", "boxed", "--tta", "10-crop")
    assert "Letterbox" in message and "--tta flip" in message
    run("predict", "--ckpt_path", "best", "--name", "boxed", "--images", photos)
    with (folder / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["prediction"] for row in rows] == [Path(row["path"]).parent.name for row in rows] and len(rows) == 24
    # From the checkpoint alone, also without the data.
    alone = ImageClassifier.load_from_checkpoint(folder / "checkpoints/best.ckpt", map_location="cpu")
    model, _ = load_run(folder)
    for each in (alone, model):
        assert isinstance(crop := each.preprocessing.eval_crop, Letterbox) and crop.fill == 20
        names = [prediction.class_name for prediction in each.predict(str(photos))]
        assert names == ["left"] * 12 + ["none"] * 12


class Own(Letterbox):
    """A crop of the user's own that also evaluates."""


def test_predict_refuses_an_own_crop_of_the_evaluation_that_it_does_not_have(photos: Path) -> None:
    data = ImageFolder(str(photos), image_size=16, crop=Own())
    data.setup("test")
    checkpoint = {"resnet_pl": {"data": data.provenance(), "config": {"data": {"init_args": {"image_size": 16}}}}}
    alone = ImageClassifier(cifar_resnet(8))
    alone.on_load_checkpoint(checkpoint)
    with pytest.raises(UserError, match=r"predict: .*crop of your own.*\n.*load_run"):
        alone.predict(str(photos))


def test_rectangular_input_and_a_crop_that_was_built_in_python(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"cache": True, "cache_dir": "cache", "mean": "pixel", "batch_size": 8, "num_workers": 0}
    data = ImageFolder(str(photos), image_size=(16, 48), crop=Letterbox(3), **options)
    folder = fit(model=ImageClassifier(cifar_resnet(8)), data=data, epochs=1, name="wide").folder
    model, loaded = load_run(folder)
    assert isinstance(loaded.eval_crop, Letterbox) and loaded.eval_crop.fill == 3
    assert model.preprocessing.image_size == loaded.image_size == (16, 48)
    assert model.normalize.mean.shape == (3, 16, 48)
    assert len(model.predict(str(photos / "left"))) == 12
    run("test", "--ckpt_path", folder, "--data.crop", "ScaleCrop", "--tta", "10-crop")
    results = json.loads((folder / "results.json").read_text())
    assert "crop ResizeCenterCrop" in str(results) and "image_size" not in results.get("protocol", "")
    message = refused(capsys, "test", "--ckpt_path", folder, "--data.crop", "ScaleCrop", "--tta", "multi-scale")
    assert "square" in message and "(16, 48)" in message
    run("summary", "--ckpt_path", folder / "checkpoints/last.ckpt")
    assert "16 × 48 pixels" in capsys.readouterr().out
    assert "image_size" in refused(capsys, "fit", *SMALL, "--data.root", photos, "--data.image_size", "[4,48]")
