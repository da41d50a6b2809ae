"""Data sets in memory."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from resnet_pl.data import ImageFolder, RandomFlip
from resnet_pl.data.batch import Batch
from resnet_pl.data.samplers import ShardedEpochSampler
from resnet_pl.data.tensors import TensorDataModule, TensorImageDataset, TensorLoader
from resnet_pl.utils import UserError


def images(count: int, prefix: str = "train", first: int = 0) -> TensorImageDataset:
    """Returns `count` different images with labels 0, 1, 2, 0, …"""
    pixels = torch.randint(0, 256, (count, 3, 8, 8), generator=torch.Generator().manual_seed(first)).to(torch.uint8)
    return TensorImageDataset(pixels, torch.arange(count) % 3, [f"{prefix}/{i}" for i in range(first, first + count)])


class Toy(TensorDataModule):
    def __init__(self, official: dict[str, TensorImageDataset], **kwargs: object) -> None:
        super().__init__(image_size=8, **kwargs)
        self.official = official

    def read(self) -> dict[str, TensorImageDataset]:
        self.classes = ["ant", "bee", "cat"]
        return dict(self.official)


def toy(official: dict[str, TensorImageDataset] | None = None, stored: dict | None = None, **kwargs: object) -> Toy:
    data = Toy(official or {"train": images(60)}, **kwargs)
    if stored:
        data.use_provenance(stored)
    data.setup("fit")
    return data


def contents(split: TensorImageDataset) -> set[bytes]:
    return {image.numpy().tobytes() for image in split.images}


def test_duplicates_are_in_the_same_split() -> None:
    train = images(60)
    train.images[40:50] = train.images[:10]
    train.labels[40:50] = train.labels[:10]
    data = toy({"train": train}, val_split=0.2, test_split=0.2)
    splits = [contents(split) for split in data.splits.values()]
    assert len(splits) == 3
    assert len(set.union(*splits)) == sum(map(len, splits)) == 50
    assert sum(map(len, data.splits.values())) == 60


def test_the_official_test_split_is_not_changed() -> None:
    data = toy({"train": images(60), "test": images(20, "test", 1000)}, val_split=12, test_split=0.5)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 48, "val": 12, "test": 20}
    assert data.splits["test"].names == [f"test/{i}" for i in range(1000, 1020)]
    assert "val" not in toy({"train": images(60), "test": images(20, "test")}, val_split=0).splits


def test_folds() -> None:
    folds = [toy(num_folds=3, fold=fold, test_split=0.1).splits for fold in range(3)]
    assert len({tuple(fold["test"].names) for fold in folds}) == 1
    validated = [name for fold in folds for name in fold["val"].names]
    assert sorted(validated) == sorted(set(images(60).names) - set(folds[0]["test"].names))


def test_restored_splits_override_the_options() -> None:
    first = toy(val_split=0.2, test_split=0.2)
    again = toy(stored=first.provenance(), val_split=0.4, test_split=0.0, split_seed=9)
    assert {name: split.names for name, split in again.splits.items()} == first.provenance()["splits"]
    assert "stored in the checkpoint" in again.describe_split("test")
    assert torch.equal(again.splits["val"].images, first.splits["val"].images)


def test_missing_images_of_a_restored_split_are_named() -> None:
    first = toy()
    with pytest.raises(UserError, match=r"20 of the 60 images .*train/\d+"):
        toy({"train": images(40)}, first.provenance())


def test_other_data_is_only_tested() -> None:
    stored = toy().provenance()
    other = toy({"train": images(9, "other"), "test": images(7, "other test")}, stored)
    assert {name: len(split) for name, split in other.splits.items()} == {"val": 7, "test": 7}
    other = toy({"train": images(9, "other")}, stored)
    assert len(other.splits["test"]) == 9
    assert other.describe_split("test").startswith("all images of other data than the training data")
    with pytest.raises(UserError, match=r"no train split\n.*new run.*--model\.weights"):
        other.train_dataloader()


@pytest.mark.parametrize("mean", ["channel", "pixel"])
def test_only_the_training_split_is_measured(mean: str) -> None:
    data = toy({"train": images(60), "test": images(20, "test", 1000)}, mean=mean)
    pixels = data.splits["train"].images.numpy() / 255
    subtracted, divided = data.normalization()
    expected = pixels.mean(0) if mean == "pixel" else pixels.mean((0, 2, 3))[:, None, None]
    np.testing.assert_allclose(subtracted, expected, atol=1e-6)
    np.testing.assert_allclose(divided.flatten(), pixels.std((0, 2, 3)), atol=1e-6)


def test_loader_returns_the_sampled_images() -> None:
    all_images = images(11)
    batches = list(TensorLoader(all_images, ShardedEpochSampler(11, 3, True), 4))
    assert [len(batch.images) for batch in batches] == [4, 4]
    for batch in batches:
        assert torch.equal(batch.images, all_images.images[batch.indices])
        assert torch.equal(batch.labels, all_images.labels[batch.indices])
    assert torch.equal(all_images.load_full_image(3), all_images.images[3])


def test_digest_depends_on_names_labels_and_pixels() -> None:
    first, other = images(6), images(6)
    assert first.digest() == other.digest() and len(first.digest()) == 16
    other.images[5, 2, 7, 7] ^= 1
    assert len({first.digest(), other.digest(), images(6, first=1).digest(), images(5).digest()}) == 4


# ------------------------------------------------------------------------------------ transforms of single images


class Noise(nn.Module):
    """Draws from the three global generators, and writes to its input."""

    def forward(self, image: Tensor) -> Tensor:
        image.add_(random.randrange(256)).add_(np.random.randint(256)).add_(torch.randint(256, (1,), dtype=torch.uint8))
        return image


def epoch(data: Toy, number: int, done: int = 0) -> list[Batch]:
    loader = data.train_dataloader()
    loader.load_state_dict({"epoch": number, "done": done})
    loader.sampler.set_epoch(number)
    return list(loader)


def pixels(batches: list[Batch]) -> Tensor:
    return torch.cat([batch.images for batch in batches])


def by_index(batches: list[Batch]) -> Tensor:
    return pixels(batches)[torch.cat([batch.indices for batch in batches]).argsort()]


def test_transforms_depend_on_seed_epoch_and_image_only() -> None:
    options = {"transforms": [Noise(), v2.RandAugment()], "batch_size": 8, "val_split": 20, "test_split": 0}
    one, workers = (toy(num_workers=number, **options) for number in (0, 2))
    before = one.splits["train"].images.clone()
    first, second = epoch(one, 0), epoch(one, 1)
    assert torch.equal(pixels(epoch(workers, 0)), pixels(first))
    # A resumed epoch, after two of its five batches.
    assert torch.equal(pixels(epoch(workers, 1, done=2)), pixels(second[2:]))
    # An image is another one in each epoch. Its label and the data are unchanged.
    assert not torch.equal(by_index(first), by_index(second)) and not torch.equal(by_index(first), before)
    labels = one.splits["train"].labels
    assert all(torch.equal(batch.labels, labels[batch.indices]) for batch in first)
    assert torch.equal(one.splits["train"].images, before)


def test_evaluation_has_no_transforms() -> None:
    data = toy(transforms=[Noise()], num_workers=0)
    for loader, split in ((data.val_dataloader(), "val"), (data.test_dataloader(), "test")):
        assert torch.equal(pixels(list(loader)), data.splits[split].images)


def test_transforms_of_the_other_kind_are_refused() -> None:
    with pytest.raises(UserError, match=r"data\.transforms: RandomFlip .*\n.*data\.batch_transforms"):
        toy(transforms=[RandomFlip()])
    with pytest.raises(UserError, match=r"data\.batch_transforms: RandAugment .*\n.*data\.transforms"):
        toy(batch_transforms=[v2.RandAugment()])


class Fails(nn.Module):
    """A function as a transform."""

    def __init__(self, function: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.forward = function


@pytest.mark.parametrize("kind", ["memory", "files"])
def test_float_images_are_not_divided_twice(kind: str, photo_folder: Path) -> None:
    def first(**kwargs: object) -> Tensor:
        kwargs |= {"num_workers": 0, "batch_size": 8, "batch_transforms": []}
        data = toy(**kwargs) if kind == "memory" else ImageFolder(str(photo_folder), image_size=16, **kwargs)
        data.setup("fit")
        return data.augment(next(iter(data.train_dataloader()))).images

    plain, converted = first(), first(transforms=[v2.Identity(), v2.ToDtype(torch.float32, scale=True)])
    assert plain.dtype == converted.dtype == torch.float32 and plain.max() > 0.5
    assert torch.allclose(plain, converted, atol=1e-6)
    assert torch.allclose(first(transforms=[v2.ToDtype(torch.float16, scale=True)]), plain, atol=1e-3)


@pytest.mark.parametrize(
    ("transforms", "message"),
    [
        ([v2.ToDtype(torch.float32)], r"after ToDtype the images are float32 from 0 to 2\d\d, .*\n.*scale=True"),
        ([v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5], [0.5])], r"after Normalize .*float32 from -.*\n"),
        ([v2.ToDtype(torch.int64)], r"after ToDtype the images are int64, not uint8"),
        ([v2.Pad(2), v2.Identity()], r"Pad makes \(3, 12, 12\) of an image \(3, 8, 8\)\n"),
        ([v2.Grayscale()], r"Grayscale makes \(1, 8, 8\) of"),
        ([v2.ToPILImage()], r"ToPILImage makes Image of"),
        ([Fails(lambda image: (image + 1.0) / 0)], "after Fails .* inf"),
        ([Fails(lambda image: image / 255 * float("nan"))], "after Fails .* nan"),
        ([v2.RandomApply([v2.ToDtype(torch.float32, scale=True)])], "some images are float32, others uint8"),
    ],
)
def test_wrong_transforms_are_named(transforms: list[nn.Module], message: str) -> None:
    # The error of one of them comes back from a worker process.
    workers = int(isinstance(transforms[0], v2.Pad))
    with pytest.raises(UserError, match=r"data\.transforms: " + message) as caught:
        list(toy(transforms=transforms, num_workers=workers, batch_size=16).train_dataloader())
    assert len(str(caught.value).splitlines()) == 2


def test_wrong_images_of_another_loader_are_named() -> None:
    data = toy(num_workers=0)
    batch = next(iter(data.train_dataloader()))
    with pytest.raises(UserError, match="data: the training images are float32 from"):
        data.augment(batch._replace(images=batch.images.float() - 100))
