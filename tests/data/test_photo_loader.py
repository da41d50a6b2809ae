"""Batches of photos, read in worker processes and in this one."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from resnet_pl.data import loader as loaders
from resnet_pl.data.crops import ScaleCrop
from resnet_pl.data.dataset import ImageFileDataset
from resnet_pl.data.loader import Batch, ImageFileLoader, ShardedEpochSampler
from resnet_pl.utils import UserError


def indices(batches: Iterator[Batch] | ImageFileLoader) -> list[list[int]]:
    return [batch.indices.tolist() for batch in batches]


@pytest.fixture
def photos(tmp_path: Path) -> ImageFileDataset:
    """Thirteen photos of noise, so that every crop differs."""
    rng = np.random.default_rng(0)
    for number in range(13):
        Image.fromarray(rng.integers(0, 256, (40, 30 + number, 3), dtype=np.uint8)).save(tmp_path / f"{number:02}.png")
    names = [f"{number:02}.png" for number in range(13)]
    return ImageFileDataset(tmp_path, names, range(13), 16, ScaleCrop(), seed=4)


class Plane(nn.Module):
    """A transform that leaves an image plane by plane in memory."""

    def forward(self, image: Tensor) -> Tensor:
        return image.flip(2).contiguous()


def photo_loader(
    photos: ImageFileDataset, workers: int = 0, shuffle: bool = True, size: int = 4, **kwargs: str
) -> ImageFileLoader:
    return ImageFileLoader(photos, ShardedEpochSampler(len(photos), 4, shuffle), size, workers, **kwargs)


def spoil(photos: ImageFileDataset, *numbers: int) -> None:
    for number in numbers:
        (photos.root / photos.names[number]).write_bytes(b"no image")


def epochs(loader: ImageFileLoader, *numbers: int) -> list[list[Batch]]:
    found = []
    for number in numbers:
        loader.sampler.set_epoch(number)
        found.append(list(loader))
    return found


def same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a.images, b.images) and torch.equal(a.indices, b.indices) and torch.equal(a.labels, b.labels)
        for a, b in zip(first, second, strict=True)
    )


class SlowPhotos(ImageFileDataset):
    """Photos that take a second each, by a clock that the test turns."""

    now = 0.0

    def __getitem__(self, key: tuple[int, int]) -> Any:
        SlowPhotos.now += 1
        return super().__getitem__(key)


def test_waiting_is_told_from_what_is_done_with_the_batches(
    photos: ImageFileDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaders, "time", SimpleNamespace(perf_counter=lambda: SlowPhotos.now))
    loader = photo_loader(SlowPhotos(photos.root, photos.names, photos.labels, 16), shuffle=False)
    for _ in range(2):
        for _batch in loader:
            SlowPhotos.now += 100
    assert loader.wait_seconds == 2 * len(photos)


def test_workers_make_no_difference_and_the_global_generator_is_left_alone(photos: ImageFileDataset) -> None:
    state = torch.random.get_rng_state()
    here, there = photo_loader(photos), photo_loader(photos, workers=2)
    first, second = epochs(here, 0, 1)
    assert all(map(same, (first, second), epochs(there, 0, 1)))
    # Left in the middle, the worker processes begin the next pass cleanly.
    there.sampler.set_epoch(0)
    next(iter(there))
    assert same(first, list(there))
    assert torch.equal(torch.random.get_rng_state(), state)
    views = [
        {int(i): image for batch in epoch for i, image in zip(batch.indices, batch.images, strict=True)}
        for epoch in (first, second)
    ]
    both = views[0].keys() & views[1].keys()
    assert both
    assert not any(torch.equal(views[0][i], views[1][i]) for i in both)


@pytest.mark.parametrize(("transforms", "layout"), [([], torch.channels_last), ([Plane()], torch.contiguous_format)])
def test_batches_keep_the_layout_of_their_photos(photos: ImageFileDataset, transforms: list[Any], layout: Any) -> None:
    photos.transforms = transforms
    (batch, *_) = photo_loader(photos, shuffle=False)
    assert batch.images.is_contiguous(memory_format=layout)
    for position, image in enumerate(batch.images):
        assert torch.equal(image, photos[0, position][0])


@pytest.mark.parametrize("workers", [0, 2])
def test_photos_resume_bitwise(photos: ImageFileDataset, workers: int) -> None:
    whole = list(photo_loader(photos))
    resumed = photo_loader(photos, workers)
    resumed.load_state_dict({"epoch": 0, "done": 1})
    assert same(list(resumed), whole[1:])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_file_is_named(photos: ImageFileDataset, workers: int) -> None:
    spoil(photos, 5)
    with pytest.raises(UserError, match=r"05\.png: not an image of a known format\n.*on_bad_image skip"):
        list(photo_loader(photos, workers, shuffle=False))


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_files_are_left_out_counted_and_told_once(
    photos: ImageFileDataset, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(photos, 4, 5, 6, 7, 12)
    (photos.root / "11.png").unlink()
    loader = photo_loader(photos, workers, shuffle=False, on_bad_image="skip")
    found = indices(loader)
    assert found == [[0, 1, 2, 3], [8, 9, 10]]
    assert indices(loader) == found
    assert {Path(path).name for path in loader.skipped} == {"04.png", "05.png", "06.png", "07.png", "11.png", "12.png"}
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 6
    assert "6 so far" in out[-1]


def test_training_has_all_its_batches_even_where_one_has_no_image(photos: ImageFileDataset) -> None:
    plan = indices(photo_loader(photos))
    spoil(photos, *plan[1])
    batches = list(photo_loader(photos, on_bad_image="skip"))
    assert indices(batches) == [plan[0], plan[0], plan[2]]
    assert [batch.batch_idx for batch in batches] == [0, 1, 2]


@pytest.mark.parametrize("shuffle", [True, False])
def test_no_good_file_at_all(photos: ImageFileDataset, shuffle: bool) -> None:
    photos.names, photos.labels = photos.names[:10], photos.labels[:10]
    spoil(photos, *range(10))
    with pytest.raises(UserError, match="none of the 10 images can be read"):
        list(photo_loader(photos, shuffle=shuffle, on_bad_image="skip"))


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_bad_files_are_refused(photos: ImageFileDataset, workers: int) -> None:
    # A tenth of 120 images is let through, in every epoch anew.
    photos.names, photos.labels = (photos.names * 10)[:120], (photos.labels * 10)[:120]
    spoil(photos, 3)
    photos.names[10:13] = ["gone.png"] * 3
    loader = photo_loader(photos, workers, shuffle=False, on_bad_image="skip")
    assert [sum(map(len, indices(loader))) for _ in range(2)] == [108, 108] and len(loader.skipped) == 2
    photos.names[0] = "gone.png"
    with pytest.raises(UserError, match=r"13 of 120 images cannot be read, the last is .*\n.*check-data"):
        list(photo_loader(photos, workers, shuffle=False, on_bad_image="skip"))
