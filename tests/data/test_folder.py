import io
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resnet_pl.data import ImageFolder
from resnet_pl.data.dataset import ImageFileDataset
from resnet_pl.utils import UserError

MakePhotos = Callable[..., Path]
CLASSES = ["ant", "bee", "cat"]


def folder(root: Path | str, stored: dict | None = None, **kwargs: object) -> ImageFolder:
    data = ImageFolder(str(root), image_size=16, batch_size=4, num_workers=0, **kwargs)
    if stored:
        data.use_provenance(stored)
    data.setup("fit")
    return data


def sizes(data: ImageFolder) -> dict[str, int]:
    return {part: len(data.splits[part]) for part in ("train", "val", "test") if part in data.splits}


def contents(data: ImageFolder, part: str) -> set[bytes]:
    return {(data.root / name).read_bytes() for name in data.splits[part].names}


def right_labels(data: ImageFolder) -> bool:
    return all(
        data.classes[label] == Path(name).parent.name
        for photos in data.splits.values()
        for name, label in zip(photos.names, photos.labels, strict=True)
    )


@pytest.fixture
def parts(tmp_path: Path, make_photos: MakePhotos) -> Callable[..., Path]:
    """Makes a root that is divided into the parts named, each of so many photos a class."""

    def make(**counts: int) -> Path:
        for number, (part, count) in enumerate(counts.items()):
            make_photos(tmp_path / "parts" / part, count=count, first=100 * number)
        return tmp_path / "parts"

    return make


# ------------------------------------------------------------------------------------ layouts
def test_class_folders_are_cut(photo_folder: Path) -> None:
    data = folder(photo_folder, val_split=0.2, test_split=6)
    assert sizes(data) == {"train": 18, "val": 6, "test": 6}
    assert data.classes == data.class_names == CLASSES
    assert right_labels(data)
    for photos in data.splits.values():
        assert len(set(Counter(photos.labels).values())) == 1
    assert data.describe_split("val") == f"the val split, ImageFolder at {photo_folder}"


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_train_val_test(parts: Callable[..., Path], val: str) -> None:
    data = folder(parts(**{"train": 5, val: 2, "test": 3}))
    assert sizes(data) == {"train": 15, "val": 6, "test": 9}
    assert right_labels(data)
    assert {name.split("/")[0] for name in data.splits["val"].names} == {val}


def test_train_val_is_reported_on_val(parts: Callable[..., Path]) -> None:
    data = folder(parts(train=5, val=2))
    assert data.splits["test"].names == data.splits["val"].names
    assert data.describe_split("test").startswith("val/, as there is no test/")


def test_train_test_cuts_val_from_train(parts: Callable[..., Path]) -> None:
    data = folder(parts(train=10, test=3), val_split=0.2)
    assert sizes(data) == {"train": 24, "val": 6, "test": 9}
    assert {name.split("/")[0] for name in data.splits["val"].names} == {"train"}
    assert {name.split("/")[0] for name in data.splits["test"].names} == {"test"}


def test_train_alone_is_cut(parts: Callable[..., Path]) -> None:
    assert sizes(folder(parts(train=10), val_split=0.2, test_split=0.1)) == {"train": 21, "val": 6, "test": 3}


def test_a_part_that_lacks_a_class_keeps_the_numbers(parts: Callable[..., Path]) -> None:
    root = parts(train=4, val=2)
    shutil.rmtree(root / "val" / "ant")
    data = folder(root)
    assert set(data.splits["val"].labels) == {1, 2}
    assert right_labels(data)


def test_a_part_with_a_class_of_its_own(parts: Callable[..., Path]) -> None:
    root = parts(train=4, val=2)
    (root / "val" / "bee").rename(root / "val" / "wasp")
    with pytest.raises(
        UserError, match=r"val images in .* have the class wasp, which training does not know\n.*ant, bee"
    ):
        folder(root)


def test_classes_called_train_and_test(tmp_path: Path, make_photos: MakePhotos) -> None:
    data = folder(make_photos(tmp_path, ["bus", "test", "train"]))
    assert data.classes == ["bus", "test", "train"]


def test_no_leak_through_copies(photo_folder: Path) -> None:
    for number in range(4):
        shutil.copy(photo_folder / f"ant/000{number}.jpg", photo_folder / f"bee/copy{number}.jpg")
        shutil.copy(photo_folder / f"cat/000{number}.jpg", photo_folder / f"cat/copy{number}.jpg")
    for seed in range(5):
        data = folder(photo_folder, val_split=0.2, test_split=0.2, split_seed=seed)
        found = [contents(data, part) for part in ("train", "val", "test")]
        assert len(set.union(*found)) == sum(map(len, found)) == 30


def test_hidden_things_links_and_names(photo_folder: Path, tmp_path: Path, make_photos: MakePhotos) -> None:
    make_photos(photo_folder, [".cache", "日本 é"])
    (photo_folder / "ant" / ".hidden.jpg").write_bytes(b"")
    (photo_folder / "notes.txt").write_text("not a class")
    elsewhere = make_photos(tmp_path / "elsewhere", ["x"]) / "x"
    (photo_folder / "linked").symlink_to(elsewhere, target_is_directory=True)
    (photo_folder / "ant" / "loop").symlink_to(photo_folder / "ant", target_is_directory=True)
    data = folder(photo_folder)
    assert data.classes == [*CLASSES, "linked", "日本 é"]
    assert sum(sizes(data).values()) == 50
    assert right_labels(data)
    assert {label for batch in data.train_dataloader() for label in batch.labels.tolist()} == {0, 1, 2, 3, 4}


# ------------------------------------------------------------------------------------ bad folders
def no_root(root: Path) -> None:
    shutil.rmtree(root)


def a_file(root: Path) -> None:
    shutil.rmtree(root)
    root.write_text("")


def empty(root: Path) -> None:
    shutil.rmtree(root)
    root.mkdir()


def flat(root: Path) -> None:
    for path in root.glob("*/*"):
        path.rename(root / f"{path.parent.name}{path.name}")
    for name in CLASSES:
        (root / name).rmdir()


def empty_class(root: Path) -> None:
    (root / "dog").mkdir()


def one_class(root: Path) -> None:
    shutil.rmtree(root / "bee")
    shutil.rmtree(root / "cat")


def no_train(root: Path) -> None:
    for part in ("val", "test"):
        shutil.copytree(root / "ant", root / part / "ant")


def flat_val(root: Path) -> None:
    shutil.copytree(root, root / "train")
    shutil.copytree(root / "ant", root / "val")


def all_flat(root: Path) -> None:
    (root / "ant").rename(root / "train")
    (root / "bee").rename(root / "val")
    shutil.rmtree(root / "cat")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (no_root, "data.root: there is no folder .*photos\n.*--data.root"),
        (a_file, "data.root: there is no folder .*photos\n"),
        (empty, "photos has no class folders\n"),
        (flat, "photos has no class folders\n"),
        (empty_class, "class folder .*dog has no image\n"),
        (one_class, "one class only .ant.\n"),
        (no_train, "has val and test but no train\n"),
        (flat_val, "val has no class folders\n"),
        (all_flat, "train has no class folders\n"),
    ],
)
def test_bad_folders(photo_folder: Path, harm: Callable[[Path], None], message: str) -> None:
    harm(photo_folder)
    with pytest.raises(UserError, match=message):
        folder(photo_folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_split": 1.0}, "val_split=1.0"),
        ({"val_split": -1}, "val_split=-1"),
        ({"test_split": 30}, "take all of 30 images"),
        ({"num_folds": 40}, None),
        ({"fold": 1}, "without num_folds"),
        ({"num_folds": 2, "fold": 2}, "fold=2 of num_folds=2"),
    ],
)
def test_splits_that_cannot_be(photo_folder: Path, options: dict, message: str | None) -> None:
    if message is None:
        assert sizes(folder(photo_folder, **options))["val"] == 1
        return
    with pytest.raises(UserError, match=message):
        folder(photo_folder, **options)


def test_a_folder_that_may_not_be_read(photo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(UserError, match=r"cannot list folder .*photos: Permission denied"):
        folder(photo_folder)


def test_folds_through_the_data_module(photo_folder: Path, parts: Callable[..., Path]) -> None:
    folds = [folder(photo_folder, num_folds=3, fold=fold, test_split=3) for fold in range(3)]
    assert all(fold.splits["test"].names == folds[0].splits["test"].names for fold in folds)
    validated = [name for fold in folds for name in fold.splits["val"].names]
    assert len(validated) == len(set(validated)) == 27
    assert not set(validated) & set(folds[0].splits["test"].names)
    with pytest.raises(UserError, match=r"data.num_folds: .* has a val folder\n"):
        folder(parts(train=4, val=2), num_folds=3)


# ------------------------------------------------------------------------------------ stored splits
def names(data: ImageFolder) -> dict[str, list[str]]:
    return {part: photos.names for part, photos in data.splits.items()}


def test_provenance_survives_a_checkpoint_and_a_growing_folder(photo_folder: Path, make_photos: MakePhotos) -> None:
    first = folder(photo_folder)
    file = io.BytesIO()
    torch.save(first.provenance(), file)
    file.seek(0)
    stored = torch.load(file, weights_only=True)
    assert stored == first.provenance()
    make_photos(photo_folder, [*CLASSES, "dog"], count=20)
    again = folder(photo_folder, stored, split_seed=7)
    assert names(again) == names(first)
    assert again.classes == CLASSES
    assert right_labels(again)
    assert again.describe_split("test") == f"the test split stored in the checkpoint, ImageFolder at {photo_folder}"


def test_moved_root(photo_folder: Path, tmp_path: Path) -> None:
    first = folder(photo_folder)
    moved = photo_folder.rename(tmp_path / "moved")
    assert names(folder(moved, first.provenance())) == names(first)


@pytest.mark.parametrize("moved", [False, True])
def test_missing_files(photo_folder: Path, tmp_path: Path, moved: bool) -> None:
    stored = folder(photo_folder).provenance()
    (photo_folder / "ant/0003.jpg").unlink()
    (photo_folder / "bee/0004.jpg").unlink()
    root = photo_folder.rename(tmp_path / "moved") if moved else photo_folder
    with pytest.raises(UserError, match=r"lacks 2 of the 30 images .*the first is (ant/0003|bee/0004).jpg\n"):
        folder(root, stored)


@pytest.mark.parametrize("written", ["photos", "./photos/", "photos/../photos"])
def test_the_same_place_written_otherwise(photo_folder: Path, monkeypatch: pytest.MonkeyPatch, written: str) -> None:
    monkeypatch.chdir(photo_folder.parent)
    stored = folder(written).provenance()
    for path in photo_folder.glob("*/*"):
        path.rename(path.with_stem(f"renamed{path.stem}"))
    with pytest.raises(UserError, match="lacks 30 of the 30 images"):
        folder(photo_folder, stored)


def test_another_folder(photo_folder: Path, tmp_path: Path, make_photos: MakePhotos) -> None:
    stored = folder(photo_folder).provenance()
    other = make_photos(tmp_path / "other", CLASSES[:2], count=4, first=500)
    data = folder(other, stored)
    assert sizes(data) == {"val": 8, "test": 8}
    assert (
        data.describe_split("test") == f"every image of a folder other than the training data's, ImageFolder at {other}"
    )
    assert data.classes == CLASSES
    with pytest.raises(UserError, match="has no images for train\nto train on other data start a new run"):
        data.train_dataloader()


@pytest.mark.parametrize(
    ("given", "part"), [(("train", "val", "test"), "test"), (("train", "val"), "val"), (("test",), "test")]
)
def test_another_folder_that_is_divided(
    photo_folder: Path, parts: Callable[..., Path], given: tuple, part: str
) -> None:
    data = folder(parts(**dict.fromkeys(given, 2)), folder(photo_folder).provenance())
    assert {name.split("/")[0] for photos in data.splits.values() for name in photos.names} == {part}
    assert data.describe_split("test").startswith(f"{part}/ of a folder other than the training data's")


def test_divided_data_keep_their_parts_wherever_they_are(parts: Callable[..., Path], tmp_path: Path) -> None:
    root = parts(train=3, val=2)
    first = folder(root)
    stored = first.provenance()
    assert stored["splits"] is None
    moved = root.rename(tmp_path / "moved")
    assert names(folder(moved, stored)) == names(first)


def test_val_cut_from_train_is_stored(parts: Callable[..., Path], make_photos: MakePhotos) -> None:
    root = parts(train=10, test=3)
    first = folder(root)
    make_photos(root / "train", count=30, first=1000)
    assert names(folder(root, first.provenance())) == names(first)


# ------------------------------------------------------------------------------------ bad files
def spoil(root: Path) -> None:
    for name in ("ant/0003.jpg", "cat/0000.jpg"):
        (root / name).write_bytes((root / name).read_bytes()[:300])


def test_scan_refuses_before_the_first_step(photo_folder: Path) -> None:
    folder(photo_folder, verify_images=True)
    spoil(photo_folder)
    folder(photo_folder)
    with pytest.raises(
        UserError, match=r"2 images cannot be read: .*ant/0003.jpg.*cat/0000.jpg.*\n.*on_bad_image skip"
    ):
        folder(photo_folder, verify_images=True)


def test_scan_leaves_out(photo_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil(photo_folder)
    data = folder(photo_folder, verify_images=True, on_bad_image="skip")
    assert sum(sizes(data).values()) == 28
    assert capsys.readouterr().out.count("left out: ") == 2
    stored = data.provenance()["splits"]
    assert not {"ant/0003.jpg", "cat/0000.jpg"} & {name for part in stored.values() for name in part}


def test_scan_shows_its_progress(
    photo_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    folder(photo_folder, verify_images=True)
    shown = capsys.readouterr().err
    assert "checking images" in shown
    assert "30/30" in shown


def test_training_view_and_evaluation_view(photo_folder: Path) -> None:
    data = folder(photo_folder)
    batch = next(iter(data.train_dataloader()))
    assert batch.images.shape == (4, 3, 16, 16)
    assert batch.images.dtype == torch.uint8
    train, val = data.splits["train"], data.splits["val"]
    assert type(train.crop).__name__ == "ScaleCrop"
    assert type(val.crop).__name__ == "ResizeCenterCrop"


def test_measured_on_the_training_split_in_evaluations_view(photo_folder: Path) -> None:
    data = folder(photo_folder, mean="pixel", std="channel", val_split=0.3)
    train = data.splits["train"]
    plain = ImageFileDataset(data.root, train.names, train.labels, 16)
    views = torch.stack([plain[0, index][0] for index in range(len(plain))]).double() / 255
    mean, std = data.normalization()
    torch.testing.assert_close(mean, views.mean(0).float())
    torch.testing.assert_close(std.flatten(), views.transpose(0, 1).flatten(1).std(1, correction=0).float())


def test_other_images_of_the_same_names_are_another_folder(tmp_path):
    for root, size in (("mine", 20), ("other", 23)):
        for name in ("ant", "bee"):
            (tmp_path / root / name).mkdir(parents=True)
            for i in range(10):
                pixels = np.random.default_rng(i).integers(0, 255, (size, size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / root / name / f"{i}.png")
    first = ImageFolder(str(tmp_path / "mine"), test_split=4, val_split=4)
    first.setup("fit")
    again = ImageFolder(str(tmp_path / "other"))
    again.use_provenance(first.provenance())
    again.setup("test")
    assert len(again.splits["test"]) == 20 and "every image" in again.describe_split("test")
