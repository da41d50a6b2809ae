"""ImageNet folders with a few small images."""

from collections.abc import Callable
from pathlib import Path

import pytest
from torchvision.models import ResNet18_Weights

from resnet_pl.data import ImageNet

IDS = ["n01440764", "n02012849", "n03126707", "n99999999"]
MAPPING = """n01440764 tench, Tinca tinca
n02012849 crane

n03126707 crane
n09999999
"""


@pytest.fixture
def root(tmp_path: Path, make_photos: Callable) -> Path:
    """Returns a folder with four WordNet IDs in train/ and val/."""
    for first, split in enumerate(("train", "val")):
        make_photos(tmp_path / "imagenet" / split, IDS, count=3 - first, first=100 * first)
    return tmp_path / "imagenet"


def imagenet(root: Path, stored: dict | None = None) -> ImageNet:
    data = ImageNet(str(root), image_size=16, num_workers=0)
    if stored:
        data.use_provenance(stored)
    data.setup("fit")
    return data


def test_val_is_the_test_split(root: Path) -> None:
    data = imagenet(root)
    assert {name: len(images) for name, images in data.splits.items()} == {"train": 12, "val": 8, "test": 8}
    assert data.classes == data.class_names == IDS


def test_the_official_test_images_are_ignored(root: Path, make_photos: Callable) -> None:
    make_photos(root, ["test"])
    assert imagenet(root).describe_split("test").startswith("val/")


def test_class_names_from_the_mapping(root: Path) -> None:
    (root / "LOC_synset_mapping.txt").write_text(MAPPING)
    assert imagenet(root).class_names == ["tench", "crane (n02012849)", "crane (n03126707)", "n99999999"]


def test_class_names_are_restored_without_a_mapping(root: Path, tmp_path: Path) -> None:
    (root / "LOC_synset_mapping.txt").write_text(MAPPING)
    stored = imagenet(root).provenance()
    (root / "LOC_synset_mapping.txt").unlink()
    moved = imagenet(root.rename(tmp_path / "moved"), stored)
    assert moved.class_names == ["tench", "crane (n02012849)", "crane (n03126707)", "n99999999"]
    assert {name: len(images) for name, images in moved.splits.items()} == {"train": 12, "val": 8, "test": 8}


def test_class_names_of_all_1000_classes(tmp_path: Path) -> None:
    data = ImageNet(str(tmp_path))
    ids = ["n01440764", *(f"n{number:08}" for number in range(2_000_000, 2_000_998)), "n15075141"]
    data.classes = ids
    assert data.class_names == ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    # 1000 other classes.
    data.classes = [f"n{number:08}" for number in range(1000)]
    assert data.class_names == data.classes
