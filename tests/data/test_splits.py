"""Stratified splits, folds and duplicates."""

import random
from collections import Counter
from pathlib import Path

import pytest

from resnet_pl.data.digests import content_digests
from resnet_pl.data.splits import Split, make_split
from resnet_pl.utils import UserError


def images(*per_class: int) -> tuple[list[str], list[int]]:
    """Returns digests and labels of different images, given the number for each class."""
    labels = [label for label, count in enumerate(per_class) for _ in range(count)]
    return [f"digest{index}" for index in range(len(labels))], labels


def per_class(indices: list[int], labels: list[int]) -> Counter[int]:
    return Counter(labels[index] for index in indices)


def assert_complete(split: Split, count: int) -> None:
    assert sorted(split.train + split.val + split.test) == list(range(count))
    assert all(indices == sorted(indices) for indices in (split.train, split.val, split.test))


@pytest.mark.parametrize(
    ("val", "test", "expected"),
    [(0.15, 0.15, (26, 26)), (10, 0.2, (10, 35)), (0, 25, (0, 25)), (0.0, 0.0, (0, 0)), (7, 11, (7, 11))],
)
def test_totals_are_exact_and_classes_are_stratified(val: float, test: float, expected: tuple[int, int]) -> None:
    sizes = (97, 40, 23, 13)
    digests, labels = images(*sizes)
    split = make_split(digests, labels, val=val, test=test, seed=0)
    assert_complete(split, sum(sizes))
    assert (len(split.val), len(split.test)) == expected
    assert split.warnings == []
    for indices in (split.val, split.test):
        for label, size in enumerate(sizes):
            assert abs(per_class(indices, labels)[label] - len(indices) * size / sum(sizes)) <= 1


@pytest.mark.parametrize("num_folds", [None, 3])
def test_the_split_does_not_depend_on_the_order_of_the_files(num_folds: int | None) -> None:
    digests, labels = images(20, 12, 8)
    digests[5] = digests[6] = digests[25]
    names = [f"{index:02}.jpg" for index in range(40)]

    def split_names(order: list[int]) -> list[set[str]]:
        shuffled = [[values[index] for index in order] for values in (digests, labels, names)]
        split = make_split(shuffled[0], shuffled[1], val=0.2, test=0.2, seed=3, num_folds=num_folds, names=shuffled[2])
        return [{shuffled[2][index] for index in indices} for indices in (split.train, split.val, split.test)]

    order = list(range(40))
    first = split_names(order)
    random.Random(1).shuffle(order)
    assert split_names(order) == first


def test_new_images_move_few_others() -> None:
    digests, labels = images(100, 100)
    first = make_split(digests, labels, val=0.2, test=0.2, seed=0)
    assert make_split(digests, labels, val=0.2, test=0.2, seed=0) == first
    assert make_split(digests, labels, val=0.2, test=0.2, seed=1) != first
    more = make_split([*digests, "new"], [*labels, 0], val=0.2, test=0.2, seed=0)
    assert len(set(more.test) ^ set(first.test)) <= 2


def test_duplicates_are_in_the_same_split() -> None:
    digests, labels = images(30, 30)
    for index in range(0, 60, 3):
        digests[index + 1] = digests[index]
    split = make_split(digests, labels, val=0.25, test=0.25, seed=0)
    assert_complete(split, 60)
    assert (len(split.val), len(split.test)) == (15, 15)
    for indices in (split.train, split.val, split.test):
        assert all(index + 1 in indices for index in indices if index % 3 == 0)
    (warning,) = split.warnings
    assert "20 of 60 images are exact duplicates" in warning


def test_duplicates_in_different_classes_are_named() -> None:
    digests, labels = images(10, 10)
    digests[12] = digests[3]
    names = [f"{'cat' if label == 0 else 'ant'}/{index}.jpg" for index, label in enumerate(labels)]
    split = make_split(digests, labels, val=0.2, test=0.2, seed=0, names=names, class_names=["cat", "ant"])
    assert any("ant/12.jpg (ant), cat/3.jpg (cat)" in warning for warning in split.warnings)
    assert any({3, 12} <= set(indices) for indices in (split.train, split.val, split.test))


def test_only_some_conflicts_are_named() -> None:
    digests, labels = images(20, 20)
    digests[20:28] = digests[:8]
    warnings = make_split(digests, labels, val=4, test=4, seed=0).warnings
    assert sum(warning.startswith("the same image in different classes") for warning in warnings) == 5
    assert "3 more" in warnings[-1]


def test_a_class_of_three_images_is_in_every_split() -> None:
    digests, labels = images(100, 3, 3, 2, 1)
    split = make_split(digests, labels, val=0.1, test=0.1, seed=0)
    assert_complete(split, 109)
    for indices in (split.train, split.val, split.test):
        assert {0, 1, 2} <= set(per_class(indices, labels))
    assert set(per_class(split.train, labels)) == {0, 1, 2, 3, 4}
    assert (len(split.val), len(split.test)) == (11, 11)
    (warning,) = split.warnings
    assert warning.endswith(": 3, 4")


def test_a_large_test_split_leaves_validation_images() -> None:
    digests, labels = images(3, 30)
    split = make_split(digests, labels, val=7, test=18, seed=0)
    assert [per_class(indices, labels)[0] for indices in (split.train, split.val, split.test)] == [1, 1, 1]
    assert (len(split.val), len(split.test)) == (7, 18)


def test_at_least_one_image_per_class() -> None:
    digests, labels = images(5, 5, 5)
    split = make_split(digests, labels, val=0, test=2, seed=0)
    assert per_class(split.test, labels) == {0: 1, 1: 1, 2: 1}
    (warning,) = split.warnings
    assert warning.startswith("test has 3 images instead of 2")


@pytest.mark.parametrize("test", [0, 0.2])
def test_folds_cover_every_image_once(test: float) -> None:
    sizes = (31, 17, 8)
    digests, labels = images(*sizes)
    splits = [make_split(digests, labels, val=0, test=test, seed=0, num_folds=5, fold=fold) for fold in range(5)]
    held_out = splits[0].test
    assert len(held_out) == round(test * 56)
    assert all(split.test == held_out for split in splits)
    for split in splits:
        assert_complete(split, 56)
    seen = Counter(index for split in splits for index in split.val)
    assert seen == Counter(set(range(56)) - set(held_out))
    counts = [per_class(split.val, labels) for split in splits]
    for label in range(3):
        assert max(count[label] for count in counts) - min(count[label] for count in counts) <= 1
    assert max(map(Counter.total, counts)) - min(map(Counter.total, counts)) <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val": 1.0}, r"val_split=1\.0"),
        ({"val": -0.1}, r"val_split=-0\.1"),
        ({"test": -1}, "test_split=-1"),
        ({"test": float("nan")}, "test_split=nan"),
        ({"val": 0.5, "test": 0.5}, r"val_split=0\.5 and test_split=0\.5.* 20 images"),
        ({"test": 20}, "test_split=20.* 20 images"),
        ({"val": 10, "test": 9}, "class without training images"),
        ({"fold": 1}, "fold=1.*num_folds"),
        ({"num_folds": 5, "fold": 5}, "fold=5.*num_folds=5"),
        ({"num_folds": 5, "fold": -1}, "fold=-1.*num_folds=5"),
        ({"num_folds": 1}, "fold=0.*num_folds=1"),
        ({"class_names": ["ant", "bee", "cat"]}, "class cat has no images"),
    ],
)
def test_invalid_options_are_named(options: dict, message: str) -> None:
    digests, labels = images(10, 10)
    with pytest.raises(UserError, match=message):
        make_split(digests, labels, **{"val": 0, "test": 0, "seed": 0, **options})


def test_class_too_small_for_folds() -> None:
    digests, labels = images(10, 1)
    with pytest.raises(UserError, match=r"class bee .*folds"):
        make_split(digests, labels, val=0, test=0, seed=0, num_folds=2, class_names=["ant", "bee"])


def test_class_with_only_duplicates_of_another() -> None:
    digests, labels = images(3, 1)
    digests[3] = digests[0]

    def split(seed: int) -> Split:
        return make_split(digests, labels, val=1, test=1, seed=seed)

    errors = 0
    for seed in range(10):
        try:
            assert set(per_class(split(seed).train, labels)) == {0, 1}
        except UserError as error:
            assert "class 1 " in str(error)
            errors += 1
    assert 0 < errors < 10


def test_content_digests(tmp_path: Path) -> None:
    for name, content in {"a": b"one", "b": b"two", "c": b"one"}.items():
        (tmp_path / name).write_bytes(content)
    digests = content_digests([tmp_path / name for name in "abc"])
    assert digests[0] == digests[2] != digests[1]
    assert [len(digest) for digest in digests] == [32, 32, 32]
    with pytest.raises(UserError, match=r"missing: No such file"):
        content_digests([tmp_path / "missing"])
