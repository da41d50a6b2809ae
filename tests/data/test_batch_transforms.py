"""Augmentation of whole batches."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from resnet_pl.data.batch_transforms import (
    ALEXNET_EIGENVALUES,
    ALEXNET_EIGENVECTORS,
    Cutout,
    PadCrop,
    PCAColor,
    RandomFlip,
)
from resnet_pl.data.rng import BatchRNG
from resnet_pl.data.statistics import Statistics


def rng(count: int, epoch: int = 0) -> BatchRNG:
    return BatchRNG(0, epoch, 0, torch.arange(count))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomFlip(1.5), "RandomFlip: probability is 1.5"),
        (lambda: RandomFlip(float("nan")), "probability is nan"),
        (lambda: PadCrop(-1), "PadCrop: padding is -1"),
        (lambda: PCAColor(-0.1), "PCAColor: sigma is -0.1"),
        (lambda: Cutout(0), "Cutout: size is 0"),
    ],
)
def test_values_out_of_range_are_named(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_half_are_mirrored_each_as_a_whole() -> None:
    images = torch.rand(20, 3, 4, 5).repeat(200, 1, 1, 1)
    flipped, labels = RandomFlip()(images, torch.arange(4000), rng(4000))
    mirrored = torch.tensor([torch.equal(a, b.flip(-1)) for a, b in zip(flipped, images, strict=True)])
    kept = torch.tensor([torch.equal(a, b) for a, b in zip(flipped, images, strict=True)])
    assert (mirrored ^ kept).all()
    assert int(mirrored.sum()) == pytest.approx(2000, abs=5 * 31.6)
    assert torch.equal(labels, torch.arange(4000))
    for probability, expected in ((0.0, images), (1.0, images.flip(-1))):
        assert torch.equal(RandomFlip(probability)(images, labels, rng(4000))[0], expected)


def test_by_turns_each_image_is_mirrored_in_every_other_epoch() -> None:
    images, labels = torch.rand(4000, 3, 2, 3), torch.zeros(4000)
    first, second, third = (
        (RandomFlip(alternate=True)(images, labels, rng(4000, epoch))[0] != images).flatten(1).any(1)
        for epoch in range(3)
    )
    assert torch.equal(first, ~second) and torch.equal(first, third)
    assert int(first.sum()) == pytest.approx(2000, abs=5 * 31.6)


@pytest.mark.parametrize("mean_shape", [(3, 1, 1), (3, 6, 7)])
@pytest.mark.parametrize(("padding", "mode"), [(0, "constant"), (2, "constant"), (9, "constant"), (2, "reflect")])
def test_pad_crop_is_the_plain_definition(padding: int, mode: str, mean_shape: tuple[int, ...]) -> None:
    images, mean = torch.rand(300, 3, 6, 7), torch.rand(mean_shape)
    transform = PadCrop(padding, mode)
    transform.fit(SimpleNamespace(normalization=lambda: (mean, torch.ones(1, 1, 1))))
    views = transform(images, torch.zeros(300), rng(300))[0] - mean

    reference = rng(300)
    tops, lefts = (reference.integers(2 * padding + 1).tolist() for _ in range(2))
    for image, view, top, left in zip(images, views, tops, lefts, strict=True):
        padded = np.pad((image - mean).numpy(), [(0, 0), (padding, padding), (padding, padding)], mode)
        padded = torch.from_numpy(padded)
        torch.testing.assert_close(view, padded[:, top : top + 6, left : left + 7])


def test_pad_crop_offsets_are_even() -> None:
    # One bright pixel in the middle tells where the window lay.
    images = torch.zeros(16_200, 1, 9, 9)
    images[:, :, 4, 4] = 1
    views = PadCrop(4)(images, torch.zeros(16_200), rng(16_200))[0]
    assert (views.sum((1, 2, 3)) == 1).all()
    counts = views.sum(0).flatten()
    assert float(((counts - 200) ** 2 / 200).sum()) < 80 + 5 * 160**0.5


def test_colours_move_as_alexnet_says() -> None:
    count = 50_000
    images = torch.rand(1, 3, 2, 2).expand(count, -1, -1, -1)
    moved, _ = PCAColor(0.1)(images, torch.zeros(count), rng(count))
    shift = moved - images
    torch.testing.assert_close(shift, shift[:, :, :1, :1].expand_as(shift), atol=1e-6, rtol=0)
    shift = shift[:, :, 0, 0].double()
    vectors, values = torch.tensor(ALEXNET_EIGENVECTORS).double(), torch.tensor(ALEXNET_EIGENVALUES).double()
    # [p1 p2 p3] (a1 l1, a2 l2, a3 l3) with a ~ N(0, 0.1): along each component an independent Gaussian.
    amounts = shift @ vectors / values
    assert amounts.mean(0).abs().max() < 5 * 0.1 / count**0.5
    torch.testing.assert_close(amounts.T.cov(), torch.eye(3).double() * 0.01, atol=3e-4, rtol=0)


def test_published_components_are_orthonormal() -> None:
    vectors = torch.tensor(ALEXNET_EIGENVECTORS)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(3), atol=1e-3, rtol=0)


def test_colours_fitted_to_the_data() -> None:
    mixture = torch.tensor([[0.3, 0.0, 0.0], [0.2, 0.1, 0.0], [0.1, 0.0, 0.05]])
    covariance = mixture @ mixture.T
    transform = PCAColor(0.5, fitted=True)
    transform.fit(SimpleNamespace(statistics=Statistics(torch.zeros(3, 1, 1), covariance)))
    shift = transform(torch.zeros(50_000, 3, 1, 1), torch.zeros(50_000), rng(50_000))[0].flatten(1)
    # Eigenvalues scale the amounts, so the shifts have the covariance of the pixels, squared.
    torch.testing.assert_close(shift.T.cov(), 0.25 * covariance @ covariance, atol=2e-4, rtol=0.05)


@pytest.mark.parametrize("size", [1, 3, 4, 30])
def test_cutout_makes_a_square_the_mean_and_the_rest_as_it_was(size: int) -> None:
    images, mean = torch.rand(200, 3, 6, 7), torch.full((3, 1, 1), -1.0)
    transform = Cutout(size)
    transform.fit(SimpleNamespace(normalization=lambda: (mean, torch.ones(3, 1, 1))))
    cut, labels = transform(images, torch.arange(200), rng(200))
    assert torch.equal(labels, torch.arange(200))
    reference = rng(200)
    rows, columns = reference.integers(6).tolist(), reference.integers(7).tolist()
    for image, found, row, column in zip(images, cut, rows, columns, strict=True):
        top, left = row - size // 2, column - size // 2
        expected = image.clone()
        expected[:, max(0, top) : max(0, top + size), max(0, left) : max(0, left + size)] = -1
        assert torch.equal(found, expected)
