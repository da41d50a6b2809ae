"""scikit-learn's digits as a data module."""

from collections import Counter

import torch

from resnet_pl.data import Digits


def digits(**kwargs: object) -> Digits:
    data = Digits(**kwargs)
    data.setup("fit")
    return data


def test_splits_are_stratified_and_disjoint() -> None:
    splits = digits().splits
    assert {name: len(images) for name, images in splits.items()} == {"train": 1257, "val": 180, "test": 360}
    total = Counter(label for images in splits.values() for label in images.labels.tolist())
    for images in splits.values():
        assert images.images.shape[1:] == (3, 16, 16)
        for label, count in Counter(images.labels.tolist()).items():
            assert abs(count - len(images) * total[label] / 1797) < 1.5
    contents = [{image.numpy().tobytes() for image in images.images} for images in splits.values()]
    assert not contents[0] & contents[1]
    assert not contents[0] & contents[2]
    assert not contents[1] & contents[2]


def test_the_split_depends_on_split_seed_only() -> None:
    torch.manual_seed(1)
    first = digits()
    torch.manual_seed(2)
    assert digits().splits["test"].names == first.splits["test"].names
    assert digits(split_seed=1).splits["test"].names != first.splits["test"].names


def test_images_are_gray_with_full_range() -> None:
    train = digits(image_size=8).splits["train"].images
    assert torch.equal(train[:, 0], train[:, 1])
    assert torch.equal(train[:, 0], train[:, 2])
    assert (int(train.min()), int(train.max())) == (0, 255)
    assert digits(image_size=32).splits["train"].images.shape[2:] == (32, 32)
