from pathlib import Path

import pytest
import torch
from torchvision.transforms import v2

from resnet_pl.data.images import BadImage
from resnet_pl.data.photos import Photos
from resnet_pl.data.transforms import RandomResizedCrop


@pytest.fixture
def names(photo_folder: Path) -> list[str]:
    return sorted(path.relative_to(photo_folder).as_posix() for path in photo_folder.glob("*/*"))


def test_view_label_and_picture(photo_folder: Path, names: list[str]) -> None:
    photos = Photos(photo_folder, names, range(30), 16)
    assert len(photos) == 30
    view, label, index = photos[0, 13]
    assert (view.shape, view.dtype, label, index) == ((3, 16, 16), torch.uint8, 13, 13)
    assert photos.picture(13).shape == (3, 24, 27)
    assert torch.equal(photos[5, 13][0], view), "evaluation's view changes with the epoch"


def test_random_views_are_a_function_of_seed_epoch_and_index(photo_folder: Path, names: list[str]) -> None:
    def view(seed: int, epoch: int, index: int = 13) -> torch.Tensor:
        transforms = [v2.ColorJitter(0.5), v2.RandomErasing(0.5)]
        return Photos(photo_folder, names, range(30), 16, RandomResizedCrop(), transforms, seed)[epoch, index][0]

    torch.manual_seed(0)
    first = view(1, 2)
    torch.manual_seed(1)
    assert torch.equal(view(1, 2), first)
    assert not torch.equal(view(2, 2), first)
    assert not torch.equal(view(1, 3), first)


def test_a_bad_file_is_returned(photo_folder: Path, names: list[str]) -> None:
    (photo_folder / names[0]).write_bytes(b"")
    bad = Photos(photo_folder, names, range(30), 16)[0, 0]
    assert isinstance(bad, BadImage)
    assert bad.path == photo_folder / names[0]
    assert bad.reason == "the file is empty"
