"""Measure how the input gradients of new plain and residual networks are correlated (arXiv:1702.08591).

A network is a function of the position t on a line, 256 points from -2 to 2. The autocorrelation of its gradients over
the lag, in points, is the mean over several initializations. White noise and brown noise (its sum) are references.

Fully connected networks of 200 rectifiers per layer take t itself, as in the paper. The thresholds of the first layer
are spread over the line. Each other layer is `ReLU(BN(W x))` in a plain network and `ReLU(x + BN(W x))` in a residual
one; the paper has another order there, `x + W ReLU(BN(x))`. The CIFAR networks take images a + t d; the pixels of a and
d are standard normal. Their gradient has 3,072 values, and products of gradients are sums over them. The output is one
random linear function of the last features. BatchNorm uses the statistics of the 256 points, as constants.

The results are saved as shattering.csv and shattering.png.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jsonargparse import ArgumentParser, Namespace
from torch import Tensor, nn

from resnet_pl.data.rng import seeded_rng
from resnet_pl.evaluation.precise_bn import update_bn
from resnet_pl.models import cifar_plain, cifar_resnet
from resnet_pl.reports.plots import MUTED, add_legend, new_figure, render, save_png, style_axes
from resnet_pl.reports.tables import write_csv
from resnet_pl.types import PositiveInt
from resnet_pl.utils import UserError, progress

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS, LIMIT, WIDTH, LAGS = 256, 2.0, 200, 15
NOISES = ("white noise", "brown noise")
# Autocorrelations of each initialization `(S, LAGS + 1)` by kind and number of layers, 0 for noise.
Results = dict[tuple[str, int], np.ndarray]


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options of `paper shattering`."""
    layers = "numbers of layers of the fully connected networks"
    parser.add_argument("--layers", type=PositiveInt, nargs="*", default=[2, 4, 10, 24, 50], help=layers)
    depths = "numbers of layers of the CIFAR networks, 6n + 2"
    parser.add_argument("--depths", type=PositiveInt, nargs="*", default=[8, 20, 56], help=depths)
    parser.add_argument("--seeds", type=PositiveInt, default=5, help="initializations of each network")
    parser.add_argument("--output", type=str, default=".", help="folder to write to")


def run(settings: Namespace) -> None:
    """Runs the command."""
    try:
        results = measure(settings.layers, settings.depths, settings.seeds)
    except ValueError as error:
        raise UserError(f"--depths: {error}\nchoose other numbers of layers") from error
    table, plot = (Path(settings.output) / f"shattering.{kind}" for kind in ("csv", "png"))
    rows = [
        [kind, depth, lag, len(each), f"{mean:.6g}", f"{std:.6g}"]
        for (kind, depth), each in results.items()
        for lag, (mean, std) in enumerate(zip(each.mean(0), each.std(0), strict=True))
    ]
    write_csv(table, ["network", "layers", "lag", "initializations", "autocorrelation", "std"], rows)
    save_png(plot_autocorrelations(results), plot)
    for (kind, depth), each in results.items():
        print(f"{kind + (f' {depth}' if depth else ''):<16} autocorrelation at lag 1: {each[:, 1].mean():.2f}")
    print(f"Saved to {table} and {plot}")


class FullyConnected(nn.Module):
    """A network of one input and one output, at initialization (He).

    Args:
        layers: number of layers of rectifiers.
        residual: whether each layer after the first is added to its input.
    """

    def __init__(self, layers: int, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        self.first, self.last = nn.Linear(1, WIDTH), nn.Linear(WIDTH, 1, bias=False)
        self.hidden = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers - 1))
        self.norms = nn.ModuleList(nn.BatchNorm1d(WIDTH) for _ in self.hidden)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight)
        # The gradient changes where a rectifier switches: anywhere on the line.
        thresholds = torch.empty(WIDTH).uniform_(-LIMIT, LIMIT)
        self.first.bias.data = -self.first.weight.detach()[:, 0] * thresholds

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(N, 1)` to `(N, 1)`."""
        x = self.first(x).relu()
        for layer, norm in zip(self.hidden, self.norms, strict=True):
            change = norm(layer(x))
            x = (x + change if self.residual else change).relu()
        return self.last(x)


def measure(layers: Sequence[int], depths: Sequence[int], seeds: int) -> Results:
    """Returns the autocorrelations of noise, fully connected networks and CIFAR networks.

    Args:
        layers: numbers of layers of the fully connected networks.
        depths: numbers of layers of the CIFAR networks.
        seeds: number of initializations; number n is the same for every choice of the others.

    Raises:
        ValueError: a depth is not 6n + 2.
    """
    builders: dict[tuple[str, int], Callable[[], nn.Module]] = {}
    for count in layers:
        for kind, residual in (("plain", False), ("residual", True)):
            builders[f"{kind}", count] = lambda count=count, residual=residual: FullyConnected(count, residual)
    for depth in depths:
        for kind, network in (("cifar_plain", cifar_plain), ("cifar_resnet", cifar_resnet)):
            builders[kind, depth] = lambda depth=depth, network=network: network(depth, num_classes=1)
    found: dict[tuple[str, int], list[np.ndarray]] = {}
    with progress("networks", len(builders) * seeds) as advance:
        for seed in range(seeds):
            with seeded_rng(seed, torch_only=True):
                white = torch.randn(POINTS, 1)
            for kind, noise in zip(NOISES, (white, white.cumsum(0)), strict=True):
                found.setdefault((kind, 0), []).append(autocorrelation(noise))
            for key, build in builders.items():
                with seeded_rng(seed, torch_only=True):
                    line = images_on_a_line() if key[0].startswith("cifar") else torch.linspace(-LIMIT, LIMIT, POINTS)
                    gradients = input_gradients(build(), line.view(POINTS, *(line.shape[1:] or (1,))))
                found.setdefault(key, []).append(autocorrelation(gradients))
                advance(1)
    return {key: np.array(each) for key, each in found.items()}


def images_on_a_line() -> Tensor:
    """Returns images a + t d, `(POINTS, 3, 32, 32)`; the pixels of a and d are standard normal."""
    start, direction = torch.randn(2, 3, 32, 32)
    return start + torch.linspace(-LIMIT, LIMIT, POINTS).view(-1, 1, 1, 1) * direction


def input_gradients(network: nn.Module, inputs: Tensor) -> Tensor:
    """Returns the gradient of a network's output with respect to each input, `(N, D)`.

    Args:
        network: a network with one output. The statistics of its BatchNorm layers become those of the inputs.
        inputs: `(N, …)` with D values each.
    """
    update_bn(network, [inputs], network)
    inputs = inputs.detach().requires_grad_()
    # In evaluation mode each output depends on its own input only.
    (gradients,) = torch.autograd.grad(network.eval()(inputs).sum(), inputs)
    return gradients.flatten(1)


def autocorrelation(values: Tensor) -> np.ndarray:
    """Returns the autocorrelation of a sequence of vectors `(N, D)` at the lags from 0 to LAGS.

    The mean over the sequence is subtracted. NaN if all vectors are equal.
    """
    centered = (values - values.mean(0)).double()
    products = [(centered[: len(centered) - lag] * centered[lag:]).sum() for lag in range(LAGS + 1)]
    return (torch.stack(products) / products[0]).numpy()


def plot_autocorrelations(results: Mapping[tuple[str, int], np.ndarray]) -> np.ndarray:
    """Plots autocorrelations over the lag, and at lag 1 over the number of layers; plain networks are dashed.

    Returns:
        The plot `(H, W, 3)` uint8.
    """
    figure = new_figure(9.6, 6.6, dpi=120)
    panels = figure.subplots(2, 2, sharey=True)
    groups = {"fully connected networks": ("plain", "residual"), "CIFAR networks": ("cifar_plain", "cifar_resnet")}
    for (over_lag, over_layers), (title, kinds) in zip(panels.T, groups.items(), strict=True):
        own = {key: each for key, each in results.items() if key[0] in kinds}
        _draw_lags(over_lag, {key: results[key, 0] for key in NOISES}, own)
        for kind in kinds:
            points = {depth: each[:, 1] for (name, depth), each in own.items() if name == kind}
            _draw_layers(over_layers, kind, points)
        for noise, style in zip(NOISES, (":", "-."), strict=True):
            over_layers.axhline(results[noise, 0][:, 1].mean(), color=MUTED, linewidth=1.2, linestyle=style)
        over_lag.set_title(f"{title}; dashed: plain, solid: residual", loc="left", fontsize=10, color=MUTED)
        over_layers.set_title("at lag 1: mean, and range over initializations", loc="left", fontsize=10, color=MUTED)
        style_axes(over_lag, "lag (points)", "autocorrelation of the gradient")
        style_axes(over_layers, "layers", "autocorrelation at lag 1")
        over_layers.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    return render(figure)


def _draw_lags(axes: Axes, noises: Mapping[str, np.ndarray], own: Mapping[tuple[str, int], np.ndarray]) -> None:
    depths = list(dict.fromkeys(depth for _, depth in own))
    for noise, style in zip(noises, (":", "-."), strict=True):
        axes.plot(noises[noise].mean(0), color=MUTED, linewidth=1.6, linestyle=style, label=noise)
    for (kind, depth), each in own.items():
        style = (0, (4, 1.5)) if "plain" in kind else "-"
        color = f"C{depths.index(depth)}"
        label = None if "plain" in kind else f"{depth} layers"
        axes.plot(each.mean(0), color=color, linewidth=1.6, linestyle=style, label=label)
    axes.set_ylim(-0.25, 1.3)  # space for the legend
    add_legend(axes, fontsize=8, ncols=4, loc="upper right")


def _draw_layers(axes: Axes, kind: str, points: Mapping[int, np.ndarray]) -> None:
    plain = "plain" in kind
    style = {"linestyle": (0, (4, 1.5)) if plain else "-", "color": "C3" if plain else "C0"}
    depths, values = sorted(points), [points[depth] for depth in sorted(points)]
    axes.plot(depths, [each.mean() for each in values], marker="o", label=kind, **style)
    axes.fill_between(
        depths, [each.min() for each in values], [each.max() for each in values], alpha=0.15, color=style["color"]
    )
    add_legend(axes, fontsize=8)
