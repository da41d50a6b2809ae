"""Random numbers that are pure functions of what they are for: for whole batches on any device, and in generators."""

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
    """The same 64 bits as torch's int64."""
    number &= _MASK
    return number - (1 << 64) if number >> 63 else number


def _splitmix64(x: Tensor) -> Tensor:
    """splitmix64's finaliser on int64: every bit of the result depends on every bit of the input."""
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * _signed(0x94D049BB133111EB)
    return x ^ ((x >> 31) & ((1 << 33) - 1))


@lru_cache(maxsize=16)
def _base(seed: int, epoch: int) -> int:
    """What the keys of an epoch's images start from."""
    return int(_splitmix64(_splitmix64(torch.tensor(_signed(seed))) + epoch))


class BatchRNG:
    """Random numbers for the images of one batch, a pure function of (seed, epoch, image).

    Args:
        seed: the run's seed.
        epoch: epoch, from 0.
        number: position of the batch in its epoch, for what is drawn once a batch.
        indices: `(N,)` position of each image in its data set; its device is where the numbers are made.
    """

    def __init__(self, seed: int, epoch: int, number: int, indices: Tensor) -> None:
        self._keys = _splitmix64(indices + _base(seed, epoch))
        self._indices, self._count = indices, 0
        self._for_batch = (seed & _MASK, epoch, number)

    def uniform(self) -> Tensor:
        """`(N,)` float32 in [0, 1)."""
        self._count += 1
        return ((_splitmix64(self._keys + self._count) >> 40) & 0xFFFFFF).float() / (1 << 24)

    def alternating_mask(self) -> Tensor:
        """`(N,)` bool: about half of the images, and the others in the epoch after."""
        seed, epoch, _ = self._for_batch
        return ((_splitmix64(self._indices + _base(seed, 0)) + epoch) & 1).bool()

    def integers(self, high: int) -> Tensor:
        """`(N,)` int64, uniform over 0 … high - 1."""
        return (self.uniform() * high).long().clamp_(max=high - 1)

    def normal(self) -> Tensor:
        """`(N,)` float32, standard normal."""
        radius = torch.sqrt(-2 * torch.log1p(-self.uniform()))
        return radius * torch.cos(2 * math.pi * self.uniform())

    def batch_generator(self) -> np.random.Generator:
        """A generator on the host for what is drawn once a batch, such as MixUp's coefficient."""
        self._count += 1
        return np.random.default_rng([*self._for_batch, self._count])


def hash_seed(*numbers: int) -> int:
    """A well-mixed 63-bit number from integers, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest(), "little") >> 1


def seed_generators(*numbers: int) -> None:
    """Makes what is drawn from now on, from torch, numpy and Python, a pure function of the numbers."""
    seed = hash_seed(*numbers)
    # What torch.manual_seed does, which takes a hundred times as long where there is no GPU.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)


@contextmanager
def seeded_rng(*numbers: int, torch_only: bool = False) -> Iterator[None]:
    """Inside the block what is drawn is a pure function of the numbers; torch's generator is afterwards as before.

    Args:
        numbers: what the draws are for.
        torch_alone: numpy and Python draw nothing in the block, and are left as they are.
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
