from pathlib import Path

import pytest

from resnet_pl.data.provenance import Provenance
from resnet_pl.utils import UserError

NAMES = [f"ant/{i}.jpg" for i in range(10)]


def provenance(root: str | None = "photos") -> Provenance:
    return Provenance(root, ["ant", "bee"], ["ant", "bee"], {"train": NAMES[:8], "val": [], "test": NAMES[8:]})


def test_empty_without_a_checkpoint() -> None:
    assert not Provenance()
    assert provenance()


def test_all_there_and_more() -> None:
    assert provenance().splits_are_in({*NAMES, "ant/new.jpg"}, Path("elsewhere"))


@pytest.mark.parametrize("root", ["photos", "./photos", "photos/", "other/../photos", str(Path.cwd() / "photos")])
def test_same_place_however_written(root: str) -> None:
    with pytest.raises(UserError, match=r"lacks 10 of the 10 images .*, the first is ant/0.jpg\n"):
        provenance().splits_are_in([], Path(root))
    with pytest.raises(UserError, match="lacks 10 of the 10"):
        provenance(root).splits_are_in([], Path("photos"))


def test_most_of_them_elsewhere_is_a_copy_with_gaps() -> None:
    with pytest.raises(UserError, match=r"lacks 4 of the 10 images .*, the first is ant/1.jpg\n"):
        provenance().splits_are_in({*NAMES} - {*NAMES[1:5]}, Path("elsewhere"))


@pytest.mark.parametrize("names", [[], NAMES[:3], ["dog/1.jpg"]])
def test_other_data_elsewhere(names: list[str]) -> None:
    assert not provenance().splits_are_in(names, Path("elsewhere"))


def test_data_without_a_folder() -> None:
    assert provenance(None).splits_are_in(NAMES, None)
    assert not provenance().splits_are_in([], None)
    assert not Provenance("photos", ["ant"], ["ant"], None).splits_are_in(NAMES, Path("photos"))
