import random
from collections import Counter
from pathlib import Path

import pytest

from resnet_pl.data.digests import content_digests
from resnet_pl.data.splits import Split, make_split
from resnet_pl.utils import UserError


def images(*per_class: int) -> tuple[list[str], list[int]]:
    """Digests and labels of so many different images of each class."""
    labels = [label for label, count in enumerate(per_class) for _ in range(count)]
    return [f"digest{index}" for index in range(len(labels))], labels


def per_class(part: list[int], labels: list[int]) -> Counter[int]:
    return Counter(labels[index] for index in part)


def assert_complete(split: Split, count: int) -> None:
    assert sorted(split.train + split.val + split.test) == list(range(count))
    assert all(part == sorted(part) for part in (split.train, split.val, split.test))


@pytest.mark.parametrize(
    ("val", "test", "expected"),
    [(0.15, 0.15, (26, 26)), (10, 0.2, (10, 35)), (0, 25, (0, 25)), (0.0, 0.0, (0, 0)), (7, 11, (7, 11))],
)
def test_totals_are_exact_and_classes_in_proportion(val: float, test: float, expected: tuple[int, int]) -> None:
    sizes = (97, 40, 23, 13)
    digests, labels = images(*sizes)
    split = make_split(digests, labels, val=val, test=test, seed=0)
    assert_complete(split, sum(sizes))
    assert (len(split.val), len(split.test)) == expected
    assert split.warnings == []
    for part in (split.val, split.test):
        for label, size in enumerate(sizes):
            assert abs(per_class(part, labels)[label] - len(part) * size / sum(sizes)) <= 1


@pytest.mark.parametrize("num_folds", [None, 3])
def test_order_of_the_files_does_not_matter(num_folds: int | None) -> None:
    digests, labels = images(20, 12, 8)
    digests[5] = digests[6] = digests[25]
    names = [f"{index:02}.jpg" for index in range(40)]

    def parts(order: list[int]) -> list[set[str]]:
        shuffled = [[values[index] for index in order] for values in (digests, labels, names)]
        split = make_split(shuffled[0], shuffled[1], val=0.2, test=0.2, seed=3, num_folds=num_folds, names=shuffled[2])
        return [{shuffled[2][index] for index in part} for part in (split.train, split.val, split.test)]

    order = list(range(40))
    first = parts(order)
    random.Random(1).shuffle(order)
    assert parts(order) == first


def test_seed_matters_and_new_images_move_few_old_ones() -> None:
    digests, labels = images(100, 100)
    first = make_split(digests, labels, val=0.2, test=0.2, seed=0)
    assert make_split(digests, labels, val=0.2, test=0.2, seed=0) == first
    assert make_split(digests, labels, val=0.2, test=0.2, seed=1) != first
    more = make_split([*digests, "new"], [*labels, 0], val=0.2, test=0.2, seed=0)
    assert len(set(more.test) ^ set(first.test)) <= 2


def test_copies_stay_together() -> None:
    digests, labels = images(30, 30)
    for index in range(0, 60, 3):
        digests[index + 1] = digests[index]
    split = make_split(digests, labels, val=0.25, test=0.25, seed=0)
    assert_complete(split, 60)
    assert (len(split.val), len(split.test)) == (15, 15)
    for part in (split.train, split.val, split.test):
        assert all(index + 1 in part for index in part if index % 3 == 0)
    assert split.warnings == ["20 of 60 images are exact copies of others; copies are kept in one part"]


def test_copies_in_different_classes_are_named() -> None:
    digests, labels = images(10, 10)
    digests[12] = digests[3]
    names = [f"{'cat' if label == 0 else 'ant'}/{index}.jpg" for index, label in enumerate(labels)]
    split = make_split(digests, labels, val=0.2, test=0.2, seed=0, names=names, class_names=["cat", "ant"])
    assert "the same image in different classes: ant/12.jpg (ant), cat/3.jpg (cat)" in split.warnings
    assert any({3, 12} <= set(part) for part in (split.train, split.val, split.test))


def test_many_clashes_are_counted() -> None:
    digests, labels = images(20, 20)
    digests[20:28] = digests[:8]
    warnings = make_split(digests, labels, val=4, test=4, seed=0).warnings
    assert sum(warning.startswith("the same image in different classes") for warning in warnings) == 5
    assert warnings[-1] == "... and 3 more images in different classes"


def test_every_class_of_three_is_in_every_part() -> None:
    digests, labels = images(100, 3, 3, 2, 1)
    split = make_split(digests, labels, val=0.1, test=0.1, seed=0)
    assert_complete(split, 109)
    for part in (split.train, split.val, split.test):
        assert {0, 1, 2} <= set(per_class(part, labels))
    assert set(per_class(split.train, labels)) == {0, 1, 2, 3, 4}
    assert (len(split.val), len(split.test)) == (11, 11)
    assert split.warnings == ["too few different images to be in every part: 3, 4"]


def test_a_large_test_part_leaves_something_to_validate_on() -> None:
    digests, labels = images(3, 30)
    split = make_split(digests, labels, val=7, test=18, seed=0)
    assert [per_class(part, labels)[0] for part in (split.train, split.val, split.test)] == [1, 1, 1]
    assert (len(split.val), len(split.test)) == (7, 18)


def test_small_counts_give_way_to_one_per_class() -> None:
    digests, labels = images(5, 5, 5)
    split = make_split(digests, labels, val=0, test=2, seed=0)
    assert per_class(split.test, labels) == {0: 1, 1: 1, 2: 1}
    assert split.warnings == ["test has 3 images instead of 2, for copies or for small classes"]


@pytest.mark.parametrize("test", [0, 0.2])
def test_folds_cover_every_image_once(test: float) -> None:
    sizes = (31, 17, 8)
    digests, labels = images(*sizes)
    splits = [make_split(digests, labels, val=0, test=test, seed=0, num_folds=5, fold=fold) for fold in range(5)]
    held_apart = splits[0].test
    assert len(held_apart) == round(test * 56)
    assert all(split.test == held_apart for split in splits)
    for split in splits:
        assert_complete(split, 56)
    seen = Counter(index for split in splits for index in split.val)
    assert seen == Counter(set(range(56)) - set(held_apart))
    counts = [per_class(split.val, labels) for split in splits]
    for label in range(3):
        assert max(count[label] for count in counts) - min(count[label] for count in counts) <= 1
    assert max(map(Counter.total, counts)) - min(map(Counter.total, counts)) <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val": 1.0}, "val_split=1.0; give a fraction"),
        ({"val": -0.1}, "val_split=-0.1; give a fraction"),
        ({"test": -1}, "test_split=-1; give a fraction"),
        ({"test": float("nan")}, "test_split=nan; give a fraction"),
        ({"val": 0.5, "test": 0.5}, "take all of 20 images"),
        ({"test": 20}, "take all of 20 images"),
        ({"val": 10, "test": 9}, "leave a class without images"),
        ({"fold": 1}, "without num_folds"),
        ({"num_folds": 5, "fold": 5}, "fold=5 of num_folds=5"),
        ({"num_folds": 5, "fold": -1}, "fold=-1 of num_folds=5"),
        ({"num_folds": 1}, "fold=0 of num_folds=1"),
        ({"class_names": ["ant", "bee", "cat"]}, "class cat has no images"),
    ],
)
def test_errors(options: dict, message: str) -> None:
    digests, labels = images(10, 10)
    with pytest.raises(UserError, match=message):
        make_split(digests, labels, **{"val": 0, "test": 0, "seed": 0, **options})


def test_class_too_small_for_folds() -> None:
    digests, labels = images(10, 1)
    with pytest.raises(UserError, match="class bee has too few images for folds"):
        make_split(digests, labels, val=0, test=0, seed=0, num_folds=2, class_names=["ant", "bee"])


def test_class_that_only_has_copies_of_another() -> None:
    digests, labels = images(3, 1)
    digests[3] = digests[0]

    def split(seed: int) -> Split:
        return make_split(digests, labels, val=1, test=1, seed=seed)

    errors = 0
    for seed in range(10):
        try:
            assert set(per_class(split(seed).train, labels)) == {0, 1}
        except UserError as error:
            assert "class 1 has too few different images" in str(error)
            errors += 1
    assert 0 < errors < 10


def test_content_digests(tmp_path: Path) -> None:
    for name, content in {"a": b"one", "b": b"two", "c": b"one"}.items():
        (tmp_path / name).write_bytes(content)
    digests = content_digests([tmp_path / name for name in "abc"])
    assert digests[0] == digests[2] != digests[1]
    assert [len(digest) for digest in digests] == [32, 32, 32]
    with pytest.raises(UserError, match=r"cannot read .*missing: No such file"):
        content_digests([tmp_path / "missing"])
