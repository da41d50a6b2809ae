"""`build` and `load_run`: model and data module without a Trainer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from resnet_pl import ImageClassifier
from resnet_pl.cli.main import main
from resnet_pl.load import build, load_model, load_run
from resnet_pl.utils import UserError

CONFIG = str(Path(__file__).parent.parent / "configs/digits.yaml")
SMALL = [
    *["--config", CONFIG, "--model.backbone.depth", "8", "--trainer.logger", "false", "--trainer.max_epochs", "1"],
    *["--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1"],
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the run folder of a short training on the digits with 100 test images."""
    root = tmp_path_factory.mktemp("trained")
    assert main(["fit", *SMALL, "--trainer.default_root_dir", str(root), "--data.test_split", "100"]) == 0
    return root / "digits/version_0"


def test_a_run_is_loaded_with_its_data(trained: Path) -> None:
    model, data = load_run(trained)
    assert isinstance(model, ImageClassifier) and not model.training
    state = torch.load(trained / "checkpoints/best.ckpt", weights_only=True)["state_dict"]
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert len(data.split("test")) == 100 and data.image_size == 16
    with torch.no_grad():
        assert model(data.split("test").images[:2]).shape == (2, 10)


def test_a_run_can_be_given_in_several_ways(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths: list[str | Path] = [trained, str(trained), trained / "checkpoints/best.ckpt", "best"]
    monkeypatch.chdir(trained.parents[1])
    (trained.parents[1] / "runs").symlink_to(trained.parents[1])
    for path in paths:
        assert load_run(path)[0].class_names == [str(i) for i in range(10)]
    with pytest.raises(UserError, match="nowhere"):
        load_run("nowhere.ckpt")


def test_arguments_of_the_data_can_be_changed(trained: Path) -> None:
    _, data = load_run(trained, {"batch_size": 7, "eval_batch_size": 5, "std": None})
    assert (data.batch_size, data.eval_batch_size, data.std) == (7, 5, None)
    _, data = load_run(trained, {"batch_size": 7}, ["--data.batch_size=9", "--data.eval_batch_size", "11"])
    assert (data.batch_size, data.eval_batch_size) == (9, 11)


def test_moved_photos(photo_folder: Path, tmp_path: Path) -> None:
    model = ["--model.backbone", "cifar_resnet", "--model.backbone.depth", "8", "--trainer.default_root_dir"]
    data = ["--data", "ImageFolder", "--data.root", str(photo_folder), "--data.image_size", "16"]
    data += ["--data.batch_size", "4", "--data.num_workers", "0", "--trainer.max_epochs", "1"]
    assert main(["fit", *model, str(tmp_path / "runs"), *data, "--trainer.logger", "false"]) == 0
    run = tmp_path / "runs/resnet/version_0"
    names = load_run(run)[1].split("test").names
    moved = photo_folder.rename(tmp_path / "moved, 'here'")
    with pytest.raises(UserError, match="photos"):
        load_run(run)
    model = load_model(run)
    assert not model.training and len(model.predict(moved)) == len(list(moved.rglob("*.*")))
    assert load_run(run, {"root": str(moved)})[1].split("test").names == names
    assert load_run(run, options=[f"--data.root={moved}"])[1].split("test").names == names


@pytest.mark.parametrize("backbone", ["cifar_resnet", "resnet_pl.models.cifar_resnet", "cifar_plain"])
def test_build(backbone: str) -> None:
    config = {
        "model": {
            "class_path": "resnet_pl.ImageClassifier",
            "init_args": {"backbone": {"class_path": backbone, "init_args": {"depth": 8}}, "label_smoothing": 0.25},
        },
        "data": {"class_path": "Digits", "init_args": {"batch_size": 32}},
        "trainer": {"max_epochs": "ignored"},
    }
    model, data = build(config, ["--data.batch_size", "16"])
    assert model.hparams["label_smoothing"] == 0.25 and data.batch_size == 16
    assert model.hparams["backbone"]["init_args"]["layers"] == [1, 1, 1]


def test_load_from_checkpoint_needs_no_data(trained: Path) -> None:
    model = ImageClassifier.load_from_checkpoint(trained / "checkpoints/best.ckpt", map_location="cpu")
    assert model.class_names == [str(i) for i in range(10)]
    assert model.eval()(torch.zeros(1, 3, 16, 16, dtype=torch.uint8)).shape == (1, 10)


def test_old_names_of_options_work(capsys: pytest.CaptureFixture[str]) -> None:
    config = {
        "model": {"class_path": "ImageClassifier", "init_args": {"backbone": "resnet18"}},
        "data": {"class_path": "ImageFolder", "init_args": {"root": "photos", "scan": True}},
    }
    _, data = build(config, ["--data.cache=decoded", "--data.crop", "CentreCrop"])
    assert data.verify_images and data.cache is True and type(data.crop).__name__ == "ResizeCenterCrop"
    assert len([line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]) == 2
