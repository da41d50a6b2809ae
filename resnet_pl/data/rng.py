"""Counter-based random numbers: functions of (seed, epoch, image), not of a generator's state."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

_MASK = (1 << 64) - 1


def _signed(number: int) -> int:
    """Returns the same 64 bits as a signed integer, as in torch's int64."""
    number &= _MASK
    return number - (1 << 64) if number >> 63 else number


def _splitmix64(x: Tensor) -> Tensor:
    """Hashes int64 with the finalizer of SplitMix64: every bit of the result depends on every bit of the input."""
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * _signed(0x94D049BB133111EB)
    return x ^ ((x >> 31) & ((1 << 33) - 1))


@lru_cache(maxsize=16)
def _base(seed: int, epoch: int) -> int:
    """Returns the offset of the hash keys of an epoch's images."""
    return int(_splitmix64(_splitmix64(torch.tensor(_signed(seed))) + epoch))


class BatchRNG:
    """Random numbers for the images of one batch, a function of (seed, epoch, image).

    Each call returns new numbers.

    Args:
        seed: the training seed.
        epoch: epoch of the batch, from 0.
        batch_idx: index of the batch in its epoch, for numbers that are drawn once per batch.
        indices: `(N,)` int64, index of each image in its split; the numbers are computed on its device.
    """

    def __init__(self, seed: int, epoch: int, batch_idx: int, indices: Tensor) -> None:
        self._keys = _splitmix64(indices + _base(seed, epoch))
        self._indices, self._count = indices, 0
        self._batch_key = (seed & _MASK, epoch, batch_idx)

    def uniform(self) -> Tensor:
        """Returns `(N,)` float32, uniform in [0, 1)."""
        self._count += 1
        return ((_splitmix64(self._keys + self._count) >> 40) & 0xFFFFFF).float() / (1 << 24)

    def alternating_mask(self) -> Tensor:
        """Returns `(N,)` bool, true for about half of the images in one epoch and for the other half in the next."""
        seed, epoch, _ = self._batch_key
        return ((_splitmix64(self._indices + _base(seed, 0)) + epoch) & 1).bool()

    def integers(self, high: int) -> Tensor:
        """Returns `(N,)` int64, uniform over 0 … high - 1."""
        return (self.uniform() * high).long().clamp_(max=high - 1)

    def normal(self) -> Tensor:
        """Returns `(N,)` float32, standard normal."""
        radius = torch.sqrt(-2 * torch.log1p(-self.uniform()))
        return radius * torch.cos(2 * math.pi * self.uniform())

    def batch_generator(self) -> np.random.Generator:
        """Returns a NumPy generator for numbers that are drawn once per batch, such as MixUp's coefficient."""
        self._count += 1
        return np.random.default_rng([*self._batch_key, self._count])


def hash_seed(*numbers: int) -> int:
    """Returns a 63-bit hash of integers, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest(), "little") >> 1


def seed_generators(*numbers: int) -> None:
    """Seeds the global generators of torch, NumPy and Python with a hash of the numbers."""
    seed = hash_seed(*numbers)
    # The same effect as torch.manual_seed, which takes 100 times as long without a GPU.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)


@contextmanager
def seeded_rng(*numbers: int, torch_only: bool = False) -> Iterator[None]:
    """Seeds the global generators inside the block and restores torch's afterwards.

    Args:
        *numbers: hashed to the seed.
        torch_only: whether only torch's generator is seeded, because the block draws from no other.
    """
    state = torch.default_generator.get_state()
    if torch_only:
        torch.default_generator.manual_seed(hash_seed(*numbers))
    else:
        seed_generators(*numbers)
    try:
        yield
    finally:
        torch.default_generator.set_state(state)
