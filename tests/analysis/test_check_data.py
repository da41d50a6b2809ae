"""`check-data` on the command line: its findings and its exit code."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnet_pl.cli.main import main
from tests.conftest import MakePhotos


def check(capsys: pytest.CaptureFixture[str], *args: object, code: int = 0) -> list[str]:
    """Runs the command; returns the printed lines."""
    assert main(["check-data", *map(str, args)]) == code
    out, err = capsys.readouterr()
    assert err == ""
    return out.splitlines()


def below(lines: list[str], title: str) -> list[str]:
    """The lines listed below a title."""
    start = lines.index(title) + 1
    return [line.strip() for line in lines[start:] if line.startswith("  ")][: int(title.rsplit(" ", 1)[1])]


def row(lines: list[str], name: str) -> list[str]:
    return next(line.split()[1:] for line in lines if line.split()[:1] == [name])


def test_a_folder_without_problems(photo_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(6):
        (photo_folder / "ant" / f"{number:04d}.jpg").unlink()
    lines = check(capsys, photo_folder)
    assert [row(lines, name) for name in ("ant", "bee", "cat", "total")] == [["4"], ["10"], ["10"], ["24"]]
    assert any("3 classes; the largest, bee, has 2.5 times" in line for line in lines)
    # Widths are 24 to 30 pixels and start again at 24 with the eighth image; of ant the last four images remain.
    assert any("smallest 24 × 24, median 26 × 24, largest 30 × 24" in line for line in lines)
    assert " read as: class folders; training holds out val and test" in lines
    assert lines[-1].startswith("No other problems found; images that are nearly the same: ")


def test_problems_are_listed(tmp_path: Path, make_photos: MakePhotos, capsys: pytest.CaptureFixture[str]) -> None:
    for number, part in enumerate(("train", "valid", "test")):
        make_photos(tmp_path / part, count=3, first=10 * number)
    shutil.copy(tmp_path / "train/ant/0001.jpg", tmp_path / "test/ant/again.jpg")
    shutil.copy(tmp_path / "train/bee/0002.jpg", tmp_path / "train/cat/other.jpg")
    shutil.copy(tmp_path / "train/cat/0000.jpg", tmp_path / "train/cat/twice.jpg")
    (tmp_path / "valid/cat/0012.jpg").write_bytes((tmp_path / "valid/cat/0011.jpg").read_bytes()[:300])
    (tmp_path / "train/ant/empty.png").touch()
    (tmp_path / "train/ant/notes.txt").write_text("none")
    (tmp_path / "train/ant/.hidden.jpg").write_text("none")
    shutil.copytree(tmp_path / "test/ant", tmp_path / "test/dog")
    report = tmp_path / "out/report.csv"
    lines = check(capsys, tmp_path, "--output", report, code=1)
    assert row(lines, "ant") == ["4", "3", "4", "11"] and row(lines, "dog") == ["0", "0", "4", "4"]
    assert below(lines, "corrupt files: 2")[0] == "train/ant/empty.png: the file is empty"
    assert below(lines, "corrupt files: 2")[1].startswith("valid/cat/0012.jpg: ")
    leaked = "train/ant/0001.jpg = test/ant/again.jpg = test/dog/again.jpg"
    assert below(lines, "the same image in several splits: 1") == [leaked]
    several = below(lines, "the same image in several classes: 5")
    assert leaked in several and "train/bee/0002.jpg = train/cat/other.jpg" in several
    assert below(lines, "classes missing from train: 1") == ["test/dog: 4 images"]
    assert below(lines, "the same image more than once in a class: 1") == ["train/cat/0000.jpg = train/cat/twice.jpg"]
    assert " exact duplicates: 7 of 35 files" in lines
    assert " read as: train = train/, val = valid/, test = test/" in lines
    assert " note: not read: 1 .txt in the class folders" in lines
    assert lines[-1].startswith("Problems found: 9; images that are nearly the same: ")
    with report.open(newline="") as file:
        rows = {line["file"]: line for line in csv.DictReader(file)}
    assert len(rows) == 35
    copied = rows["test/ant/again.jpg"]
    assert (copied["split"], copied["class"], copied["same_as"]) == ("test", "ant", "train/ant/0001.jpg")
    assert (copied["width"], copied["height"]) == ("25", "24")
    assert int(copied["bytes"]) == (tmp_path / "test/ant/again.jpg").stat().st_size
    assert rows["train/ant/empty.png"]["error"] == "the file is empty" and rows["train/ant/0000.jpg"]["error"] == ""


def test_only_decoding_finds_damage_in_the_middle(photo_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = photo_folder / "ant" / "damaged.png"
    Image.effect_noise((64, 64), 50).save(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    assert check(capsys, photo_folder)[-1].startswith("No other problems found")
    assert below(check(capsys, photo_folder, "--decode", code=1), "corrupt files: 1")[0].startswith("ant/damaged.png: ")


def test_duplicates_within_a_class_are_not_a_problem(photo_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(photo_folder / "ant/0000.jpg", photo_folder / "ant/again.jpg")
    assert " exact duplicates: 1 of 31 files" in check(capsys, photo_folder)


def test_of_many_classes_the_largest_and_smallest_are_shown(
    tmp_path: Path, make_photos: MakePhotos, capsys: pytest.CaptureFixture[str]
) -> None:
    make_photos(tmp_path, [f"kind{number:02d}" for number in range(45)], count=1)
    make_photos(tmp_path, ["kind07"], count=2, first=5)
    lines = check(capsys, tmp_path)
    assert sum(line.startswith("  kind") and "≈" not in line for line in lines) == 40 and row(lines, "kind07") == ["3"]
    assert any("not shown: 5 classes of medium size" in line for line in lines)


def test_long_lists_are_truncated(photo_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(25):
        (photo_folder / "bee" / f"none{number:02d}.jpg").touch()
    lines = check(capsys, photo_folder, "--threads", "1", code=1)
    assert "corrupt files: 25" in lines and any("… and 5 more" in line and "--output" in line for line in lines)
    assert sum("none" in line for line in lines) == 20


def test_a_missing_folder_and_a_folder_without_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argv, message in (
        ([str(tmp_path / "no")], str(tmp_path / "no")),
        ([str(tmp_path)], "no class folders"),
        ([], ""),
    ):
        assert main(["check-data", *argv]) == 2
        out, err = capsys.readouterr()
        assert out == "" and message in err and len(err.strip().splitlines()) <= 2


def photo(path: Path, seed: int, size: int = 96, quality: int = 95) -> None:
    """Writes an image of smooth random blobs."""
    blobs = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(blobs).resize((size, size), Image.Resampling.BICUBIC).save(path, quality=quality)


def test_images_in_two_splits_that_are_nearly_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(40):
        split, label = ("train", "train", "val", "test")[seed % 4], "ant" if seed < 20 else "bee"
        photo(tmp_path / split / label / f"{seed}.jpg", seed)
    photo(tmp_path / "train/ant/smaller.jpg", 0, size=70)  # in the same split
    photo(tmp_path / "val/bee/compressed.jpg", 0, quality=30)
    photo(tmp_path / "test/ant/larger.jpg", 1, size=250)
    shutil.copy(tmp_path / "test/ant/3.jpg", tmp_path / "val/ant/copy.jpg")
    for split in ("train", "test"):
        Image.new("RGB", (64, 64), (0, 0, len(split))).save(tmp_path / split / "ant/blue.png")
    lines = check(capsys, tmp_path, "--output", tmp_path / "report.csv", code=1)
    assert below(lines, "nearly the same image in several splits: 2") == [
        "train/ant/0.jpg ≈ val/bee/compressed.jpg",
        "train/ant/1.jpg ≈ test/ant/larger.jpg",
    ]
    assert lines[-1] == "Problems found: 1; images that are nearly the same: 2"  # the problem is the exact copy
    shutil.rmtree(tmp_path / "val/ant")
    assert check(capsys, tmp_path)[-1] == "No other problems found; images that are nearly the same: 2"
    for name in ("test/ant/larger.jpg", "val/bee/compressed.jpg"):
        (tmp_path / name).unlink()
    assert check(capsys, tmp_path)[-1] == "No problems found."
    with (tmp_path / "report.csv").open(newline="") as file:
        similar = {line["file"]: line["similar_to"] for line in csv.DictReader(file)}
    assert {name for name, other in similar.items() if other} == {"val/bee/compressed.jpg", "test/ant/larger.jpg"}


def test_a_table(tmp_path: Path, photo_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"ant/000{number}.jpg,{'small' if number < 4 else 'large'},train" for number in range(8)]
    (photo_folder / "labels.csv").write_text("\n".join(["path,label,split", *rows, "bee/0001.jpg,small,test"]))
    lines = check(capsys, photo_folder / "labels.csv")
    assert row(lines, "small") == ["4", "1", "5"] and row(lines, "large") == ["4", "0", "4"]
    (photo_folder / "ant/0003.jpg").unlink()
    assert any("ant/0003.jpg" in line for line in check(capsys, photo_folder / "labels.csv", code=1))


def test_options_of_a_table(tmp_path: Path, photo_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"ant/000{number}:{'a,b' if number < 2 else 'a'}:{number // 2}:train" for number in range(4)]
    table = tmp_path / "table.txt"
    table.write_text("\n".join(["photo:marks:who:split", *rows, "bee/0001:b:1:test", "bee/0002::2:test"]))
    options = ["--data.root", photo_folder, "--data.delimiter", ":", "--data.path_suffix", ".jpg"]
    options += ["--data.path_column", "photo", "--data.label_column", "marks", "--data.label_separator", ","]
    lines = check(capsys, table, *options, "--output", tmp_path / "all.csv")
    found = [row(lines, name) for name in ("a", "b", "total")]
    assert found == [["4", "0", "4"], ["2", "1", "3"], ["4", "2", "6"]]
    assert [line.split(",")[2] for line in (tmp_path / "all.csv").read_text().splitlines()[1:3]] == ["a|b", "a|b"]
    lines = check(capsys, table, *options, "--data.group_column", "who", code=1)
    assert below(lines, "groups in several splits: 1") == ["1: train, test"]
    assert main(["check-data", str(photo_folder), "--data.delimiter", ":"]) == 2
    assert "--data.delimiter is for a table" in capsys.readouterr().err
