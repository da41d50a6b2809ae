"""Augmentation of batches on the device."""

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
        (lambda: RandomFlip(1.5), r"RandomFlip.*probability.*1\.5"),
        (lambda: RandomFlip(float("nan")), "probability.*nan"),
        (lambda: PadCrop(-1), "PadCrop.*padding.*-1"),
        (lambda: PCAColor(-0.1), r"PCAColor.*sigma.*-0\.1"),
        (lambda: Cutout(0), "Cutout.*size.*0"),
    ],
)
def test_values_out_of_range_are_named(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_half_of_the_images_are_flipped() -> None:
    images = torch.rand(20, 3, 4, 5).repeat(200, 1, 1, 1)
    flipped, labels = RandomFlip()(images, torch.arange(4000), rng(4000))
    is_flipped = torch.tensor([torch.equal(a, b.flip(-1)) for a, b in zip(flipped, images, strict=True)])
    is_unchanged = torch.tensor([torch.equal(a, b) for a, b in zip(flipped, images, strict=True)])
    assert (is_flipped ^ is_unchanged).all()
    assert int(is_flipped.sum()) == pytest.approx(2000, abs=5 * 31.6)
    assert torch.equal(labels, torch.arange(4000))
    for probability, expected in ((0.0, images), (1.0, images.flip(-1))):
        assert torch.equal(RandomFlip(probability)(images, labels, rng(4000))[0], expected)


def test_alternating_flip_flips_each_image_in_every_second_epoch() -> None:
    images, labels = torch.rand(4000, 3, 2, 3), torch.zeros(4000)
    first, second, third = (
        (RandomFlip(alternate=True)(images, labels, rng(4000, epoch))[0] != images).flatten(1).any(1)
        for epoch in range(3)
    )
    assert torch.equal(first, ~second) and torch.equal(first, third)
    assert int(first.sum()) == pytest.approx(2000, abs=5 * 31.6)


@pytest.mark.parametrize("mean_shape", [(3, 1, 1), (3, 6, 7)])
@pytest.mark.parametrize(("padding", "mode"), [(0, "constant"), (2, "constant"), (9, "constant"), (2, "reflect")])
def test_pad_crop_matches_a_numpy_reference(padding: int, mode: str, mean_shape: tuple[int, ...]) -> None:
    images, mean = torch.rand(300, 3, 6, 7), torch.rand(mean_shape)
    transform = PadCrop(padding, mode)
    transform.fit(SimpleNamespace(normalization=lambda: (mean, torch.ones(1, 1, 1))))
    cropped = transform(images, torch.zeros(300), rng(300))[0] - mean

    reference = rng(300)
    tops, lefts = (reference.integers(2 * padding + 1).tolist() for _ in range(2))
    for image, crop, top, left in zip(images, cropped, tops, lefts, strict=True):
        padded = np.pad((image - mean).numpy(), [(0, 0), (padding, padding), (padding, padding)], mode)
        padded = torch.from_numpy(padded)
        torch.testing.assert_close(crop, padded[:, top : top + 6, left : left + 7])


def test_pad_crop_offsets_are_uniform() -> None:
    # The position of one bright pixel gives the offset of the crop.
    images = torch.zeros(16_200, 1, 9, 9)
    images[:, :, 4, 4] = 1
    cropped = PadCrop(4)(images, torch.zeros(16_200), rng(16_200))[0]
    assert (cropped.sum((1, 2, 3)) == 1).all()
    counts = cropped.sum(0).flatten()
    assert float(((counts - 200) ** 2 / 200).sum()) < 80 + 5 * 160**0.5


def test_pca_color_shifts_as_in_alexnet() -> None:
    count = 50_000
    images = torch.rand(1, 3, 2, 2).expand(count, -1, -1, -1)
    shifted, _ = PCAColor(0.1)(images, torch.zeros(count), rng(count))
    shift = shifted - images
    torch.testing.assert_close(shift, shift[:, :, :1, :1].expand_as(shift), atol=1e-6, rtol=0)
    shift = shift[:, :, 0, 0].double()
    vectors, values = torch.tensor(ALEXNET_EIGENVECTORS).double(), torch.tensor(ALEXNET_EIGENVALUES).double()
    # shift = [p1 p2 p3] (a1 l1, a2 l2, a3 l3) with independent a ~ N(0, 0.1).
    factors = shift @ vectors / values
    assert factors.mean(0).abs().max() < 5 * 0.1 / count**0.5
    torch.testing.assert_close(factors.T.cov(), torch.eye(3).double() * 0.01, atol=3e-4, rtol=0)


def test_imagenet_components_are_orthonormal() -> None:
    vectors = torch.tensor(ALEXNET_EIGENVECTORS)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(3), atol=1e-3, rtol=0)


def test_pca_color_fitted_to_the_training_split() -> None:
    mixture = torch.tensor([[0.3, 0.0, 0.0], [0.2, 0.1, 0.0], [0.1, 0.0, 0.05]])
    covariance = mixture @ mixture.T
    transform = PCAColor(0.5, fitted=True)
    transform.fit(SimpleNamespace(statistics=Statistics(torch.zeros(3, 1, 1), covariance)))
    shift = transform(torch.zeros(50_000, 3, 1, 1), torch.zeros(50_000), rng(50_000))[0].flatten(1)
    # The eigenvalues scale the factors: the covariance of the shifts is the squared covariance of the pixels.
    torch.testing.assert_close(shift.T.cov(), 0.25 * covariance @ covariance, atol=2e-4, rtol=0.05)


@pytest.mark.parametrize("size", [1, 3, 4, 30])
def test_cutout_fills_a_square_with_the_mean(size: int) -> None:
    images, mean = torch.rand(200, 3, 6, 7), torch.full((3, 1, 1), -1.0)
    transform = Cutout(size)
    transform.fit(SimpleNamespace(normalization=lambda: (mean, torch.ones(3, 1, 1))))
    cut, labels = transform(images, torch.arange(200), rng(200))
    assert torch.equal(labels, torch.arange(200))
    reference = rng(200)
    rows, columns = reference.integers(6).tolist(), reference.integers(7).tolist()
    for image, actual, row, column in zip(images, cut, rows, columns, strict=True):
        top, left = row - size // 2, column - size // 2
        expected = image.clone()
        expected[:, max(0, top) : max(0, top + size), max(0, left) : max(0, left + size)] = -1
        assert torch.equal(actual, expected)
