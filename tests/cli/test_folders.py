"""Folders of photos on the command line: what they are read as, and what a test reports on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from resnet_pl.reports.results import read_results
from tests.cli.commands import PROJECT, printed, refused
from tests.conftest import MakePhotos

FIT = [
    *["fit", "--config", str(PROJECT / "configs/folder.yaml"), "--model.weights", "null", "--data.image_size", "16"],
    *["--model.backbone", "cifar_resnet", "--model.backbone.depth", "8", "--data.num_workers", "0"],
    *["--trainer.max_epochs", "1", "--dashboard", "false"],
]
BEST = ["--ckpt_path", "best", "--data.num_workers", "0"]


def test_train_and_val_in_other_words_without_a_test_set(
    place: Path, make_photos: MakePhotos, capsys: pytest.CaptureFixture[str]
) -> None:
    make_photos(Path("photos/Training"), count=4)
    make_photos(Path("photos/Validation"), count=2, first=50)
    out = printed(capsys, *FIT, "--data.root", "photos")
    assert "12 train + 6 val images, 3 classes" in out and "classes   ant, bee, cat" in out
    assert "train = Training/, val = Validation/; no test set: val chooses best.ckpt" in out
    table = printed(capsys, "test", *BEST)
    assert "val (no test set)" in table
    run = Path("runs/folder/version_0")
    assert read_results(run / "results-val-no-test.json")["split"] == "val (no test set)"
    assert (run / "confusion-val-no-test.png").is_file() and not (run / "results.json").exists()


def test_a_test_on_training_images_is_not_reported(
    photo_folder: Path, place: Path, make_photos: MakePhotos, capsys: pytest.CaptureFixture[str]
) -> None:
    printed(capsys, *FIT, "--data.root", photo_folder)
    shutil.copytree(photo_folder / "ant", "mine/ant")
    make_photos(Path("mine"), ["ant", "bee"], count=2, first=90)
    out = printed(capsys, "test", *BEST, "--data.root", "mine")
    assert "of 14 images are excluded" in out
    results = read_results(Path("runs/folder/version_0/results.json"))
    # The network was not trained on its own test images.
    assert 4 <= results["images"] <= 6 and "training images, ImageFolder at mine" in results["tested_on"]
    splits = json.loads(Path("runs/folder/version_0/splits.json").read_text())["splits"]
    for name in splits["train"]:
        Path("all/x", name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photo_folder / name, Path("all/x", name))
    assert "were used in the training" in refused(capsys, "test", *BEST, "--data.root", "all")
