"""Splits and folds of images in groups."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from resnet_pl.data import ImageFolder, ImageTable
from resnet_pl.data.splits import Split, make_split
from resnet_pl.utils import UserError
from tests.cli.commands import run
from tests.conftest import MakePhotos

QUICK = ["--model.backbone", "cifar_resnet", "--model.backbone.depth", "8", "--trainer.max_epochs", "1"]
QUICK += ["--data.image_size", "16", "--data.num_workers", "0", "--dashboard", "false", "--trainer.accelerator", "cpu"]
QUICK += ["--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "1"]


def images(groups: int, classes: int, seed: int) -> tuple[list[str], list[int], list[str]]:
    """Returns digests, labels and groups of different images: 3 to 12 per group, each with any class."""
    draw = random.Random(seed)
    ids = [f"patient{number}" for number in range(groups) for _ in range(draw.randint(3, 12))]
    labels = [draw.randrange(classes) for _ in ids]
    return [f"digest{index}" for index in range(len(ids))], labels, ids


def parts(split: Split) -> list[list[int]]:
    return [split.train, split.val, split.test]


def assert_groups_are_separate(split: Split, groups: list[str]) -> None:
    assert sorted(split.train + split.val + split.test) == list(range(len(groups)))
    for one, other in combinations(parts(split), 2):
        assert not {groups[index] for index in one} & {groups[index] for index in other}


@pytest.mark.parametrize("seed", range(5))
def test_no_group_is_in_two_splits(seed: int) -> None:
    digests, labels, groups = images(60, 4, seed)
    split = make_split(digests, labels, val=0.2, test=0.25, seed=seed, groups=groups)
    assert_groups_are_separate(split, groups)
    assert split.warnings == []
    for indices, fraction in ((split.val, 0.2), (split.test, 0.25)):
        assert abs(len(indices) / len(labels) - fraction) < 0.05
        for label, count in Counter(labels).items():
            assert abs(sum(labels[index] == label for index in indices) / count - fraction) < 0.1
    assert make_split(digests, labels, val=0.2, test=0.25, seed=seed + 1, groups=groups) != split


def test_a_split_by_group_does_not_depend_on_the_order_of_the_files() -> None:
    columns = images(20, 3, seed=0)
    order = list(range(len(columns[0])))
    found = []
    for _ in range(2):
        digests, labels, groups = ([column[index] for index in order] for column in columns)
        split = make_split(digests, labels, val=0.2, test=0.2, seed=0, groups=groups)
        found.append([{digests[index] for index in indices} for indices in parts(split)])
        random.Random(1).shuffle(order)
    assert found[0] == found[1]


def test_each_class_with_three_groups_is_in_every_split() -> None:
    groups = [f"patient{number // 4}" for number in range(60)]
    labels = [0] * 40 + [1] * 12 + [2] * 4 + [3] * 4  # 10, 3, 1 and 1 groups
    split = make_split([*map(str, range(60))], labels, val=0.1, test=0.1, seed=0, groups=groups)
    assert_groups_are_separate(split, groups)
    assert [{labels[index] for index in indices} for indices in parts(split)] == [{0, 1, 2, 3}, {0, 1}, {0, 1}]
    assert any("test has no images of 2, 3: there are too few groups" in warning for warning in split.warnings)


def test_images_with_equal_content_join_their_groups() -> None:
    digests, labels, groups = images(12, 2, seed=0)
    for number in range(11):  # a chain through all groups but the last
        digests[groups.index(f"patient{number}")] = f"copy{number // 2}"
        digests[len(groups) - 1 - groups[::-1].index(f"patient{number}")] = f"copy{(number + 1) // 2}"
    digests[-1] = "last"
    joined = [group if group == "patient11" else "others" for group in groups]
    split = make_split(digests, labels, val=0, test=0.1, seed=0, groups=groups)
    assert_groups_are_separate(split, joined)
    assert {joined[index] for index in split.test} == {"patient11"}


@pytest.mark.parametrize("count", [60, 200])
def test_a_small_split_of_many_groups(count: int) -> None:
    groups, labels = [str(number // 10) for number in range(8_000)], [number // 10 % 2 for number in range(8_000)]
    split = make_split(list(map(str, range(8_000))), labels, val=count, test=100, seed=0, groups=groups)
    assert_groups_are_separate(split, groups)
    assert len(split.val) == pytest.approx(count, rel=0.25) and len(split.test) == pytest.approx(100, rel=0.25)
    assert {labels[index] for index in split.val} == {0, 1}


def test_a_small_split_of_many_classes() -> None:
    groups, labels = [str(number // 4) for number in range(2_000)], [number % 100 for number in range(2_000)]
    split = make_split(list(map(str, range(2_000))), labels, val=20, test=0, seed=0, groups=groups)
    assert_groups_are_separate(split, groups)
    assert 20 <= len(split.val) <= 150  # each class is in validation


def test_images_without_a_group_are_split_one_by_one() -> None:
    digests, labels, _ = images(10, 2, seed=0)
    split = make_split(digests, labels, val=0.2, test=0.2, seed=0, groups=[""] * len(digests))
    assert_groups_are_separate(split, digests)
    assert abs(len(split.test) - len(digests) / 5) <= 2


def test_folds_of_groups_cover_every_image_once() -> None:
    digests, labels, groups = images(25, 3, seed=0)
    splits = [
        make_split(digests, labels, val=0, test=0.2, seed=0, num_folds=4, fold=fold, groups=groups) for fold in range(4)
    ]
    for split in splits:
        assert_groups_are_separate(split, groups)
        assert split.test == splits[0].test
        assert {labels[index] for index in split.val} == {0, 1, 2}
    validated = Counter(index for split in splits for index in split.val)
    assert validated == Counter(set(range(len(labels))) - set(splits[0].test))


@pytest.mark.parametrize(
    ("groups", "options", "message"),
    [
        ("aaaaaaaa", {"test": 0.2}, "test_split=2 images: there are too few groups"),
        ("aaaabbbb", {"num_folds": 3}, "num_folds=3: there are only 2 groups"),
        ("aabbccdd", {"num_folds": 2}, "class bee is in only one group"),
        ("abcdefgh", {"num_folds": 7}, "num_folds=7: the largest class has only 6 images"),
    ],
)
def test_too_few_groups(groups: str, options: dict, message: str) -> None:
    labels = [0, 0, 0, 0, 0, 0, 1, 1]
    with pytest.raises(UserError, match=message):
        make_split(
            [*map(str, range(8))], labels, **{"val": 0, "test": 0, "seed": 0, **options}, groups=[*groups],
            class_names=["ant", "bee"],
        )  # fmt: skip


def test_images_with_several_labels_are_stratified_by_the_rarest() -> None:
    labels = [(0, 1)] * 6 + [(0,)] * 40 + [()] * 14
    split = make_split([*map(str, range(60))], labels, val=0.2, test=0.2, seed=0)
    for indices in (split.val, split.test):
        assert Counter(labels[index] for index in indices) == {(0, 1): 1, (0,): 8, (): 3}


# ------------------------------------------------------------------------------------ folders
def patients(root: Path, make_photos: MakePhotos, first: int = 0) -> None:
    """Two classes of 12 images, of six patients each."""
    for path in sorted(make_photos(root, ["ant", "bee"], count=12, first=first).glob("*/*")):
        path.rename(path.with_stem(f"patient{(int(path.stem) - first) // 2 + first}_{path.stem}"))


def test_fit_splits_by_group(tmp_path: Path, make_photos: MakePhotos, capsys: pytest.CaptureFixture[str]) -> None:
    patients(tmp_path / "photos", make_photos)
    args = ["--data", "ImageFolder", "--data.root", tmp_path / "photos", "--data.group_pattern", r"(patient\d+)_"]
    run("fit", *QUICK, *args)
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("splits") and line.endswith("6 groups, none in two splits") for line in lines)
    splits = json.loads(next(Path("runs").rglob("splits.json")).read_text())["splits"]
    groups = [{Path(name).name.split("_")[0] for name in splits[split]} for split in ("train", "val", "test")]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 6


def test_groups_in_several_split_folders_are_reported(tmp_path: Path, make_photos: MakePhotos) -> None:
    for number, split in enumerate(("train", "val", "test")):
        patients(tmp_path / "photos" / split, make_photos, first=5 * number)
    data = ImageFolder(str(tmp_path / "photos"), group_pattern="(patient5)_")
    data.find_splits()
    expected = "1 of 1 groups are in several splits, for example patient5 in train and val; 64 images without a group"
    assert data.split_note == expected


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(patient", "(patient is not a regular expression"),
        (r"patient\d", r"patient\d has no group"),
        (r"(video\d)", r"(video\d) finds nothing in the paths of the images, such as ant/0000.jpg"),
    ],
)
def test_a_wrong_group_pattern_is_named(photo_folder: Path, pattern: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        ImageFolder(str(photo_folder), group_pattern=pattern).find_splits()
    assert str(error.value).startswith(f"data.group_pattern: {message}")


def test_a_pattern_is_not_replaced_by_a_usual_column(tmp_path: Path) -> None:
    for name in ("a_0.jpg", "a_1.jpg"):
        (tmp_path / name).touch()
    path = tmp_path / "labels.csv"
    path.write_text("path,label,subject\na_0.jpg,ant,7\na_1.jpg,bee,8")
    for pattern, column, groups in ((None, None, "78"), ("a_(.)", None, "01"), ("a_(.)", "subject", "78")):
        data = ImageTable(str(path), group_pattern=pattern, group_column=column)
        assert data.groups(["a_0.jpg", "a_1.jpg"]) == list(groups)
