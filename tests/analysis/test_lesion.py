"""Which blocks are deleted, what remains of them, and which sets of blocks are chosen; the command: test_studies.py."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18 as torchvision_resnet18

from resnet_pl.analysis.lesion import choose, removable_blocks, without
from resnet_pl.models import ResNet, cifar_plain, cifar_resnet, plain34, resnet50

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
BLOCKS = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(3)]


@torch.no_grad()
def features(network: ResNet, deleted: list[str]) -> Tensor:
    """The output of the last stage, computed block by block."""
    x = network.maxpool(network.relu(network.bn1(network.conv1(IMAGES))))
    for stage in range(1, len(network.init_args["layers"]) + 1):
        for index, block in enumerate(network.get_submodule(f"layer{stage}")):
            if f"layer{stage}.{index}" not in deleted:
                x = block(x)
            elif network.init_args["shortcut"] != "none":
                x = block.downsample(x).relu()
    return x


@pytest.mark.parametrize(
    ("network", "deleted"),
    [
        (cifar_resnet(20), ["layer2.0"]),  # a shortcut that subsamples and pads
        (cifar_resnet(20, shortcut="C"), ["layer1.1", "layer3.0"]),  # projections, which can be negative
        (resnet50(width=8), ["layer1.0", "layer4.2"]),
        (cifar_plain(20), ["layer1.0", "layer3.2"]),
    ],
    ids=["A", "C", "bottleneck", "plain"],
)
def test_a_deleted_block_is_its_shortcut(network: ResNet, deleted: list[str]) -> None:
    network.eval()
    rests, _ = removable_blocks(network)
    complete = network.forward_features(IMAGES)
    with torch.no_grad(), without(network, {name: rests[name] for name in deleted}):
        *_, without_blocks = network.forward_features(IMAGES).values()
    assert torch.equal(without_blocks, features(network, deleted))
    *_, last = complete.values()
    assert not torch.allclose(without_blocks, last)
    *_, again = network.forward_features(IMAGES).values()
    assert torch.equal(again, last)


def test_blocks_come_back_after_an_error() -> None:
    network = cifar_resnet(8).eval()
    before = list(network.modules())
    rests, _ = removable_blocks(network)
    with pytest.raises(RuntimeError), without(network, rests):
        network(IMAGES[:, :2])
    assert list(network.modules()) == before


def test_plain_blocks_that_change_the_dimensions_are_kept() -> None:
    rests, kept = removable_blocks(cifar_plain(20))
    assert kept == ["layer2.0", "layer3.0"] and list(rests) == [name for name in BLOCKS if name not in kept]
    assert removable_blocks(plain34())[1] == ["layer2.0", "layer3.0", "layer4.0"]
    assert removable_blocks(cifar_resnet(20))[1] == [] and list(removable_blocks(cifar_resnet(20))[0]) == BLOCKS
    assert removable_blocks(nn.Conv2d(3, 3, 3)) == ({}, [])


def test_blocks_of_torchvision() -> None:
    network = torchvision_resnet18().eval()
    rests, kept = removable_blocks(network)
    assert len(rests) == 8 and not kept
    with torch.no_grad():
        x = network.maxpool(network.relu(network.bn1(network.conv1(IMAGES))))
        expected = network.layer4[1](
            network.layer4[0].downsample(network.layer3(network.layer2(network.layer1(x)))).relu()
        )
        with without(network, {"layer4.0": rests["layer4.0"]}):
            seen = []
            network.avgpool.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
            network(IMAGES)
    assert torch.equal(seen[0], expected)


def test_the_choice_of_blocks() -> None:
    chosen = choose(BLOCKS, [3, 1, 8, 30], draws=12, seed=0)
    assert chosen[:10] == [(), *((name,) for name in BLOCKS)]
    threes, eights = chosen[10:22], chosen[22:]
    assert len(set(threes)) == 12 and set(threes) < set(combinations(BLOCKS, 3))
    assert eights == list(combinations(BLOCKS, 8))  # only nine: all of them
    assert choose(BLOCKS, [2, 3], draws=12, seed=0)[22:] == threes  # other sizes change nothing
    assert choose(BLOCKS, [3], draws=12, seed=1)[10:] != threes
