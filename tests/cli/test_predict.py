"""`predict`: on the test set, on files and folders, and on files that are not images."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resnet_pl import ImageClassifier, load_run
from resnet_pl.data.decode import read_image
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
    assert "contact_sheet.png (64 of 360 images, most confident mistakes first, " in out


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
    Path("list.txt").write_text("notes.png\nnowhere.png\n")
    assert "list.txt:2" in refused(capsys, "predict", "--ckpt_path", checkpoint, "--images", "list.txt")


def test_predict_reads_a_list_and_averages_over_flips_and_checkpoints(copy: Path) -> None:
    rng = np.random.default_rng(0)
    names = ["photos/b.png", "photos/a b.png", "$HOME.png"]
    Path("photos").mkdir()
    for name in names:
        Image.fromarray(rng.integers(0, 255, (30, 20, 3), dtype=np.uint8)).save(name)
    # From Windows, with a blank line at the end.
    Path("list.TXT").write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*names, "", ""]).encode())
    best, last = copy / "checkpoints/best.ckpt", copy / "checkpoints/last.ckpt"
    changed = torch.load(last, weights_only=True)
    changed["state_dict"]["backbone.fc.weight"] *= -1
    torch.save(changed, "other.ckpt")
    run("predict", "--ensemble", best, "other.ckpt", "--tta", "flip", "--images", "list.TXT", "--output", "out")
    rows = predictions(Path("out"))
    assert [row["path"] for row in rows] == names
    expected = []
    for path in (best, Path("other.ckpt")):
        model, _ = load_run(path)
        for flip in (False, True):
            pixels = [read_image(Path(name)).flip(-1) if flip else read_image(Path(name)) for name in names]
            expected.append(torch.stack([each.probabilities for each in model.predict(pixels)]))
    mean = torch.stack(expected).mean(0).max(1)
    assert [row["prediction"] for row in rows] == [str(index) for index in mean.indices.tolist()]
    assert [float(row["probability"]) for row in rows] == pytest.approx(mean.values.tolist(), abs=1e-5)


def test_an_ensemble_predicts_the_test_split(copy: Path) -> None:
    checkpoints = [copy / "checkpoints/best.ckpt", copy / "checkpoints/last.ckpt"]
    run("test", "--ensemble", *checkpoints)
    run("predict", "--ensemble", *checkpoints)
    rows = predictions(copy)
    correct = sum(row["truth"] == row["prediction"] for row in rows)
    assert correct / 360 == read_results(copy / "results.json")["top1"]


def test_a_submission_has_the_ids_and_labels_of_a_flat_folder(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("test/10.png", "test/9.jpg", "test/x.y.png", "more/9.png"):
        Path(name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(name)
    predict = ["predict", "--ckpt_path", copy, "--submission", "submissions/1.csv", "--images"]
    run(*predict, "test", "--output", "out")
    rows = [line.split(",") for line in Path("submissions/1.csv").read_text().splitlines()]
    assert rows == [["id", "label"], *([name, row["prediction"]] for name, row in zip(
        ("10", "9", "x.y"), predictions(Path("out")), strict=True
    ))]  # fmt: skip
    message = refused(capsys, *predict, "test", "more")
    assert "test/9.jpg" in message and "more/9.png" in message


def test_predict_writes_heat_maps_and_features(
    copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("captum")
    monkeypatch.setattr("resnet_pl.callbacks.predictions.MAX_FILES", 3)
    rng = np.random.default_rng(0)
    for name in ("photos/7/a.png", "photos/7/b.jpg", "photos/odd/b.jpg", "photos/odd/b.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (30, 20, 3), dtype=np.uint8)).save(name)
    given = ["predict", "--ckpt_path", copy / "checkpoints/best.ckpt", "--images", "photos"]
    run(*given, "--output", "out", "--heatmaps", "--features")
    out = capsys.readouterr().out
    assert "out/features.npz, out/heatmaps/ and out/contact_sheet.png" in out
    assert "note: heat maps of 3 of 4 images, most confident mistakes first" in out
    maps = {path.relative_to("out/heatmaps").as_posix(): Image.open(path) for path in Path("out").rglob("heatmaps/*/*")}
    names = {row["path"].removeprefix("photos/") + ".png" for row in predictions(Path("out"))}
    assert len(maps) == 3 and maps.keys() < names
    assert {image.size for image in maps.values()} == {(448, 224)}  # the digits have 8 x 8 pixels
    model, _ = load_run(copy)
    assert isinstance(model, ImageClassifier)
    with np.load("out/features.npz") as stored:
        assert stored["files"].tolist() == [row["path"] for row in predictions(Path("out"))]
        assert stored["labels"].tolist() == [7, 7, -1, -1] and stored["classes"].tolist() == model.class_names
        features = torch.from_numpy(stored["features"])
    torch.testing.assert_close(features, model.features("photos"))
    probabilities = model.to_probabilities(model.backbone.fc(features)).amax(1).tolist()
    assert probabilities == pytest.approx([float(row["probability"]) for row in predictions(Path("out"))], abs=1e-4)
    capsys.readouterr()
    run(*given[:-1], "photos/odd", "--output", "out", "--heatmaps")
    assert "note: out/heatmaps/ also has 3 heat maps of earlier predictions" in capsys.readouterr().out
    assert "layre3 is not a layer" in refused(capsys, *given, "--heatmaps", "layre3", "--output", "other")
    assert "remove --tta" in refused(capsys, *given, "--features", "--tta", "flip")
    assert not Path("other").exists()
