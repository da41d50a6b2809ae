"""Parameters, cost and arguments of the CIFAR networks, compared with the paper."""

import pytest
import torch
from torch import nn

from resnet_pl.models import cifar_plain, cifar_resnet
from tests.models.test_resnet import count

# Parameters and multiply-adds (10^6, 32 px) with shortcuts A, B and C; number of digits.
CIFAR = {
    20: ([(269_722, 40.55), (272_474, 40.81), (283_962, 42.65)], 2),
    32: ([(464_154, 68.86), (466_906, 69.12), (489_594, 72.53)], 2),
    44: ([(658_586, 97.17), (661_338, 97.44), (695_226, 102.42)], 2),
    56: ([(853_018, 125.49), (855_770, 125.75), (900_858, 132.30)], 2),
    110: ([(1_727_962, 252.89), (1_730_714, 253.15), (1_826_202, 266.78)], 2),
    1202: ([(19_421_274, 2829.2), (19_424_026, 2829.5), (20_538_714, 2986.3)], 1),
}


@pytest.mark.parametrize(
    "depth", [pytest.param(depth, marks=[pytest.mark.slow] if depth == 1202 else []) for depth in CIFAR]
)
def test_parameters_and_multiply_adds(depth):
    rows, digits = CIFAR[depth]
    for shortcut, (parameters, mega) in zip("ABC", rows, strict=True):
        with torch.device("meta"):
            result = count(cifar_resnet(depth, shortcut=shortcut), 32)
        assert (result[0], round(result[1] / 1e6, digits)) == (parameters, mega), shortcut


def test_plain_networks_cost_as_much_as_shortcut_a():
    with torch.device("meta"):
        assert count(cifar_plain(56), 32) == count(cifar_resnet(56), 32)


@pytest.mark.parametrize("depth", [8, 20, 110])
def test_depth_is_the_number_of_layers_with_weights(depth):
    with torch.device("meta"):
        layers = [m for m in cifar_resnet(depth).modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == depth


@pytest.mark.parametrize(
    ("depth", "nearest"),
    [(18, "14 and 20"), (21, "20 and 26"), (1200, "1196 and 1202"), (2, "8 and 14"), (-5, "8 and 14")],
)
@pytest.mark.parametrize("build", [cifar_resnet, cifar_plain])
def test_the_message_names_the_nearest_depths(build, depth, nearest):
    with pytest.raises(ValueError, match=f"^depth={depth}: .*nearest are {nearest}$"):
        build(depth)


def test_stages_have_the_sizes_of_the_paper():
    features = cifar_resnet(8).forward_features(torch.randn(2, 3, 32, 32))
    assert [tuple(f.shape) for f in features.values()] == [(2, 16, 32, 32), (2, 32, 16, 16), (2, 64, 8, 8)]
    assert list(features) == ["layer1", "layer2", "layer3"]


def test_arguments_are_passed_on():
    model = cifar_resnet(14, 7, 1, "B", "end", True, True)
    assert model(torch.randn(2, 1, 28, 28)).shape == (2, 7)
    arguments = {"shortcut": "B", "zero_pad": "end", "zero_init_residual": True, "checkpoint_activations": True}
    assert model.init_args == model.init_args | arguments | {"layers": [2, 2, 2], "width": 16, "stem": "cifar"}
    assert cifar_plain(8, checkpoint_activations=True).init_args["shortcut"] == "none"
