"""Batches of image files, loaded in worker processes and in this process."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from resnet_pl.data import loader as loader_module
from resnet_pl.data.batch import Batch
from resnet_pl.data.crops import ScaleCrop
from resnet_pl.data.dataset import ImageFileDataset
from resnet_pl.data.loader import ImageFileLoader
from resnet_pl.data.samplers import ShardedEpochSampler
from resnet_pl.utils import UserError


def indices(batches: Iterator[Batch] | ImageFileLoader) -> list[list[int]]:
    return [batch.indices.tolist() for batch in batches]


@pytest.fixture
def dataset(tmp_path: Path) -> ImageFileDataset:
    """Returns thirteen noise images: every crop is different."""
    rng = np.random.default_rng(0)
    for number in range(13):
        Image.fromarray(rng.integers(0, 256, (40, 30 + number, 3), dtype=np.uint8)).save(tmp_path / f"{number:02}.png")
    names = [f"{number:02}.png" for number in range(13)]
    return ImageFileDataset(tmp_path, names, range(13), 16, ScaleCrop(), seed=4)


class Contiguous(nn.Module):
    """A transform that returns contiguous images instead of channels_last."""

    def forward(self, image: Tensor) -> Tensor:
        return image.flip(2).contiguous()


def make_loader(
    dataset: ImageFileDataset, workers: int = 0, shuffle: bool = True, size: int = 4, **kwargs: str
) -> ImageFileLoader:
    return ImageFileLoader(dataset, ShardedEpochSampler(len(dataset), 4, shuffle), size, workers, **kwargs)


def damage(dataset: ImageFileDataset, *indices: int) -> None:
    for index in indices:
        (dataset.root / dataset.names[index]).write_bytes(b"no image")


def epochs(loader: ImageFileLoader, *numbers: int) -> list[list[Batch]]:
    batches = []
    for number in numbers:
        loader.sampler.set_epoch(number)
        batches.append(list(loader))
    return batches


def same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a.images, b.images) and torch.equal(a.indices, b.indices) and torch.equal(a.labels, b.labels)
        for a, b in zip(first, second, strict=True)
    )


class SlowDataset(ImageFileDataset):
    """Images that take one second each, on a simulated clock."""

    now = 0.0

    def __getitem__(self, key: tuple[int, int]) -> Any:
        SlowDataset.now += 1
        return super().__getitem__(key)


def test_wait_seconds_exclude_the_consumer(dataset: ImageFileDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader_module, "time", SimpleNamespace(perf_counter=lambda: SlowDataset.now))
    loader = make_loader(SlowDataset(dataset.root, dataset.names, dataset.labels, 16), shuffle=False)
    for _ in range(2):
        for _batch in loader:
            SlowDataset.now += 100
    assert loader.wait_seconds == 2 * len(dataset)


def test_workers_change_neither_batches_nor_the_global_generator(dataset: ImageFileDataset) -> None:
    state = torch.random.get_rng_state()
    here, there = make_loader(dataset), make_loader(dataset, workers=2)
    first, second = epochs(here, 0, 1)
    assert all(map(same, (first, second), epochs(there, 0, 1)))
    # After an incomplete epoch, the workers start the next one correctly.
    there.sampler.set_epoch(0)
    next(iter(there))
    assert same(first, list(there))
    assert torch.equal(torch.random.get_rng_state(), state)
    crops = [
        {int(i): image for batch in epoch for i, image in zip(batch.indices, batch.images, strict=True)}
        for epoch in (first, second)
    ]
    both = crops[0].keys() & crops[1].keys()
    assert both
    assert not any(torch.equal(crops[0][i], crops[1][i]) for i in both)


@pytest.mark.parametrize(
    ("transforms", "layout"), [([], torch.channels_last), ([Contiguous()], torch.contiguous_format)]
)
def test_batches_have_the_memory_layout_of_their_images(
    dataset: ImageFileDataset, transforms: list[Any], layout: Any
) -> None:
    dataset.transforms = transforms
    (batch, *_) = make_loader(dataset, shuffle=False)
    assert batch.images.is_contiguous(memory_format=layout)
    for position, image in enumerate(batch.images):
        assert torch.equal(image, dataset[0, position][0])


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_batches_are_identical(dataset: ImageFileDataset, workers: int) -> None:
    uninterrupted = list(make_loader(dataset))
    resumed = make_loader(dataset, workers)
    resumed.load_state_dict({"epoch": 0, "done": 1})
    assert same(list(resumed), uninterrupted[1:])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_file_is_named(dataset: ImageFileDataset, workers: int) -> None:
    damage(dataset, 5)
    with pytest.raises(UserError, match=r"05\.png: .*\n.*on_bad_image skip"):
        list(make_loader(dataset, workers, shuffle=False))


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_files_are_skipped_counted_and_printed_once(
    dataset: ImageFileDataset, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(dataset, 4, 5, 6, 7, 12)
    (dataset.root / "11.png").unlink()
    loader = make_loader(dataset, workers, shuffle=False, on_bad_image="skip")
    for _ in range(2):
        assert indices(loader) == [[0, 1, 2, 3], [8, 9, 10]]
    assert {Path(path).name for path in loader.skipped} == {"04.png", "05.png", "06.png", "07.png", "11.png", "12.png"}
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 6
    assert "6" in out[-1]


def test_a_training_batch_without_readable_images_is_replaced(dataset: ImageFileDataset) -> None:
    plan = indices(make_loader(dataset))
    damage(dataset, *plan[1])
    batches = list(make_loader(dataset, on_bad_image="skip"))
    assert indices(batches) == [plan[0], plan[0], plan[2]]
    assert [batch.batch_idx for batch in batches] == [0, 1, 2]


@pytest.mark.parametrize("shuffle", [True, False])
def test_no_readable_file(dataset: ImageFileDataset, shuffle: bool) -> None:
    dataset.names, dataset.labels = dataset.names[:10], dataset.labels[:10]
    damage(dataset, *range(10))
    with pytest.raises(UserError, match="none of the 10 images can be read"):
        list(make_loader(dataset, shuffle=shuffle, on_bad_image="skip"))


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_bad_files_are_refused(dataset: ImageFileDataset, workers: int) -> None:
    # 12 of 120 images may be bad, in each epoch.
    dataset.names, dataset.labels = (dataset.names * 10)[:120], (dataset.labels * 10)[:120]
    dataset.names[:12] = [f"gone{number}.png" for number in range(12)]
    loader = make_loader(dataset, workers, shuffle=False, on_bad_image="skip")
    assert [sum(map(len, indices(loader))) for _ in range(2)] == [108, 108] and len(loader.skipped) == 12
    dataset.names[12] = "gone12.png"
    with pytest.raises(UserError, match=r"13 of 120 images .*\n.*check-data"):
        list(make_loader(dataset, workers, shuffle=False, on_bad_image="skip"))


def test_repeats_of_a_bad_image_count_once(dataset: ImageFileDataset) -> None:
    damage(dataset, 1)
    labels = [0] * 64 + [1, 1]
    dataset = ImageFileDataset(dataset.root, [dataset.names[0]] * 64 + dataset.names[1:3], labels, 16)
    sampler = ShardedEpochSampler(len(labels), shuffle=True, labels=torch.tensor(labels))
    loader = ImageFileLoader(dataset, sampler, 4, on_bad_image="skip")
    assert sum(len(batch.images) for batch in loader) < 64 - 10
    assert list(loader.skipped) == [str(dataset.root / dataset.names[64])]
