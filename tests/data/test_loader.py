"""Order of the images, batches and resuming."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import pytest
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from resnet_pl.data.batch import Batch
from resnet_pl.data.loader import ResumableLoader, default_num_workers
from resnet_pl.data.samplers import ShardedEpochSampler
from resnet_pl.data.views import View


class IndexLoader(ResumableLoader):
    """Loads the indices as images."""

    def read(self, plan: tuple[Tensor, ...], epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for indices in plan:
            yield indices, indices, indices


def index_loader(length: int, batch_size: int = 4, shuffle: bool = True, **kwargs: int) -> IndexLoader:
    return IndexLoader(range(length), ShardedEpochSampler(length, 5, shuffle, **kwargs), batch_size)


def indices(batches: Iterator[Batch] | ResumableLoader) -> list[list[int]]:
    return [batch.indices.tolist() for batch in batches]


# ------------------------------------------------------------------------------------ sampler
@pytest.mark.parametrize("world", [1, 2, 3])
def test_each_image_is_sampled_once(world: int) -> None:
    for length in range(1, 51):
        evaluated = [
            ShardedEpochSampler(length, rank=rank, world_size=world).indices().tolist() for rank in range(world)
        ]
        assert sorted(chain(*evaluated)) == list(range(length))
        assert all(indices == sorted(indices) for indices in evaluated)
        samplers = [ShardedEpochSampler(length, 1, True, rank, world) for rank in range(world)]
        trained = [sampler.indices().tolist() for sampler in samplers]
        assert {len(indices) for indices in trained} == {length // world}
        assert len(set(chain(*trained))) == length // world * world
        assert [len(sampler) for sampler in samplers] == [len(indices) for indices in trained]
        samplers = [ShardedEpochSampler(length, rank=rank, world_size=world) for rank in range(world)]
        assert [len(sampler) for sampler in samplers] == [len(indices) for indices in evaluated]


def test_order_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> tuple[int, ...]:
        sampler = ShardedEpochSampler(50, seed, True)
        sampler.set_epoch(epoch)
        torch.manual_seed(seed * epoch + 99)
        return tuple(sampler.indices().tolist())

    assert order(1, 2) == order(1, 2)
    assert len({order(seed, epoch) for seed in range(3) for epoch in range(3)}) == 9


def test_two_processes_have_the_batches_of_one() -> None:
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
    loader = index_loader(30)
    loader.sampler.set_epoch(3)
    running = iter(loader)
    first = [next(running) for _ in range(done)]
    state = loader.state_dict() if done else {"epoch": 3, "done": 0}
    remaining = indices(running)

    resumed = index_loader(30)
    resumed.load_state_dict(state)
    iterator = iter(resumed)
    # Lightning creates the iterator before it sets the epoch.
    resumed.sampler.set_epoch(3)
    batches = list(iterator)
    assert indices(batches) == remaining
    assert [batch.batch_idx for batch in batches] == list(range(done, 7))
    assert {batch.epoch for batch in first + batches} == {3}
    resumed.sampler.set_epoch(4)
    assert len(indices(resumed)) == 7


def test_the_state_belongs_to_the_epoch_that_has_started() -> None:
    loader = index_loader(30)
    assert len(indices(loader)) == 7
    # Lightning sets the next epoch before it requests its first batch.
    loader.sampler.set_epoch(1)
    assert loader.state_dict() == {"epoch": 0, "done": 7}
    # A restored state that was not used yet is still the state.
    resumed = index_loader(30)
    resumed.load_state_dict({"epoch": 2, "done": 3})
    assert resumed.state_dict() == {"epoch": 2, "done": 3}


def test_the_epoch_after_an_interrupted_one_is_complete() -> None:
    interrupted = index_loader(30)
    for _, _batch in zip(range(3), interrupted, strict=False):
        pass
    resumed = index_loader(30)
    resumed.load_state_dict(interrupted.state_dict())
    resumed.sampler.set_epoch(1)
    assert [batch.batch_idx for batch in resumed] == list(range(7))


def test_the_epoch_is_read_at_the_first_batch() -> None:
    loader = index_loader(30)
    first = indices(loader)
    iterator = iter(loader)
    loader.sampler.set_epoch(1)
    assert indices(iterator) != first


# ------------------------------------------------------------------------------------ workers
def test_default_num_workers() -> None:
    assert default_num_workers(10**6) == 1
    assert 1 <= default_num_workers(2) <= default_num_workers(1) <= 16


# ------------------------------------------------------------------------------------ batches
@pytest.mark.parametrize("views", [False, True])
def test_lightning_moves_all_tensors_of_a_batch(views: bool) -> None:
    image, label = torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64)
    batch = Batch([View(image, label), View(image, label)] if views else image, label, label, 5, 7)
    moved = move_data_to_device(batch, torch.device("meta"))
    assert isinstance(moved, Batch) and (moved.epoch, moved.batch_idx) == (5, 7)
    tensors = [tensor for view in moved.images for tensor in view] if views else [moved.images]
    assert len(tensors) == (4 if views else 1) and isinstance(moved.images[0], View) == views
    assert {tensor.device.type for tensor in (*tensors, moved.labels, moved.indices)} == {"meta"}
    assert batch.labels.device.type == "cpu"


def test_copies_to_a_gpu_are_non_blocking() -> None:
    class FakeTensor:
        """Returns whether it was moved without blocking."""

        def to(self, device: Any, non_blocking: bool) -> bool:
            return non_blocking

    batch = Batch([], FakeTensor(), FakeTensor(), 0, 0)
    assert batch.to("cuda:1").labels and batch.to(torch.device("cuda")).indices
    # A copy to the CPU could be read before it is complete.
    assert not batch.to("cpu").labels
    assert batch.to("cpu", non_blocking=True).labels and not batch.to("cuda", non_blocking=False).labels
