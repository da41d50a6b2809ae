"""Image files as a data set."""

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from resnet_pl.data.bad_images import BadImage
from resnet_pl.data.crops import RandomResizedCrop, ResizeCenterCrop, ScaleCrop
from resnet_pl.data.dataset import ImageFileDataset


@pytest.fixture
def names(photo_folder: Path) -> list[str]:
    return sorted(path.relative_to(photo_folder).as_posix() for path in photo_folder.glob("*/*"))


def test_samples(photo_folder: Path, names: list[str]) -> None:
    dataset = ImageFileDataset(photo_folder, names, range(30), 16)
    assert len(dataset) == 30
    image, label, index = dataset[0, 13]
    assert (image.shape, image.dtype, label, index) == ((3, 16, 16), torch.uint8, 13, 13)
    assert dataset.load_full_image(13).shape == (3, 24, 27)
    assert torch.equal(dataset[5, 13][0], image), "the evaluation crop does not depend on the epoch"


def test_random_crops_are_a_function_of_seed_epoch_and_index(photo_folder: Path, names: list[str]) -> None:
    def load(seed: int, epoch: int, index: int = 13) -> torch.Tensor:
        transforms = [v2.ColorJitter(0.5), v2.RandomErasing(0.5)]
        dataset = ImageFileDataset(photo_folder, names, range(30), 16, RandomResizedCrop(), transforms, seed)
        return dataset[epoch, index][0]

    torch.manual_seed(0)
    first = load(1, 2)
    torch.manual_seed(1)
    assert torch.equal(load(1, 2), first)
    assert not torch.equal(load(2, 2), first)
    assert not torch.equal(load(1, 3), first)


def crop_function(image: torch.Tensor, size: int) -> torch.Tensor:
    """A user's crop that draws from the generators of Python and NumPy."""
    top, left = random.randint(0, image.shape[-2] - size), np.random.randint(0, image.shape[-1] - size + 1)
    return image[:, top : top + size, left : left + size]


def test_crops_of_a_users_function_are_reproducible(photo_folder: Path, names: list[str]) -> None:
    dataset = ImageFileDataset(photo_folder, names, range(30), 8, crop_function)
    crops = [dataset[2, index][0] for index in range(30)]
    np.random.seed(0)
    assert all(torch.equal(dataset[2, index][0], crop) for index, crop in enumerate(crops))
    assert len({crop.numpy().tobytes() for crop in crops}) > 20


def test_crops_of_a_subclass_with_other_generators_are_reproducible(photo_folder: Path, names: list[str]) -> None:
    class Brighter(ScaleCrop):
        def __call__(self, image: torch.Tensor, size: int) -> torch.Tensor:
            return super().__call__(image, size) + random.randrange(100)

    dataset = ImageFileDataset(photo_folder, names, range(30), 8, Brighter())
    crops = [dataset[2, index][0] for index in range(30)]
    random.seed(0)
    assert all(torch.equal(dataset[2, index][0], crop) for index, crop in enumerate(crops))


def test_built_in_crops_do_not_seed_other_generators(photo_folder: Path, names: list[str]) -> None:
    states = random.getstate(), np.random.get_state()[1].tobytes()
    for crop in (RandomResizedCrop(), ScaleCrop(), ResizeCenterCrop()):
        ImageFileDataset(photo_folder, names, range(30), 8, crop)[0, 0]
    assert (random.getstate(), np.random.get_state()[1].tobytes()) == states


def test_a_bad_file_is_returned_as_an_error(photo_folder: Path, names: list[str]) -> None:
    (photo_folder / names[0]).write_bytes(b"")
    bad = ImageFileDataset(photo_folder, names, range(30), 16)[0, 0]
    assert isinstance(bad, BadImage)
    assert bad.path == photo_folder / names[0]
    assert bad.reason == "the file is empty"


def test_digest_depends_on_names_labels_and_sizes(photo_folder: Path, names: list[str]) -> None:
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
