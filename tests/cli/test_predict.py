"""`predict`: on the test set, on files and folders, and on files that are not images."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resnet_pl import ImageClassifier
from resnet_pl.cli.main import main
from resnet_pl.reports.results import read_results
from tests.cli.commands import refused, run


def predictions(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_predict_on_the_test_split(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("test", "--ckpt_path", copy / "checkpoints/best.ckpt")
    run("predict", "--ckpt_path", copy / "checkpoints/best.ckpt", "--top_k", 3)
    rows = predictions(copy)
    assert len(rows) == 360 and len({row["path"] for row in rows}) == 360
    correct = sum(row["truth"] == row["prediction"] for row in rows)
    assert correct / 360 == read_results(copy / "results.json")["top1"]
    assert {"class_2", "class_3"} <= set(rows[0]) and "class_4" not in rows[0]
    assert Image.open(copy / "contact_sheet.png").size[0] > 200
    out = capsys.readouterr().out
    assert "The first 20 of 360 images" in out and f"Saved to {copy / 'predictions.csv'}" in out


def test_predict_accepts_files_folders_and_patterns(copy: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("photos/7/a.png", "photos/7/b.jpg", "photos/odd/c.png", "single.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (30, 20, 3), dtype=np.uint8)).save(name)
    checkpoint = copy / "checkpoints/best.ckpt"
    run("predict", "--ckpt_path", checkpoint, "--images", "photos", "single.png", "photos/7/*.png", "--output", "out")
    rows = predictions(Path("out"))
    assert [row["path"] for row in rows] == ["photos/7/a.png", "photos/7/b.jpg", "photos/odd/c.png", "single.png"]
    assert [row["truth"] for row in rows] == ["7", "7", "", ""]
    assert 0.1 <= float(rows[0]["probability"]) <= 1


def test_predict_names_a_file_that_is_not_an_image(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("notes.png").write_text("no image")
    checkpoint = copy / "checkpoints/best.ckpt"
    assert "nowhere" in refused(capsys, "predict", "--ckpt_path", checkpoint, "--images", "nowhere/*.jpg")
    assert "notes.png" in refused(capsys, "predict", "--ckpt_path", checkpoint, "--images", "notes.png")
    assert "--images" in refused(capsys, "predict", "--ckpt_path", checkpoint, "--images")
    assert "top_k" in refused(capsys, "predict", "--ckpt_path", checkpoint, "--top_k", 0)


def test_ctrl_c_interrupts_a_prediction_without_a_file(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ImageClassifier, "predict_step", stopped)
    assert main(["predict", "--ckpt_path", str(copy)]) == 130
    assert "Traceback" not in capsys.readouterr().err and not list(copy.glob("predictions*"))
