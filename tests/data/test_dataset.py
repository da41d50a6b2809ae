import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from resnet_pl.data.crops import RandomResizedCrop, ResizeCenterCrop, ScaleCrop
from resnet_pl.data.dataset import ImageFileDataset
from resnet_pl.data.decode import BadImage


@pytest.fixture
def names(photo_folder: Path) -> list[str]:
    return sorted(path.relative_to(photo_folder).as_posix() for path in photo_folder.glob("*/*"))


def test_view_label_and_picture(photo_folder: Path, names: list[str]) -> None:
    photos = ImageFileDataset(photo_folder, names, range(30), 16)
    assert len(photos) == 30
    view, label, index = photos[0, 13]
    assert (view.shape, view.dtype, label, index) == ((3, 16, 16), torch.uint8, 13, 13)
    assert photos.load_full_image(13).shape == (3, 24, 27)
    assert torch.equal(photos[5, 13][0], view), "evaluation's view changes with the epoch"


def test_random_views_are_a_function_of_seed_epoch_and_index(photo_folder: Path, names: list[str]) -> None:
    def view(seed: int, epoch: int, index: int = 13) -> torch.Tensor:
        transforms = [v2.ColorJitter(0.5), v2.RandomErasing(0.5)]
        return ImageFileDataset(photo_folder, names, range(30), 16, RandomResizedCrop(), transforms, seed)[
            epoch, index
        ][0]

    torch.manual_seed(0)
    first = view(1, 2)
    torch.manual_seed(1)
    assert torch.equal(view(1, 2), first)
    assert not torch.equal(view(2, 2), first)
    assert not torch.equal(view(1, 3), first)


def own_crop(image: torch.Tensor, size: int) -> torch.Tensor:
    """One that draws from Python and numpy, as nobody should."""
    top, left = random.randint(0, image.shape[-2] - size), np.random.randint(0, image.shape[-1] - size + 1)
    return image[:, top : top + size, left : left + size]


def test_views_of_a_crop_of_ones_own_too(photo_folder: Path, names: list[str]) -> None:
    photos = ImageFileDataset(photo_folder, names, range(30), 8, own_crop)
    views = [photos[2, index][0] for index in range(30)]
    np.random.seed(0)
    assert all(torch.equal(photos[2, index][0], view) for index, view in enumerate(views))
    assert len({view.numpy().tobytes() for view in views}) > 20


def test_views_of_a_crop_that_adds_draws_to_ours(photo_folder: Path, names: list[str]) -> None:
    class Brighter(ScaleCrop):
        def __call__(self, image: torch.Tensor, size: int) -> torch.Tensor:
            return super().__call__(image, size) + random.randrange(100)

    photos = ImageFileDataset(photo_folder, names, range(30), 8, Brighter())
    views = [photos[2, index][0] for index in range(30)]
    random.seed(0)
    assert all(torch.equal(photos[2, index][0], view) for index, view in enumerate(views))


def test_our_crops_leave_other_generators_alone(photo_folder: Path, names: list[str]) -> None:
    states = random.getstate(), np.random.get_state()[1].tobytes()
    for crop in (RandomResizedCrop(), ScaleCrop(), ResizeCenterCrop()):
        ImageFileDataset(photo_folder, names, range(30), 8, crop)[0, 0]
    assert (random.getstate(), np.random.get_state()[1].tobytes()) == states


def test_a_bad_file_is_returned(photo_folder: Path, names: list[str]) -> None:
    (photo_folder / names[0]).write_bytes(b"")
    bad = ImageFileDataset(photo_folder, names, range(30), 16)[0, 0]
    assert isinstance(bad, BadImage)
    assert bad.path == photo_folder / names[0]
    assert bad.reason == "the file is empty"


def test_photos_are_told_from_others(photo_folder: Path, names: list[str]) -> None:
    def digest(root: Path = photo_folder, names: list[str] = names, label: int = 0) -> str:
        return ImageFileDataset(root, names, [label] * len(names), 16).digest()

    first = digest()
    assert len(first) == 16 and digest(Path(shutil.copytree(photo_folder, photo_folder.parent / "copy"))) == first
    assert len({first, digest(names=names[::-1]), digest(names=names[1:]), digest(label=1)}) == 4
    with (photo_folder / names[3]).open("ab") as file:
        file.write(b"x")
    longer = digest()
    (photo_folder / names[3]).unlink()
    assert len({first, longer, digest()}) == 3
