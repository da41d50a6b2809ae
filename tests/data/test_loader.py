"""The order of images, and what a loader makes of it."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import pytest
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from resnet_pl.data.loader import Batch, ResumableLoader, ShardedEpochSampler, default_num_workers
from resnet_pl.data.views import View


class IndexLoader(ResumableLoader):
    """Images that are their own indices."""

    def read(self, plan: tuple[Tensor, ...], epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for indices in plan:
            yield indices, indices, indices


def index_loader(length: int, batch_size: int = 4, shuffle: bool = True, **kwargs: int) -> IndexLoader:
    return IndexLoader(range(length), ShardedEpochSampler(length, 5, shuffle, **kwargs), batch_size)


def indices(batches: Iterator[Batch] | ResumableLoader) -> list[list[int]]:
    return [batch.indices.tolist() for batch in batches]


# ------------------------------------------------------------------------------------ sampler
@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_image_once_for_every_size(world: int) -> None:
    for length in range(1, 51):
        evaluated = [
            ShardedEpochSampler(length, rank=rank, world_size=world).indices().tolist() for rank in range(world)
        ]
        assert sorted(chain(*evaluated)) == list(range(length))
        assert all(part == sorted(part) for part in evaluated)
        samplers = [ShardedEpochSampler(length, 1, True, rank, world) for rank in range(world)]
        trained = [sampler.indices().tolist() for sampler in samplers]
        assert {len(part) for part in trained} == {length // world}
        assert len(set(chain(*trained))) == length // world * world
        for parts, kind in (
            (evaluated, [ShardedEpochSampler(length, 0, False, r, world) for r in range(world)]),
            (trained, samplers),
        ):
            assert [len(sampler) for sampler in kind] == [len(part) for part in parts]


def test_order_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> tuple[int, ...]:
        sampler = ShardedEpochSampler(50, seed, True)
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
    assert [batch.batch_idx for batch in again] == list(range(done, 7))
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
    assert [batch.batch_idx for batch in resumed] == list(range(7))


def test_epoch_is_read_at_the_first_batch() -> None:
    loader = index_loader(30)
    first = indices(loader)
    iterator = iter(loader)
    loader.sampler.set_epoch(1)
    assert indices(iterator) != first


# ------------------------------------------------------------------------------------ helpers
def test_spare_cores() -> None:
    assert default_num_workers(10**6) == 1
    assert 1 <= default_num_workers(2) <= default_num_workers(1) <= 16


# ------------------------------------------------------------------------------------ batches
@pytest.mark.parametrize("views", [False, True])
def test_lightning_moves_batches_whole(views: bool) -> None:
    image, label = torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64)
    batch = Batch([View(image, label), View(image, label)] if views else image, label, label, 5, 7)
    moved = move_data_to_device(batch, torch.device("meta"))
    assert isinstance(moved, Batch) and (moved.epoch, moved.batch_idx) == (5, 7)
    parts = [part for view in moved.images for part in view] if views else [moved.images]
    assert len(parts) == (4 if views else 1) and isinstance(moved.images[0], View) == views
    assert {part.device.type for part in (*parts, moved.labels, moved.indices)} == {"meta"}
    assert batch.labels.device.type == "cpu"


def test_the_host_waits_for_no_copy_to_a_gpu() -> None:
    class Asked:
        """Stands in for a tensor, and tells how it was moved."""

        def to(self, device: Any, non_blocking: bool) -> bool:
            return non_blocking

    batch = Batch([], Asked(), Asked(), 0, 0)
    assert batch.to("cuda:1").labels and batch.to(torch.device("cuda")).indices
    # Of a copy to the processor one could see the half.
    assert not batch.to("cpu").labels
    assert batch.to("cpu", non_blocking=True).labels and not batch.to("cuda", non_blocking=False).labels
