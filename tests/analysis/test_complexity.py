"""Costs of models, compared with counts by hand and with those that torchvision publishes."""

from __future__ import annotations

from collections import OrderedDict
from functools import reduce
from operator import add

import pytest
import torch
import torchvision
from torch import Tensor, nn

from resnet_pl.analysis.complexity import ModuleCost, count_costs, group_by_depth
from resnet_pl.models import cifar_resnet


def total(model: nn.Module, size: int) -> ModuleCost:
    return reduce(add, count_costs(model, size))


def small(**kwargs: bool) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(**kwargs), nn.Flatten(), nn.Linear(144, 5)
    )


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("inplace", [True, False])
def test_counts_by_hand(device, inplace):
    # The linear layer's input is the ReLU's output: it is not counted twice. The image is not counted. BatchNorm saves
    # its input, and mean and standard deviation per channel for the batch of two.
    model = small(inplace=inplace).to(device)
    assert count_costs(model, 6) == [
        ModuleCost("", "Sequential", (5,)),
        ModuleCost("0", "Conv2d", (4, 6, 6), 4 * 2 * 9, 4 * 2 * 9 * 36),
        ModuleCost("1", "BatchNorm2d", (4, 6, 6), 8, 0, 4 * 36 * 4 + 2 * 4 * 4 // 2),
        ModuleCost("2", "ReLU", (4, 6, 6), 0, 0, 4 * 36 * 4),
        ModuleCost("3", "Flatten", (144,)),
        ModuleCost("4", "Linear", (5,), 144 * 5 + 5, 144 * 5),
    ]


class Twice(nn.Module):
    """Has one layer under two names, an unused layer, and a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(3, 3))
        self.first = self.second = nn.Conv2d(3, 3, 1, bias=False)
        self.unused = nn.Linear(3, 7)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.drop(self.second(self.first(x)).mean((2, 3)) @ self.gain)}


def test_a_shared_layer_counts_its_parameters_once_and_each_of_its_calls():
    own, first, unused, drop = count_costs(Twice(), 4)
    assert (own.name, own.shape, own.parameters, own.multiply_adds) == ("", (3,), 9, 9)
    assert (first.name, first.parameters, first.multiply_adds) == ("first", 9, 2 * 9 * 16)
    assert (unused.name, unused.shape, unused.parameters, unused.multiply_adds) == ("unused", None, 28, 0)
    assert drop.activations == 3 * 4, "the mask, which exists only in training"


class Nested(nn.Module):
    """Returns its tensor inside other containers."""

    def forward(self, x: Tensor) -> object:
        return [None, {"sizes": (1, 2), "features": OrderedDict(a=x[:, :1])}], x


def test_the_shape_is_that_of_the_first_tensor_in_the_output():
    assert count_costs(Nested(), 4)[0].shape == (1, 4, 4)
    assert count_costs(nn.Sequential(nn.Identity(), Nested()), 4)[0].shape == (1, 4, 4)


def test_deeper_modules_are_summed():
    layers = [
        ModuleCost("", "Model", (2,)),
        ModuleCost("a", "Sequential", (4,)),
        ModuleCost("a.0", "Linear", (4,), 1, 10, 100),
        ModuleCost("a.1", "Block", (4,), 2, 0, 0),
        ModuleCost("a.1.conv", "Conv2d", (4,), 3, 30, 300),
        ModuleCost("b", "Identity", (4,)),
        ModuleCost("c", "AvgPool2d", (4,)),
        ModuleCost("d", "Dropout"),
    ]
    pool = ModuleCost("c", "AvgPool2d", (4,))
    assert group_by_depth(layers, 1) == [ModuleCost("a", "Sequential", (4,), 6, 40, 400), pool]
    assert group_by_depth(layers, 2) == [layers[2], ModuleCost("a.1", "Block", (4,), 5, 30, 300), pool]
    assert group_by_depth(layers, 3) == [*layers[2:5], pool]


@pytest.mark.parametrize("name", ["vgg16", "vgg19", "vit_b_32", "mobilenet_v3_small", "squeezenet1_1"])
def test_counts_agree_with_torchvision(name):
    published = torchvision.models.get_model_weights(name).DEFAULT.meta
    with torch.device("meta"):
        counted = total(torchvision.models.get_model(name), 224)
    assert counted.parameters == published["num_params"]
    assert round(counted.multiply_adds / 1e9, 3) == published["_ops"]


@pytest.mark.parametrize(("name", "paper"), [("vgg16", 15.3), ("vgg19", 19.6)])
def test_vgg_counts_agree_with_the_paper(name, paper):
    with torch.device("meta"):
        assert total(torchvision.models.get_model(name), 224).multiply_adds / 1e9 == pytest.approx(paper, rel=0.02)


def test_with_activation_checkpointing_only_the_input_of_each_block_is_saved():
    with torch.device("meta"):
        costs = {on: total(cifar_resnet(20, checkpoint_activations=on), 32) for on in (False, True)}
    # Input of BatchNorm and output of ReLU for each of 7, 6 and 6 convolutions; mean and deviation per channel.
    maps = {channels: channels * (512 // channels) ** 2 * 4 for channels in (16, 32, 64)}
    convolutions = {16: 7, 32: 6, 64: 6}
    statistics = sum(2 * 4 * channels * n // 2 for channels, n in convolutions.items())
    assert costs[False].activations == sum(2 * maps[c] * n for c, n in convolutions.items()) + statistics + 64 * 4
    # The stem as before, whose output is the input of the first block, and the inputs of the other eight blocks.
    inputs = 3 * maps[16] + 3 * maps[32] + 2 * maps[64]
    assert costs[True].activations == 2 * maps[16] + 2 * 4 * 16 // 2 + inputs + 64 * 4
    assert costs[True].multiply_adds == costs[False].multiply_adds
