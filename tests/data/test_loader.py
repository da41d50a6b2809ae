import gc
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from resnet_pl.data import loader as loaders
from resnet_pl.data.dataset import Photos
from resnet_pl.data.loader import (
    Batch,
    EpochSampler,
    Loader,
    PhotoLoader,
    spare_cores,
)
from resnet_pl.data.transforms import ScaleCrop
from resnet_pl.utils import UserError


class IndexLoader(Loader):
    """Images that are their own indices."""

    def read(self, plan: tuple[Tensor, ...], epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for indices in plan:
            yield indices, indices, indices


def index_loader(length: int, batch_size: int = 4, shuffle: bool = True, **kwargs: int) -> IndexLoader:
    return IndexLoader(range(length), EpochSampler(length, 5, shuffle, **kwargs), batch_size)


def indices(batches: Iterator[Batch] | Loader) -> list[list[int]]:
    return [batch.indices.tolist() for batch in batches]


# ------------------------------------------------------------------------------------ sampler
@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_image_once_for_every_size(world: int) -> None:
    for length in range(1, 51):
        evaluated = [EpochSampler(length, rank=rank, world_size=world).indices().tolist() for rank in range(world)]
        assert sorted(chain(*evaluated)) == list(range(length))
        assert all(part == sorted(part) for part in evaluated)
        samplers = [EpochSampler(length, 1, True, rank, world) for rank in range(world)]
        trained = [sampler.indices().tolist() for sampler in samplers]
        assert {len(part) for part in trained} == {length // world}
        assert len(set(chain(*trained))) == length // world * world
        for parts, kind in (
            (evaluated, [EpochSampler(length, 0, False, r, world) for r in range(world)]),
            (trained, samplers),
        ):
            assert [len(sampler) for sampler in kind] == [len(part) for part in parts]


def test_order_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> tuple[int, ...]:
        sampler = EpochSampler(50, seed, True)
        sampler.set_epoch(epoch)
        torch.manual_seed(seed * epoch + 99)
        return tuple(sampler.indices().tolist())

    assert order(1, 2) == order(1, 2)
    assert len({order(seed, epoch) for seed in range(3) for epoch in range(3)}) == 9


def test_two_processes_see_what_one_sees() -> None:
    one = indices(index_loader(43, 8))
    two = [indices(index_loader(43, 4, rank=rank, world_size=2)) for rank in range(2)]
    assert [sorted(batch) for batch in one] == [sorted(first + second) for first, second in zip(*two, strict=True)]


# ------------------------------------------------------------------------------------ loader
@pytest.mark.parametrize(
    ("length", "shuffle", "sizes"),
    [(10, True, [4, 4]), (8, True, [4, 4]), (3, True, [3]), (4, True, [4]), (10, False, [4, 4, 2]), (1, False, [1])],
)
def test_short_batches(length: int, shuffle: bool, sizes: list[int]) -> None:
    loader = index_loader(length, shuffle=shuffle)
    assert [len(batch) for batch in indices(loader)] == sizes
    assert len(loader) == len(sizes)


@pytest.mark.parametrize("done", range(8))
def test_resumes_with_exactly_the_remaining_batches(done: int) -> None:
    whole = index_loader(30)
    whole.sampler.set_epoch(3)
    running = iter(whole)
    begun = [next(running) for _ in range(done)]
    state = whole.state_dict() if done else {"epoch": 3, "done": 0}
    rest = indices(running)

    resumed = index_loader(30)
    resumed.load_state_dict(state)
    iterator = iter(resumed)
    # Lightning makes the iterator first and tells the epoch afterwards.
    resumed.sampler.set_epoch(3)
    again = list(iterator)
    assert indices(again) == rest
    assert [batch.number for batch in again] == list(range(done, 7))
    assert {batch.epoch for batch in begun + again} == {3}
    resumed.sampler.set_epoch(4)
    assert len(indices(resumed)) == 7


def test_the_state_is_of_the_epoch_that_has_begun() -> None:
    loader = index_loader(30)
    assert len(indices(loader)) == 7
    # Lightning tells the next epoch some time before it asks for its first batch.
    loader.sampler.set_epoch(1)
    assert loader.state_dict() == {"epoch": 0, "done": 7}
    # A state that was taken up and not used is still the state.
    resumed = index_loader(30)
    resumed.load_state_dict({"epoch": 2, "done": 3})
    assert resumed.state_dict() == {"epoch": 2, "done": 3}


def test_the_next_epoch_starts_anew_where_the_last_was_cut_short() -> None:
    cut = index_loader(30)
    for _, _batch in zip(range(3), cut, strict=False):
        pass
    resumed = index_loader(30)
    resumed.load_state_dict(cut.state_dict())
    resumed.sampler.set_epoch(1)
    assert [batch.number for batch in resumed] == list(range(7))


def test_epoch_is_read_at_the_first_batch() -> None:
    loader = index_loader(30)
    first = indices(loader)
    iterator = iter(loader)
    loader.sampler.set_epoch(1)
    assert indices(iterator) != first


# ------------------------------------------------------------------------------------ photos
@pytest.fixture
def photos(tmp_path: Path) -> Photos:
    """Thirteen photos of noise, so that every crop differs."""
    rng = np.random.default_rng(0)
    for number in range(13):
        Image.fromarray(rng.integers(0, 256, (40, 30 + number, 3), dtype=np.uint8)).save(tmp_path / f"{number:02}.png")
    names = [f"{number:02}.png" for number in range(13)]
    return Photos(tmp_path, names, range(13), 16, ScaleCrop(), seed=4)


class Plane(nn.Module):
    """A transform that leaves an image plane by plane in memory."""

    def forward(self, image: Tensor) -> Tensor:
        return image.flip(2).contiguous()


def photo_loader(photos: Photos, workers: int = 0, shuffle: bool = True, size: int = 4, **kwargs: str) -> PhotoLoader:
    return PhotoLoader(photos, EpochSampler(len(photos), 4, shuffle), size, workers, **kwargs)


def spoil(photos: Photos, *numbers: int) -> None:
    for number in numbers:
        (photos.root / photos.names[number]).write_bytes(b"no image")


def epochs(loader: PhotoLoader, *numbers: int) -> list[list[Batch]]:
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


class SlowPhotos(Photos):
    """Photos that take a second each, by a clock that the test turns."""

    now = 0.0

    def __getitem__(self, key: tuple[int, int]) -> Any:
        SlowPhotos.now += 1
        return super().__getitem__(key)


def test_waiting_is_told_from_what_is_done_with_the_batches(photos: Photos, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders, "time", SimpleNamespace(perf_counter=lambda: SlowPhotos.now))
    loader = photo_loader(SlowPhotos(photos.root, photos.names, photos.labels, 16), shuffle=False)
    for _ in range(2):
        for _batch in loader:
            SlowPhotos.now += 100
    assert loader.waited == 2 * len(photos)


def test_workers_make_no_difference_and_the_global_generator_is_left_alone(photos: Photos) -> None:
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
def test_batches_keep_the_layout_of_their_photos(photos: Photos, transforms: list[Any], layout: Any) -> None:
    photos.transforms = transforms
    (batch, *_) = photo_loader(photos, shuffle=False)
    assert batch.images.is_contiguous(memory_format=layout)
    for position, image in enumerate(batch.images):
        assert torch.equal(image, photos[0, position][0])


@pytest.mark.parametrize("workers", [0, 2])
def test_photos_resume_bitwise(photos: Photos, workers: int) -> None:
    whole = list(photo_loader(photos))
    resumed = photo_loader(photos, workers)
    resumed.load_state_dict({"epoch": 0, "done": 1})
    assert same(list(resumed), whole[1:])


def test_workers_outlast_a_ctrl_c_and_the_end_of_a_job(photos: Photos) -> None:
    loader = photo_loader(photos, workers=1)
    first = list(loader)
    (worker,) = loader._reader._iterator._workers
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(worker.pid, number)
        assert same(list(loader), first)
    # torch's handler of SIGCHLD, where there is one, says so wherever the main thread is.
    with suppress(RuntimeError):
        os.kill(worker.pid, signal.SIGTERM)
        worker.join(30)
    assert worker.exitcode == -signal.SIGTERM


def test_a_worker_that_has_just_begun_outlasts_them_too(photos: Photos, monkeypatch: pytest.MonkeyPatch) -> None:
    outlast = loaders._outlast_signals

    def at_once(worker: int) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        outlast(worker)

    monkeypatch.setattr(loaders, "_outlast_signals", at_once)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert same(list(photo_loader(photos, workers=1)), list(photo_loader(photos)))
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_workers_end_with_their_loader_also_in_a_cycle(photos: Photos) -> None:
    # As in a training; left to the collector each worker would be waited for, for seconds, and killed.
    loader = photo_loader(photos, workers=2)
    batches = iter(loader)
    next(batches)
    workers = loader._reader._iterator._workers
    cycle = {"loader": loader, "batches": batches}
    cycle["self"] = cycle
    del loader, batches, cycle
    gc.collect()
    assert [worker.exitcode for worker in workers] == [0, 0]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_file_is_named(photos: Photos, workers: int) -> None:
    spoil(photos, 5)
    with pytest.raises(UserError, match=r"05\.png: not an image of a known format\n.*on_bad_image skip"):
        list(photo_loader(photos, workers, shuffle=False))


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_files_are_left_out_counted_and_told_once(
    photos: Photos, workers: int, capsys: pytest.CaptureFixture[str]
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


def test_training_has_all_its_batches_even_where_one_has_no_image(photos: Photos) -> None:
    plan = indices(photo_loader(photos))
    spoil(photos, *plan[1])
    batches = list(photo_loader(photos, on_bad_image="skip"))
    assert indices(batches) == [plan[0], plan[0], plan[2]]
    assert [batch.number for batch in batches] == [0, 1, 2]


@pytest.mark.parametrize("shuffle", [True, False])
def test_no_good_file_at_all(photos: Photos, shuffle: bool) -> None:
    photos.names, photos.labels = photos.names[:10], photos.labels[:10]
    spoil(photos, *range(10))
    with pytest.raises(UserError, match="none of the 10 images can be read"):
        list(photo_loader(photos, shuffle=shuffle, on_bad_image="skip"))


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_bad_files_are_refused(photos: Photos, workers: int) -> None:
    # A tenth of 120 images is let through, in every epoch anew.
    photos.names, photos.labels = (photos.names * 10)[:120], (photos.labels * 10)[:120]
    spoil(photos, 3)
    photos.names[10:13] = ["gone.png"] * 3
    loader = photo_loader(photos, workers, shuffle=False, on_bad_image="skip")
    assert [sum(map(len, indices(loader))) for _ in range(2)] == [108, 108] and len(loader.skipped) == 2
    photos.names[0] = "gone.png"
    with pytest.raises(UserError, match=r"13 of 120 images cannot be read, the last is .*\n.*check-data"):
        list(photo_loader(photos, workers, shuffle=False, on_bad_image="skip"))


# ------------------------------------------------------------------------------------ helpers
def test_spare_cores() -> None:
    assert spare_cores(10**6) == 1
    assert 1 <= spare_cores(2) <= spare_cores(1) <= 16
