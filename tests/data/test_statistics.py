"""Pixel statistics and normalization."""

import numpy as np
import pytest
import torch

from resnet_pl.data.statistics import Statistics, check_input, normalization
from resnet_pl.utils import UserError
from tests.tiny import Tiny

IMAGES = torch.randint(0, 256, (37, 3, 5, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("batch_size", [1, 10, 37])
def test_statistics_match_numpy(batch_size: int) -> None:
    statistics = Statistics.of(iter(IMAGES.split(batch_size)))
    pixels = IMAGES.numpy() / 255
    np.testing.assert_allclose(statistics.mean_image, pixels.mean(0), atol=1e-6)
    np.testing.assert_allclose(statistics.mean.flatten(), pixels.mean((0, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(statistics.std.flatten(), pixels.std((0, 2, 3)), atol=1e-6)
    channels = pixels.transpose(1, 0, 2, 3).reshape(3, -1)
    np.testing.assert_allclose(statistics.covariance, np.cov(channels, bias=True), atol=1e-6)


def test_standard_deviation_of_constant_images_is_not_zero() -> None:
    std = Statistics.of(iter([torch.full((4, 3, 2, 2), 77, dtype=torch.uint8)])).std
    torch.testing.assert_close(std, torch.full((3, 1, 1), 1 / 255))


@pytest.mark.parametrize("mean", ["pixel", "channel", [0.1, 0.2, 0.3]])
@pytest.mark.parametrize("std", [None, "channel", [0.4, 0.5, 0.6]])
def test_normalization(mean: str | list[float], std: str | list[float] | None) -> None:
    measured = []

    def measure() -> Statistics:
        measured.append(1)
        return Statistics.of(iter([IMAGES]))

    subtracted, divided = normalization(mean, std, measure)
    pixels = IMAGES.numpy() / 255
    expected = {"pixel": pixels.mean(0), "channel": pixels.mean((0, 2, 3))[:, None, None]}
    np.testing.assert_allclose(
        subtracted, expected[mean] if isinstance(mean, str) else np.c_[mean][..., None], atol=1e-6
    )
    expected = {None: np.ones((1, 1, 1)), "channel": pixels.std((0, 2, 3))[:, None, None]}
    np.testing.assert_allclose(divided, np.c_[std][..., None] if isinstance(std, list) else expected[std], atol=1e-6)
    assert bool(measured) == (isinstance(mean, str) or std == "channel")


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ([0.5], None, r"mean.*\[0\.5\].*three"),
        ([0.5] * 4, "channel", "mean.*three"),
        ([0.5] * 3, [1.0, 1.0], r"std.*\[1\.0, 1\.0\].*three"),
        ("pixel", [1.0, 0.0, 1.0], "std.*above 0"),
        ("pixel", [1.0, -1.0, 1.0], "std.*above 0"),
    ],
)
def test_invalid_values_are_named(mean: object, std: object, message: str) -> None:
    with pytest.raises((ValueError, UserError), match=message):
        check_input(32, mean, std)


def test_minimum_image_size() -> None:
    check_input(8, "pixel", None)
    with pytest.raises(ValueError, match=r"image_size.*7.*8"):
        check_input(7, "pixel", None)


def test_images_are_measured_on_the_cpu_within_another_default_device() -> None:
    data = Tiny()
    data.setup("fit")
    with torch.device("meta"):  # as in `configure_model` on a GPU
        mean, std = data.normalization()
    assert mean.device.type == std.device.type == "cpu"
