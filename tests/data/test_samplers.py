"""The balanced sampler: classes of equal size in every epoch, the same images in any number of processes."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from resnet_pl.data import ImageFolder, RandomFlip, TensorDataModule
from resnet_pl.data.dataset import ImageFileDataset
from resnet_pl.data.loader import ImageFileLoader
from resnet_pl.data.samplers import FixedOrderSampler, ShardedEpochSampler, class_counts
from resnet_pl.data.tensors import TensorImageDataset
from resnet_pl.utils import UserError
from tests.conftest import write_photos
from tests.tiny import classifier, trainer

LABELS = torch.tensor([0] * 70 + [1] * 20 + [2] * 9)


def epoch_order(
    epoch: int = 0, rank: int = 0, world: int = 1, seed: int = 3, cls: type = ShardedEpochSampler
) -> Tensor:
    sampler = cls(len(LABELS), seed, True, rank, world, LABELS)
    sampler.set_epoch(epoch)
    torch.manual_seed(epoch + 99)
    return sampler.indices()


def test_every_class_has_the_same_number_of_images_in_an_epoch() -> None:
    used = set()
    for epoch in range(5):
        order = epoch_order(epoch)
        images = order % len(LABELS)
        assert LABELS[images].bincount().tolist() == [33, 33, 33] and len(set(order.tolist())) == len(LABELS)
        # Images of the frequent class are not repeated; those of the others equally often, to within one.
        times = images.bincount(minlength=len(LABELS))
        for label, allowed in ((0, {0, 1}), (1, {1, 2}), (2, {3, 4})):
            assert set(times[label == LABELS].tolist()) == allowed
        used |= set(images.tolist())
    assert len(used) > 90, "other images of the frequent class in other epochs"


def test_a_remainder_goes_to_different_classes() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])
    counts = set()
    for epoch in range(20):
        sampler = ShardedEpochSampler(8, shuffle=True, labels=labels)
        sampler.set_epoch(epoch)
        counts.add(tuple(labels[sampler.indices() % 8].bincount().tolist()))
    assert counts == {(3, 3, 2), (3, 2, 3), (2, 3, 3)}


def test_the_order_is_a_function_of_seed_and_epoch_and_shared_by_the_processes() -> None:
    orders = [tuple(epoch_order(epoch, seed=seed).tolist()) for epoch in range(3) for seed in range(3)]
    assert len(set(orders)) == 9 and orders[4] == tuple(epoch_order(1, seed=1).tolist())
    alone = epoch_order(1)
    halves = [epoch_order(1, rank, 2) for rank in (0, 1)]
    for step in range(4):
        both = chain(*(half[5 * step : 5 * step + 5].tolist() for half in halves))
        assert sorted(both) == sorted(alone[10 * step : 10 * step + 10].tolist())
    assert torch.equal(epoch_order(0, cls=FixedOrderSampler), epoch_order(7, cls=FixedOrderSampler))


class Draw(nn.Module):
    """Replaces an image by noise."""

    def forward(self, image: Tensor) -> Tensor:
        return torch.randint(256, image.shape, dtype=torch.uint8)


def test_each_repeat_of_a_file_has_its_own_random_numbers(tmp_path: Path) -> None:
    write_photos(tmp_path, ("a", "b"), count=6)
    names = [*(f"a/{number:04}.jpg" for number in range(6)), "b/0000.jpg"]
    images = ImageFileDataset(tmp_path, names, [0] * 6 + [1], 16, transforms=[Draw()], seed=5)
    labels = torch.tensor(images.labels)

    def drawn(workers: int, balanced: bool = True) -> dict[int, tuple[int, ...]]:
        sampler = ShardedEpochSampler(7, 5, True, labels=labels if balanced else None)
        batches = list(ImageFileLoader(images, sampler, 7, workers))
        assert [batch.labels.tolist() for batch in batches] == [(batches[0].indices % 7 // 6).tolist()]
        noise = batches[0].images
        assert isinstance(noise, Tensor)
        return dict(zip(batches[0].indices.tolist(), map(tuple, noise.flatten(1).tolist()), strict=True))

    numbers = drawn(0)
    assert len(set(numbers.values())) == 7 and {6, 13, 20} <= numbers.keys()
    assert drawn(2) == numbers
    plain = drawn(0, balanced=False)
    assert all(plain[index] == number for index, number in numbers.items() if index < 7)


def test_repeats_in_memory_have_their_own_flips(tmp_path: Path) -> None:
    class Two(TensorDataModule):
        def read(self) -> dict[str, TensorImageDataset]:
            self.classes = ["many", "one"]
            pixels = torch.arange(4 * 3 * 64).view(1, 3, 8, 32).to(torch.uint8).repeat(48, 1, 1, 1)[..., :8]
            labels = torch.tensor([0] * 47 + [1])
            images = TensorImageDataset(pixels, labels, [str(i) for i in range(48)])
            return {"train": images, "val": images[[0, 47]], "test": images[[0, 47]]}

        def find_splits(self) -> dict[str, TensorImageDataset]:
            return self.read()

    seen = []

    class Module(type(classifier())):
        def training_step(self, batch, batch_idx):  # type: ignore[no-untyped-def]
            rare = batch.labels == 1
            seen.append((int(rare.sum()), len(batch.images[rare].unique(dim=0))))
            return super().training_step(batch, batch_idx)

    data = Two(image_size=8, batch_size=48, batch_transforms=[RandomFlip()], sampler="balanced")
    trainer(limit_val_batches=0).fit(Module(classifier().backbone), datamodule=data)
    assert seen == [(24, 2)], "one image 24 times, both ways"


def test_labels_that_are_not_one_class_per_image_are_refused() -> None:
    class Several(TensorDataModule):
        def find_splits(self) -> dict[str, TensorImageDataset]:
            self.classes = ["a", "b"]
            images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
            return {"train": TensorImageDataset(images, torch.ones(4, 2), list("abcd"))}

    data = Several(image_size=8, sampler="balanced")
    data.setup("fit")
    with pytest.raises(UserError, match="sampler: balanced needs one class index per image"):
        data.train_dataloader()


def test_class_counts() -> None:
    images = TensorImageDataset(torch.zeros(99, 3, 1, 1), LABELS, [])
    assert class_counts(images, 4).tolist() == [70, 20, 9, 0]  # type: ignore[union-attr]
    several = ImageFileDataset(Path(), ["a", "b"], [(0, 2), (2,)], 8)  # type: ignore[list-item]
    assert class_counts(several, 3).tolist() == [1, 0, 2]  # type: ignore[union-attr]
    assert class_counts(object(), 3) is None


class Halve(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image[:, ::2]


def test_a_wrong_transform_of_repeated_images_is_named(tmp_path: Path) -> None:
    data = ImageFolder(str(write_photos(tmp_path / "photos")), transforms=[Halve()], sampler="balanced", image_size=16)
    data.prepare_data()
    data.setup("fit")
    with pytest.raises(UserError, match=r"data\.transforms: Halve"):
        next(iter(data.train_dataloader()))
