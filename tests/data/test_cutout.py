"""Squares hidden in images."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from resnet_pl.data import Cutout
from resnet_pl.data.rng import Draws


@pytest.mark.parametrize("size", [1, 3, 4, 30])
def test_a_square_is_the_mean_and_the_rest_as_it_was(size: int) -> None:
    images, mean = torch.rand(200, 3, 6, 7), torch.full((3, 1, 1), -1.0)
    transform = Cutout(size)
    transform.fit(SimpleNamespace(normalization=lambda: (mean, torch.ones(3, 1, 1))))
    cut, labels = transform(images, torch.arange(200), Draws(0, 0, 0, torch.arange(200)))
    assert torch.equal(labels, torch.arange(200))
    reference = Draws(0, 0, 0, torch.arange(200))
    rows, columns = reference.integers(6).tolist(), reference.integers(7).tolist()
    for image, found, row, column in zip(images, cut, rows, columns, strict=True):
        top, left = row - size // 2, column - size // 2
        expected = image.clone()
        expected[:, max(0, top) : max(0, top + size), max(0, left) : max(0, left + size)] = -1
        assert torch.equal(found, expected)


def test_nothing_to_cut_is_an_error() -> None:
    with pytest.raises(ValueError, match="Cutout: size is 0"):
        Cutout(0)
