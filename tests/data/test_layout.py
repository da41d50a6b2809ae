"""What a folder of photos is read as: splits of any name, other folders above and below them, and what is not read."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from resnet_pl.data import layout
from resnet_pl.data.decode import read_image
from resnet_pl.data.layout import Layout, read_layout, split_name
from resnet_pl.utils import UserError
from tests.conftest import write_photos

CLASSES = ["ant", "bee"]


def make(root: Path, *folders: str, classes: list[str] = CLASSES) -> Path:
    """Writes class folders of two images into folders of `root`."""
    for number, folder in enumerate(folders):
        write_photos(root / folder, classes, count=2, first=10 * number)
    return root


def sizes(found: Layout) -> dict[str, int]:
    return {split: len(listing) for split, listing in found.splits.items()}


@pytest.mark.parametrize(
    ("word", "split"),
    [
        *[(word, "train") for word in ("train", "Training", "TRAIN", "train_set", "Training Data", "training-images")],
        *[(word, "val") for word in ("Valid", "validation_set", "dev", "val2017")],
        *[(word, "test") for word in ("Testing", "testset", "eval", "images_test")],
        *[(word, None) for word in ("trainer", "trains", "latest", "images", "contest", "tests of glue", "data")],
    ],
)
def test_names_of_splits(word: str, split: str | None) -> None:
    assert split_name(word) == split


@pytest.mark.parametrize(
    "folders",
    [
        ("Train", "Val", "Test"),
        ("Training", "Validation", "Testing"),
        ("images/train", "images/val", "images/test"),
        ("archive/photos/Train", "archive/photos/dev", "archive/photos/test"),
    ],
)
def test_splits_are_found(tmp_path: Path, folders: tuple[str, ...]) -> None:
    make(tmp_path, *folders)
    (tmp_path / "__MACOSX").mkdir()
    found = read_layout(tmp_path)
    assert sizes(found) == {"train": 4, "val": 4, "test": 4} and found.notes == []
    assert {*found.splits["test"].values()} == {"ant", "bee"}
    assert all(name.startswith(f"{folders[1]}/") for name in found.splits["val"])
    assert found.description == ", ".join(
        f"{split} = {folder}/" for split, folder in zip(("train", "val", "test"), folders, strict=True)
    )


def test_class_folders_in_another_folder(tmp_path: Path) -> None:
    make(tmp_path, "photos")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/0001.xml").touch()
    found = read_layout(tmp_path)
    assert sizes(found) == {"all": 4} and {*found.splits["all"].values()} == {"ant", "bee"}
    assert found.description == "class folders in photos/"
    # With a checkpoint, the only folder can be one of its classes.
    assert {*read_layout(tmp_path, classes=["photos"]).splits["all"].values()} == {"photos"}
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"class folder .*empty has no images"):
        read_layout(tmp_path)


def test_split_folders_below_class_folders(tmp_path: Path) -> None:
    make(tmp_path, "ant", "bee", classes=["Train", "test"])
    found = read_layout(tmp_path)
    assert sizes(found) == {"train": 4, "test": 4} and found.description == "class folders that contain train, test"
    assert {name.split("/")[0]: each for name, each in found.splits["test"].items()} == {"ant": "ant", "bee": "bee"}
    shutil.copy(tmp_path / "ant/test/0000.jpg", tmp_path / "ant/more.jpg")
    with pytest.raises(UserError, match=r"ant, bee .*all contain Train, test\n"):
        read_layout(tmp_path)


def beside_unknown_split(root: Path) -> None:
    make(root, "train", "test", "Pruefung")


def beside_class(root: Path) -> None:
    make(root, "train")
    write_photos(root, ["bus"], count=1)


def unknown_words(root: Path) -> None:
    make(root, "Trainieren", "Pruefung")


def two_of_a_split(root: Path) -> None:
    make(root, "train", "val", "valid")


def only_other_files(root: Path) -> None:
    make(root, ".")
    (root / "cat").mkdir()
    (root / "cat/IMG_1.txt").touch()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (beside_unknown_split, r"Pruefung/: a split of another name, or a class\?\nrename Pruefung/"),
        (beside_class, r"train/ and bus/: a split of another name, or a class\?"),
        (unknown_words, r"Pruefung, Trainieren in .* all contain ant, bee\nrename splits to train, val and test"),
        (two_of_a_split, r"two folders for the val split: val/ and valid/"),
        (only_other_files, r"cat has no images, but 1 \.txt\n"),
    ],
)
def test_unclear_folders_are_refused(tmp_path: Path, change: Callable[[Path], None], message: str) -> None:
    change(tmp_path)
    with pytest.raises(UserError, match=message):
        read_layout(tmp_path)


def test_subfolders_of_a_class_are_read(tmp_path: Path) -> None:
    make(tmp_path, "ant", classes=["images"])
    make(tmp_path, "bee", classes=["images", "more"])
    assert {*read_layout(tmp_path).splits["all"].values()} == {"ant", "bee"}


@pytest.mark.parametrize("place", ["test", "test/unknown", "test/test"])
def test_a_test_folder_without_labels(tmp_path: Path, place: str) -> None:
    make(tmp_path, "train")
    write_photos(tmp_path / place, ["."], count=3)
    found = read_layout(tmp_path)
    assert sizes(found) == {"train": 4}
    (note,) = found.notes
    assert note.startswith("test/ has no folder of a class: its 3 images have no labels") and "--images" in note


def test_only_a_test_folder_without_labels(tmp_path: Path) -> None:
    write_photos(tmp_path / "test", ["."], count=3)
    with pytest.raises(UserError, match="test has no class folders"):
        read_layout(tmp_path)


def test_what_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "train", "test", "extra/more")
    for name in (
        "train/ant/1.HEIC",
        "train/bee/2.heic",
        "train/bee/photo",
        "train/ant/.DS_Store",
        "train/ant/Thumbs.db",
    ):
        (tmp_path / name).touch()
    (tmp_path / "train/loose.png").touch()
    (tmp_path / "test/ant/new.avif").touch()
    monkeypatch.setattr(layout, "NEEDS_PLUGIN", {".heic"})
    monkeypatch.setattr(layout, "is_image_name", lambda name: name.endswith((".jpg", ".png", ".avif")))
    found = read_layout(tmp_path)
    assert "test/ant/new.avif" in found.splits["test"]
    assert found.notes == [
        "extra/ next to test/, train/ is not read",
        "not read: 2 .heic, 1 without extension in the class folders and 1 image outside the class folders; "
        "to read .heic: pip install pillow-heif",
    ]


def test_the_output_of_commands_is_not_a_class(tmp_path: Path) -> None:
    make(tmp_path, ".")
    for name in ("runs/folder/version_0/checkpoints", "other/sweep/version_3", "out"):
        (tmp_path / name).mkdir(parents=True)
    shutil.copy(tmp_path / "ant/0000.jpg", tmp_path / "runs/folder/confusion.jpg")
    shutil.copy(tmp_path / "ant/0000.jpg", tmp_path / "out/contact_sheet.jpg")
    (tmp_path / "out/predictions.csv").touch()
    found = read_layout(tmp_path)
    assert {*found.splits["all"].values()} == {"ant", "bee"}
    assert found.notes == ["out/ contains the output of a command and is not read"]


@pytest.mark.parametrize("extension", ["avif", "heic"])
def test_photos_of_phones_are_read(tmp_path: Path, extension: str) -> None:
    if extension == "heic":
        pytest.importorskip("pillow_heif")
    write_photos(tmp_path, CLASSES, count=1)
    Image.new("RGB", (32, 24), (250, 0, 0)).save(tmp_path / f"ant/photo.{extension}")
    assert f"ant/photo.{extension}" in read_layout(tmp_path).splits["all"]
    image = read_image(tmp_path / f"ant/photo.{extension}")
    assert image.shape == (3, 24, 32) and image[0].min() > 200 and image[1].max() < 50
