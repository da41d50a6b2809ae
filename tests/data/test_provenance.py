"""Matching of a checkpoint's splits with the images on disk."""

from pathlib import Path

import pytest

from resnet_pl.data.provenance import Provenance
from resnet_pl.utils import UserError

NAMES = [f"ant/{i}.jpg" for i in range(10)]


def provenance(root: str | None = "photos") -> Provenance:
    return Provenance(root, ["ant", "bee"], ["ant", "bee"], {"train": NAMES[:8], "val": [], "test": NAMES[8:]})


def test_from_dict_ignores_unknown_and_missing_keys() -> None:
    restored = Provenance.from_dict({"classes": ["ant", "bee"], "root": None, "new_key": 1})
    assert restored == Provenance(classes=["ant", "bee"])


def test_additional_images_are_ignored() -> None:
    assert provenance().splits_are_in({*NAMES, "ant/new.jpg"}, Path("elsewhere"))


@pytest.mark.parametrize("root", ["photos", "./photos", "photos/", "other/../photos", "{cwd}/photos"])
def test_missing_images_in_the_same_folder(root: str) -> None:
    root = root.format(cwd=Path.cwd())
    with pytest.raises(UserError, match=r"10 of the 10 images .*ant/0\.jpg\n.*--data\.root"):
        provenance().splits_are_in([], Path(root))
    with pytest.raises(UserError, match="10 of the 10 images"):
        provenance(root).splits_are_in([], Path("photos"))


def test_an_incomplete_copy_of_the_folder() -> None:
    with pytest.raises(UserError, match=r"4 of the 10 images .*ant/1\.jpg"):
        provenance().splits_are_in({*NAMES} - {*NAMES[1:5]}, Path("elsewhere"))


@pytest.mark.parametrize("names", [[], NAMES[:3], ["dog/1.jpg"]])
def test_another_folder_with_other_images(names: list[str]) -> None:
    assert not provenance().splits_are_in(names, Path("elsewhere"))


def test_data_without_a_folder() -> None:
    assert provenance(None).splits_are_in(NAMES, None)
    assert not provenance().splits_are_in([], None)
    assert not Provenance("photos", ["ant"], ["ant"], None).splits_are_in(NAMES, Path("photos"))
