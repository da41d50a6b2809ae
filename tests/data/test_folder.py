"""Image folders: layouts, splits, restored splits and damaged files."""

import io
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resnet_pl.data import ImageFolder, ResizeCenterCrop, ScaleCrop
from resnet_pl.data.dataset import ImageFileDataset
from resnet_pl.utils import UserError

MakePhotos = Callable[..., Path]
CLASSES = ["ant", "bee", "cat"]


def folder(root: Path | str, stored: dict | None = None, stage: str = "fit", **kwargs: object) -> ImageFolder:
    data = ImageFolder(str(root), image_size=16, batch_size=4, num_workers=0, **kwargs)
    if stored:
        data.use_provenance(stored)
    data.setup(stage)
    return data


def sizes(data: ImageFolder) -> dict[str, int]:
    return {name: len(images) for name, images in data.splits.items()}


def contents(data: ImageFolder, split: str) -> set[bytes]:
    return {(data.root / name).read_bytes() for name in data.splits[split].names}


def labels_are_correct(data: ImageFolder) -> bool:
    return all(
        data.classes[label] == Path(name).parent.name
        for images in data.splits.values()
        for name, label in zip(images.names, images.labels, strict=True)
    )


@pytest.fixture
def make_splits(tmp_path: Path, make_photos: MakePhotos) -> Callable[..., Path]:
    """Returns a function that makes a root folder with the given splits and numbers of images per class."""

    def make(**counts: int) -> Path:
        for number, (split, count) in enumerate(counts.items()):
            make_photos(tmp_path / "splits" / split, count=count, first=100 * number)
        return tmp_path / "splits"

    return make


# ------------------------------------------------------------------------------------ layouts
def test_class_folders_are_split(photo_folder: Path) -> None:
    data = folder(photo_folder, val_split=0.2, test_split=6)
    assert sizes(data) == {"train": 18, "val": 6, "test": 6}
    assert data.classes == data.class_names == CLASSES
    assert labels_are_correct(data)
    for images in data.splits.values():
        assert len(set(Counter(images.labels).values())) == 1
    assert "val split" in data.describe_split("val") and str(photo_folder) in data.describe_split("val")


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_train_val_test(make_splits: Callable[..., Path], val: str) -> None:
    data = folder(make_splits(**{"train": 5, val: 2, "test": 3}))
    assert sizes(data) == {"train": 15, "val": 6, "test": 9}
    assert labels_are_correct(data)
    assert {name.split("/")[0] for name in data.splits["val"].names} == {val}


def test_val_is_the_test_split_without_a_test_folder(make_splits: Callable[..., Path]) -> None:
    data = folder(make_splits(train=5, val=2))
    assert data.splits["test"].names == data.splits["val"].names
    assert data.describe_split("test").startswith("val/")


def test_val_is_taken_from_train_without_a_val_folder(make_splits: Callable[..., Path]) -> None:
    data = folder(make_splits(train=10, test=3), val_split=0.2)
    assert sizes(data) == {"train": 24, "val": 6, "test": 9}
    assert {name.split("/")[0] for name in data.splits["val"].names} == {"train"}
    assert {name.split("/")[0] for name in data.splits["test"].names} == {"test"}


def test_a_train_folder_only(make_splits: Callable[..., Path]) -> None:
    assert sizes(folder(make_splits(train=10), val_split=0.2, test_split=0.1)) == {"train": 21, "val": 6, "test": 3}


def test_a_split_without_a_class_has_the_same_labels(make_splits: Callable[..., Path]) -> None:
    root = make_splits(train=4, val=2)
    shutil.rmtree(root / "val" / "ant")
    data = folder(root)
    assert set(data.splits["val"].labels) == {1, 2}
    assert labels_are_correct(data)


def test_a_class_that_training_does_not_have(make_splits: Callable[..., Path]) -> None:
    root = make_splits(train=4, val=2)
    (root / "val" / "bee").rename(root / "val" / "wasp")
    with pytest.raises(UserError, match=r"val .* wasp.*\n.*ant, bee"):
        folder(root)


def test_classes_named_train_and_test(tmp_path: Path, make_photos: MakePhotos) -> None:
    data = folder(make_photos(tmp_path, ["bus", "test", "train"]))
    assert data.classes == ["bus", "test", "train"]


def test_duplicates_are_in_the_same_split(photo_folder: Path) -> None:
    for number in range(4):
        shutil.copy(photo_folder / f"ant/000{number}.jpg", photo_folder / f"bee/copy{number}.jpg")
        shutil.copy(photo_folder / f"cat/000{number}.jpg", photo_folder / f"cat/copy{number}.jpg")
    for seed in range(5):
        data = folder(photo_folder, val_split=0.2, test_split=0.2, split_seed=seed)
        images = [contents(data, split) for split in ("train", "val", "test")]
        assert len(set.union(*images)) == sum(map(len, images)) == 30


def test_hidden_files_links_and_unicode_names(photo_folder: Path, tmp_path: Path, make_photos: MakePhotos) -> None:
    make_photos(photo_folder, [".cache", "日本 é"])
    (photo_folder / "ant" / ".hidden.jpg").write_bytes(b"")
    (photo_folder / "notes.txt").write_text("not a class")
    elsewhere = make_photos(tmp_path / "elsewhere", ["x"]) / "x"
    (photo_folder / "linked").symlink_to(elsewhere, target_is_directory=True)
    (photo_folder / "ant" / "loop").symlink_to(photo_folder / "ant", target_is_directory=True)
    data = folder(photo_folder)
    assert data.classes == [*CLASSES, "linked", "日本 é"]
    assert sum(sizes(data).values()) == 50
    assert labels_are_correct(data)
    assert {label for batch in data.train_dataloader() for label in batch.labels.tolist()} == {0, 1, 2, 3, 4}


# ------------------------------------------------------------------------------------ invalid folders
def missing_root(root: Path) -> None:
    shutil.rmtree(root)


def file_as_root(root: Path) -> None:
    shutil.rmtree(root)
    root.write_text("")


def empty(root: Path) -> None:
    shutil.rmtree(root)
    root.mkdir()


def no_class_folders(root: Path) -> None:
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
    for split in ("val", "test"):
        shutil.copytree(root / "ant", root / split / "ant")


def val_without_classes(root: Path) -> None:
    shutil.copytree(root, root / "train")
    shutil.copytree(root / "train", root / "val")
    (root / "val/dog").mkdir()


def splits_without_classes(root: Path) -> None:
    (root / "ant").rename(root / "train")
    (root / "bee").rename(root / "val")
    shutil.rmtree(root / "cat")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (missing_root, r"data\.root.*photos.*\n.*--data\.root"),
        (file_as_root, r"data\.root.*photos"),
        (empty, "photos has no class folders"),
        (no_class_folders, "photos has no class folders"),
        (empty_class, "class folder .*dog"),
        (one_class, "one class .ant."),
        (no_train, "val/ and test/ but no train/"),
        (val_without_classes, "class folder .*val/dog has no images"),
        (splits_without_classes, "train has no class folders"),
    ],
)
def test_invalid_folders(photo_folder: Path, change: Callable[[Path], None], message: str) -> None:
    change(photo_folder)
    with pytest.raises(UserError, match=message):
        folder(photo_folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_split": 1.0}, "val_split=1.0"),
        ({"val_split": -1}, "val_split=-1"),
        ({"test_split": 30}, "test_split=30.*30 images"),
        ({"num_folds": 40}, None),
        ({"fold": 1}, "fold=1.*num_folds"),
        ({"num_folds": 2, "fold": 2}, "fold=2.*num_folds=2"),
    ],
)
def test_invalid_splits(photo_folder: Path, options: dict, message: str | None) -> None:
    if message is None:
        assert sizes(folder(photo_folder, **options))["val"] == 1
        return
    with pytest.raises(UserError, match=message):
        folder(photo_folder, **options)


def test_a_folder_without_permission(photo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(UserError, match=r"cannot list folder .*photos: Permission denied"):
        folder(photo_folder)


def test_folds(photo_folder: Path, make_splits: Callable[..., Path]) -> None:
    folds = [folder(photo_folder, num_folds=3, fold=fold, test_split=3) for fold in range(3)]
    assert all(fold.splits["test"].names == folds[0].splits["test"].names for fold in folds)
    validated = [name for fold in folds for name in fold.splits["val"].names]
    assert len(validated) == len(set(validated)) == 27
    assert not set(validated) & set(folds[0].splits["test"].names)
    with pytest.raises(UserError, match=r"data\.num_folds.* val folder"):
        folder(make_splits(train=4, val=2), num_folds=3)


# ------------------------------------------------------------------------------------ restored splits
def names(data: ImageFolder) -> dict[str, list[str]]:
    return {name: images.names for name, images in data.splits.items()}


def test_splits_are_restored_although_images_were_added(photo_folder: Path, make_photos: MakePhotos) -> None:
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
    assert labels_are_correct(again)
    assert "stored in the checkpoint" in again.describe_split("test")


def test_splits_are_restored_in_a_moved_folder(photo_folder: Path, tmp_path: Path) -> None:
    first = folder(photo_folder)
    moved = photo_folder.rename(tmp_path / "moved")
    assert names(folder(moved, first.provenance())) == names(first)


@pytest.mark.parametrize("moved", [False, True])
def test_a_missing_training_image(
    photo_folder: Path, tmp_path: Path, moved: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    first = folder(photo_folder)
    stored, (lost, kept) = first.provenance(), first.splits["train"].names[:2]
    (photo_folder / lost).unlink()
    (photo_folder / kept).write_bytes((photo_folder / kept).read_bytes() + b"repaired")
    root = photo_folder.rename(tmp_path / "moved") if moved else photo_folder
    # A test needs the test images alone, a resumed training all of them; `skip` keeps the order of each epoch.
    tested = folder(root, stored, "test")
    assert names(tested)["test"] == names(first)["test"] and "stored in the checkpoint" in tested.describe_split("test")
    assert f"missing images of the checkpoint: 1, for example {lost}" in capsys.readouterr().out
    with pytest.raises(UserError, match=rf"lacks 1 of the 24 train images .*{lost}\n.*on_bad_image skip"):
        folder(root, stored)
    resumed = folder(root, stored, on_bad_image="skip")
    assert names(resumed) == names(first) and resumed.splits["train"].labels == first.splits["train"].labels
    read = {index for batch in resumed.train_dataloader() for index in batch.indices.tolist()}
    assert read == set(range(24)) - {names(first)["train"].index(lost)}


def test_a_missing_test_image(photo_folder: Path) -> None:
    first = folder(photo_folder)
    lost = first.splits["test"].names[0]
    (photo_folder / lost).unlink()
    with pytest.raises(UserError, match=rf"lacks 1 of the 3 test images .*{lost}\n.*on_bad_image skip"):
        folder(photo_folder, first.provenance(), "test")
    data = folder(photo_folder, first.provenance(), "test", on_bad_image="skip")
    assert sum(len(batch.labels) for batch in data.test_dataloader()) == 2


def test_the_cache_of_a_folder_with_missing_images(photo_folder: Path, tmp_path: Path) -> None:
    first = folder(photo_folder)
    (photo_folder / first.splits["train"].names[0]).unlink()
    options = {"cache": True, "cache_dir": str(tmp_path / "cache"), "on_bad_image": "skip"}
    data = folder(photo_folder, first.provenance(), **options)
    assert sum(len(batch.labels) for batch in data.train_dataloader()) == 23


@pytest.mark.parametrize("written", ["photos", "./photos/", "photos/../photos"])
def test_the_same_folder_with_another_path(photo_folder: Path, monkeypatch: pytest.MonkeyPatch, written: str) -> None:
    monkeypatch.chdir(photo_folder.parent)
    stored = folder(written).provenance()
    for path in photo_folder.glob("*/*"):
        path.rename(path.with_stem(f"renamed{path.stem}"))
    with pytest.raises(UserError, match=r"3 of the 3 test images .*\n.*--data\.root"):
        folder(photo_folder, stored, "test", on_bad_image="skip")


def test_added_images_and_classes_are_noted(
    photo_folder: Path, make_photos: MakePhotos, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = folder(photo_folder).provenance()
    make_photos(photo_folder, ["ant", "dog"], count=2, first=50)
    folder(photo_folder, stored)
    assert "note: images added since the checkpoint, not used: 4; new classes: dog" in capsys.readouterr().out


# ------------------------------------------------------------------------------------ copies of training images
@pytest.mark.parametrize("renamed", [False, True])
def test_a_copy_of_part_of_the_training_images(
    photo_folder: Path, tmp_path: Path, renamed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    first = folder(photo_folder)
    used = first.splits["train"].names + first.splits["val"].names
    for name in [*used[:9], *first.splits["test"].names]:
        target = tmp_path / "part" / (Path(name).with_stem(f"x{Path(name).stem}") if renamed else name)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photo_folder / name, target)
    data = folder(tmp_path / "part", first.provenance(), "test")
    assert contents(data, "test") == contents(first, "test")
    assert "note: 9 of 12 images are excluded" in capsys.readouterr().out
    assert "without 9 training images" in data.describe_split("test")
    for name in first.splits["test"].names:
        (tmp_path / "part" / (Path(name).with_stem(f"x{Path(name).stem}") if renamed else name)).unlink()
    with pytest.raises(UserError, match=r"all 9 images in .*part were used in the training"):
        folder(tmp_path / "part", first.provenance(), "test")


def test_training_images_that_became_test_images(make_splits: Callable[..., Path], tmp_path: Path) -> None:
    first = folder(make_splits(train=5, val=2, test=3))
    root = tmp_path / "splits"
    assert sizes(folder(root, first.provenance(), "test"))["test"] == 9
    for number in (0, 1):
        shutil.copy(root / f"train/ant/000{number}.jpg", root / f"test/ant/x{number}.jpg")
    data = folder(root, first.provenance(), "test")
    assert sizes(data)["test"] == 9 and "without 2 training images" in data.describe_split("test")


def test_other_images_with_the_names_of_the_training_images(
    photo_folder: Path, tmp_path: Path, make_photos: MakePhotos
) -> None:
    stored = folder(photo_folder).provenance()
    make_photos(tmp_path / "mine", CLASSES, first=90)
    for path in (tmp_path / "mine").glob("*/*"):
        path.rename(path.with_stem(f"{int(path.stem) - 90:04d}"))
    data = folder(tmp_path / "mine", stored, "test")
    assert sizes(data)["test"] == 30 and "all images of a folder other" in data.describe_split("test")


def test_a_checkpoint_without_fingerprints(
    photo_folder: Path, tmp_path: Path, make_photos: MakePhotos, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = folder(photo_folder).provenance() | {"digests": None}
    assert sizes(folder(photo_folder, stored, "test"))["test"] == 3
    assert "hashes" not in capsys.readouterr().out
    folder(make_photos(tmp_path / "other", CLASSES[:2], first=500), stored, "test")
    assert "note: the checkpoint has no hashes" in capsys.readouterr().out


def test_a_split_folder_that_changed(
    make_splits: Callable[..., Path], make_photos: MakePhotos, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_splits(train=5, val=2)
    stored = folder(root).provenance()
    make_photos(root / "train", ["dog"], count=2, first=70)
    (root / "train/ant/0000.jpg").unlink()
    assert sizes(folder(root, stored)) == {"train": 14, "val": 6, "test": 6}
    out = capsys.readouterr().out
    assert "2 train images are not used: the network has no class dog" in out
    assert "train split had 15 images when the checkpoint was saved and has 14 now" in out


def test_all_images_of_another_folder_are_tested(photo_folder: Path, tmp_path: Path, make_photos: MakePhotos) -> None:
    stored = folder(photo_folder).provenance()
    other = make_photos(tmp_path / "other", CLASSES[:2], count=4, first=500)
    data = folder(other, stored)
    assert sizes(data) == {"val": 8, "test": 8}
    assert data.describe_split("test").startswith("all images of a folder other than the training data")
    assert data.classes == CLASSES
    with pytest.raises(UserError, match=r"no train split\n.*new run.*--model\.weights"):
        data.train_dataloader()


@pytest.mark.parametrize(
    ("folders", "tested"), [(("train", "val", "test"), "test"), (("train", "val"), "val"), (("test",), "test")]
)
def test_only_the_test_split_of_another_folder_is_tested(
    photo_folder: Path, make_splits: Callable[..., Path], folders: tuple, tested: str
) -> None:
    data = folder(make_splits(**dict.fromkeys(folders, 2)), folder(photo_folder).provenance())
    assert {name.split("/")[0] for images in data.splits.values() for name in images.names} == {tested}
    assert data.describe_split("test").startswith(f"{tested}/ of a folder other than the training data")


def test_split_folders_define_the_splits_in_a_moved_folder(make_splits: Callable[..., Path], tmp_path: Path) -> None:
    root = make_splits(train=3, val=2)
    first = folder(root)
    stored = first.provenance()
    assert stored["splits"] is None
    moved = root.rename(tmp_path / "moved")
    assert names(folder(moved, stored)) == names(first)


def test_val_taken_from_train_is_restored(make_splits: Callable[..., Path], make_photos: MakePhotos) -> None:
    root = make_splits(train=10, test=3)
    first = folder(root)
    make_photos(root / "train", count=30, first=1000)
    assert names(folder(root, first.provenance())) == names(first)


# ------------------------------------------------------------------------------------ damaged files
def damage(root: Path) -> None:
    for name in ("ant/0003.jpg", "cat/0000.jpg"):
        (root / name).write_bytes((root / name).read_bytes()[:300])


def test_verify_images_names_damaged_files_before_training(photo_folder: Path) -> None:
    folder(photo_folder, verify_images=True)
    damage(photo_folder)
    folder(photo_folder)
    with pytest.raises(UserError, match=r"2 images .*ant/0003\.jpg.*cat/0000\.jpg.*\n.*on_bad_image skip"):
        folder(photo_folder, verify_images=True)


def test_verify_images_skips_damaged_files(photo_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(photo_folder)
    data = folder(photo_folder, verify_images=True, on_bad_image="skip")
    assert sum(sizes(data).values()) == 28
    assert capsys.readouterr().out.count("skipped: ") == 2
    stored = data.provenance()["splits"]
    assert not {"ant/0003.jpg", "cat/0000.jpg"} & {name for split in stored.values() for name in split}


def test_verify_images_shows_a_progress_bar(
    photo_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    folder(photo_folder, verify_images=True)
    assert "30/30" in capsys.readouterr().err


def test_training_and_evaluation_crops(photo_folder: Path) -> None:
    data = folder(photo_folder)
    batch = next(iter(data.train_dataloader()))
    assert batch.images.shape == (4, 3, 16, 16)
    assert batch.images.dtype == torch.uint8
    train, val = data.splits["train"], data.splits["val"]
    assert isinstance(train.crop, ScaleCrop)
    assert isinstance(val.crop, ResizeCenterCrop)


def test_training_crops_can_be_smaller_than_evaluation_images(photo_folder: Path) -> None:
    data = ImageFolder(str(photo_folder), image_size=24, train_image_size=(16, 8), batch_size=4, num_workers=0)
    data.setup("fit")
    shapes = [next(iter(loader)).images.shape[2:] for loader in (data.train_dataloader(), data.val_dataloader())]
    assert shapes == [(16, 8), (24, 24)] and data.batch_shape == (4, 3, 16, 8)
    assert data.splits["train"].for_evaluation(data.eval_crop, data.image_size)[0, 0][0].shape == (3, 24, 24)
    data.set_predict_files([data.root / data.splits["val"].names[0]])
    assert next(iter(data.predict_dataloader())).images.shape == (1, 3, 24, 24)
    with pytest.raises(ValueError, match="train_image_size is 4"):
        ImageFolder(str(photo_folder), train_image_size=4)
    with pytest.raises(UserError, match=r"data\.mean: pixel"):
        ImageFolder(str(photo_folder), train_image_size=16, mean="pixel")


def test_statistics_are_measured_on_center_crops_of_the_training_split(photo_folder: Path) -> None:
    data = folder(photo_folder, mean="pixel", std="channel", val_split=0.3)
    train = data.splits["train"]
    plain = ImageFileDataset(data.root, train.names, train.labels, 16)
    crops = torch.stack([plain[0, index][0] for index in range(len(plain))]).double() / 255
    mean, std = data.normalization()
    torch.testing.assert_close(mean, crops.mean(0).float())
    torch.testing.assert_close(std.flatten(), crops.transpose(0, 1).flatten(1).std(1, correction=0).float())


def test_other_images_with_the_same_names_are_other_data(tmp_path: Path) -> None:
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
    assert len(again.splits["test"]) == 20 and "all images" in again.describe_split("test")


def test_copies_in_several_split_folders_are_noted(
    make_splits: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_splits(train=5, val=2, test=2)
    folder(root)
    assert "in several splits" not in capsys.readouterr().out
    shutil.copy(root / "train/ant/0001.jpg", root / "test/ant/again.jpg")
    folder(root)
    assert "note: 1 image in several splits, such as train/ant/0001.jpg = test/ant/again.jpg" in (
        capsys.readouterr().out
    )
