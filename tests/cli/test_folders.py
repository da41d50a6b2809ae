"""Folders of photos on the command line: what they are read as, what a test reports on, and how paths are written."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import pytest

from resnet_pl.reports.results import read_results
from tests.cli.commands import PROJECT, printed, refused, run
from tests.conftest import MakePhotos

CONFIG = PROJECT / "configs/folder.yaml"
SMALL = [
    *["--model.weights", "null", "--model.backbone", "cifar_resnet", "--model.backbone.depth", "8"],
    *["--data.image_size", "16", "--data.num_workers", "0", "--trainer.max_epochs", "1", "--dashboard", "false"],
]
BEST = ["--ckpt_path", "best", "--data.num_workers", "0"]


def pipe(text: str) -> str:
    """Returns the name of a pipe that contains a text, as a shell passes `<(…)`."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as file:
        file.write(text)
    return f"/dev/fd/{reading}"


def test_train_and_val_in_other_words_without_a_test_set(
    place: Path, make_photos: MakePhotos, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(place / "home"))
    monkeypatch.setenv("DISK", str(place / "disk"))
    make_photos(Path("home/photos/Training"), count=4)
    make_photos(Path("home/photos/Validation"), count=2, first=50)
    config = pipe(CONFIG.read_text().replace("data/photos", "~/photos"))
    out = printed(capsys, "fit", "--config", config, *SMALL, "--trainer.default_root_dir=$DISK/runs")
    assert "12 train + 6 val images, 3 classes" in out and "classes   ant, bee, cat" in out
    assert "train = Training/, val = Validation/; no test set: val chooses best.ckpt" in out
    run = place / "disk/runs/folder/version_0"
    table = printed(capsys, "test", "--ckpt_path", run, "--output=~/results")
    assert "· val (no test set) ·" in " ".join(table.split())
    results = place / "home/results"
    assert read_results(results / "results-val-no-test.json")["split"] == "val (no test set)"
    assert sorted(path.name for path in results.iterdir())[:1] == ["confusion-val-no-test.png"]
    assert sorted(path.name for path in place.iterdir()) == ["disk", "home"]
    shutil.copy(results / "results-val-no-test.json", run)
    assert f"Tested without a test set: {run}" in printed(capsys, "compare", run)


def test_a_test_on_training_images_is_not_reported(
    photo_folder: Path, make_photos: MakePhotos, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Runs in the folder of the photos are not a class.
    monkeypatch.chdir(photo_folder)
    assert "classes   ant, bee, cat" in printed(capsys, "fit", "--config", CONFIG, *SMALL, "--data.root", ".")
    assert "3 classes" in printed(capsys, "check-data", ".")
    other = photo_folder.with_name("other")
    shutil.copytree(photo_folder / "ant", other / "ant")
    make_photos(other, ["ant", "bee"], count=2, first=90)
    out = printed(capsys, "test", *BEST, "--data.root", other)
    assert "of 14 images are excluded" in out
    results = read_results(Path("runs/folder/version_0/results.json"))
    # The network was not trained on its own test images.
    assert 4 <= results["images"] <= 6 and f"training images, ImageFolder at {other}" in results["tested_on"]
    assert "Not tested: runs/folder/version_0" in printed(capsys, "compare", "runs/folder")
    assert "of 14 images are excluded" in printed(capsys, "report", *BEST, "--data.root", other)
    with Path("runs/folder/version_0/report/predictions.csv").open(newline="") as file:
        assert len([*csv.DictReader(file)]) == results["images"]
    monkeypatch.setattr("resnet_pl.cli.calibrate.fit_temperature", lambda *_: 1.5)  # all predictions are right
    assert "note: no test set" in printed(capsys, "calibrate", *BEST, "--data.root", other)
    run("calibrate", *BEST, "--reset")
    printed(capsys, "test", *BEST)
    assert "the test split" in read_results(Path("runs/folder/version_0/results.json"))["tested_on"]
    splits = json.loads(Path("runs/folder/version_0/splits.json").read_text())["splits"]
    for name in splits["train"]:
        (other / "all/x" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(name, other / "all/x" / name)
    assert "were used in the training" in refused(capsys, "test", *BEST, "--data.root", other / "all")


def test_an_empty_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert "is empty\na pipe is read once" in refused(capsys, "fit", "--config", pipe(""))


def test_paths_of_analysis_commands(
    photo_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(photo_folder.parent))
    monkeypatch.setenv("NAME", "report")
    assert "No other problems found" in printed(capsys, "check-data", "~/photos", "--output=~/$NAME.csv")
    assert photo_folder.with_name("report.csv").is_file()
