"""Random numbers as functions of seed, epoch and image."""

import math
import random

import numpy as np
import pytest
import torch
from torch import Tensor

from resnet_pl.data.rng import BatchRNG, hash_seed, seed_generators, seeded_rng

N = 100_000


def rng(seed: int = 0, epoch: int = 0, batch_idx: int = 0, indices: Tensor | None = None) -> BatchRNG:
    return BatchRNG(seed, epoch, batch_idx, torch.arange(N) if indices is None else indices)


def correlation(a: Tensor, b: Tensor) -> float:
    return float(np.corrcoef(a.numpy(), b.numpy())[0, 1])


@pytest.mark.parametrize("seed", [0, 1, 2**63, -5])
def test_uniform(seed: int) -> None:
    values = rng(seed).uniform()
    assert values.dtype == torch.float32
    assert 0 <= float(values.min()) < float(values.max()) < 1
    # Chi-squared of 100 bins: mean 99, standard deviation 14.
    counts = torch.histc(values, 100, 0, 1)
    assert float(((counts - N / 100) ** 2 / (N / 100)).sum()) < 99 + 5 * 14


def test_integers_are_uniform_and_in_range() -> None:
    for high in (1, 2, 9, 1000):
        values = rng().integers(high)
        assert values.dtype == torch.int64
        counts = torch.bincount(values, minlength=high)
        assert len(counts) == high
        assert float(((counts - N / high) ** 2 / (N / high)).sum()) < high - 1 + 5 * math.sqrt(2 * high)


def test_normal() -> None:
    values = rng().normal().double()
    assert torch.isfinite(values).all()
    assert abs(values.mean()) < 5 / math.sqrt(N)
    assert abs(values.std() - 1) < 5 / math.sqrt(2 * N)
    assert abs((values**4).mean() - 3) < 5 * math.sqrt(96 / N)
    assert float((values.abs() > 1.96).double().mean()) == pytest.approx(0.05, abs=0.004)


def test_draws_epochs_seeds_and_neighbors_are_independent() -> None:
    one = rng()
    first, second = one.uniform(), one.uniform()
    others = [
        second,
        rng(epoch=1).uniform(),
        rng(seed=1).uniform(),
        first.roll(1),
        rng(seed=1, epoch=1).uniform(),
    ]
    for other in others:
        assert abs(correlation(first, other)) < 5 / math.sqrt(N)
        assert float((first == other).double().mean()) < 1e-4
    assert abs(correlation(rng(seed=1).uniform(), rng(epoch=1).uniform())) < 5 / math.sqrt(N)
    # The first draw of the next epoch also differs from the second draw of this one.
    assert abs(correlation(second, rng(epoch=1).uniform())) < 5 / math.sqrt(N)


def test_an_image_has_the_same_numbers_in_any_batch() -> None:
    def draw(indices: list[int], batch_idx: int) -> dict[int, tuple[float, ...]]:
        batch = rng(7, 3, batch_idx, torch.tensor(indices))
        drawn = batch.uniform(), batch.integers(9), batch.normal()
        return dict(zip(indices, zip(*(values.tolist() for values in drawn), strict=True), strict=True))

    together = draw([5, 1, 9, 40_000], 0)
    assert draw([9], 1) | draw([40_000, 5], 2) | draw([1], 8) == together
    assert len(set(together.values())) == 4


def test_batch_generator_is_a_function_of_seed_epoch_and_batch() -> None:
    def draw(*key: int) -> float:
        return rng(*key, indices=torch.arange(2)).batch_generator().random()

    assert draw(1, 2, 3) == draw(1, 2, 3)
    assert len({draw(1, 2, 3), draw(0, 2, 3), draw(1, 0, 3), draw(1, 2, 0), draw(-1, 2, 3)}) == 5
    one = rng(indices=torch.arange(2))
    assert one.batch_generator().random() != one.batch_generator().random()


def test_seeded_rng_restores_the_global_generator() -> None:
    state = torch.random.get_rng_state()
    with seeded_rng(1, 2):
        first = torch.rand(3)
    with pytest.raises(KeyError), seeded_rng(1, 2):
        assert torch.equal(torch.rand(3), first)
        raise KeyError
    with seeded_rng(2, 1):
        assert not torch.equal(torch.rand(3), first)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_all_generators_are_seeded() -> None:
    def draw(*numbers: int) -> list[float]:
        seed_generators(*numbers)
        return [random.random(), np.random.rand(), float(torch.rand(()))]

    first, again, other = draw(1, 2), draw(1, 2), draw(2, 1)
    assert first == again and all(a != b for a, b in zip(first, other, strict=True))


def test_hash_seed_is_the_same_on_every_machine() -> None:
    assert hash_seed(0, 0) == 5104172916443561106
    assert len({hash_seed(a, b) for a in range(30) for b in range(30)}) == 900
