"""Autocorrelation of input gradients, against known sequences and networks."""

from __future__ import annotations

import csv
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from resnet_pl.analysis.shattering import LAGS, FullyConnected, autocorrelation, input_gradients, measure
from resnet_pl.models import cifar_resnet
from tests.cli.commands import failed, printed

GENERATOR = torch.Generator().manual_seed(0)


def test_the_autocorrelation_of_vectors() -> None:
    values = torch.randn(40, 3, generator=GENERATOR)
    centered = (values - values.mean(0)).numpy().astype(float)
    # NumPy correlates scalars: the products of vectors are sums over their components.
    full = sum(np.correlate(column, column, "full") for column in centered.T)
    expected = full[len(values) - 1 :][: LAGS + 1] / full[len(values) - 1]
    assert autocorrelation(values) == pytest.approx(expected, abs=1e-6) and expected[0] == 1
    assert np.isnan(autocorrelation(torch.ones(40, 1))).all()
    wave = torch.arange(400)[:, None] * (2 * torch.pi / 8)
    assert autocorrelation(wave.sin())[[0, 4, 8]] == pytest.approx([1, -1, 1], abs=0.03)


def test_a_known_gradient() -> None:
    inputs = torch.linspace(-2, 2, 9)[:, None]
    square = nn.Sequential(nn.Linear(1, 1, bias=False))
    square[0].weight.data.fill_(3.0)
    square.register_forward_hook(lambda module, args, output: output**2)
    assert torch.allclose(input_gradients(square, inputs), 18 * inputs)


@pytest.mark.parametrize(
    ("build", "shape"),
    [(partial(FullyConnected, 3, True), (1,)), (partial(cifar_resnet, 8, num_classes=1), (3, 8, 8))],
    ids=["fully connected", "cifar"],
)
def test_batch_norm_has_the_statistics_of_the_inputs_as_constants(
    build: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    network, inputs = build(), torch.randn(64, *shape)
    input_gradients(network, inputs)
    with torch.no_grad():
        evaluated, trained = network.eval()(inputs), network.train()(inputs)
    assert float((trained - evaluated).abs().max()) < 0.1 * float(evaluated.std())
    # The gradient of one input does not depend on the others.
    gradients, network = input_gradients(network, inputs), network.eval()
    one = inputs[5:6].clone().requires_grad_()
    network(one).sum().backward()
    assert torch.allclose(one.grad.flatten(1), gradients[5:6], rtol=1e-3, atol=1e-5)


def test_plain_networks_shatter_with_depth_and_residual_ones_do_not() -> None:
    results = measure([1, 24], [], seeds=3)
    at_lag_1 = {key: each[:, 1].mean() for key, each in results.items()}
    assert abs(at_lag_1["white noise", 0]) < 0.15 and at_lag_1["brown noise", 0] > 0.9
    # One layer is the same network, a random walk.
    assert at_lag_1["plain", 1] == at_lag_1["residual", 1] > 0.9
    assert at_lag_1["plain", 24] < 0.3 < 0.6 < at_lag_1["residual", 24]
    again = measure([24], [], seeds=1)
    assert np.array_equal(again["plain", 24], results["plain", 24][:1])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["paper", "shattering", "--layers", 2, "--depths", 8, "--seeds", 1, "--output", tmp_path]
    text = printed(capsys, *words)
    assert "cifar_resnet 8" in text and "white noise" in text
    with (tmp_path / "shattering.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    kinds = ["white noise", "brown noise", "plain", "residual", "cifar_plain", "cifar_resnet"]
    assert [row["network"] for row in rows[:: LAGS + 1]] == kinds and len(rows) == 6 * (LAGS + 1)
    assert {row["initializations"] for row in rows} == {"1"} and rows[0]["autocorrelation"] == "1"
    assert Image.open(tmp_path / "shattering.png").size[0] == 1152
    assert "6n + 2" in failed(capsys, 2, "paper", "shattering", "--depths", 9)
