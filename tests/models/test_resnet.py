"""ResNets compared with the paper and with torchvision; their arguments and options."""

import math
from typing import Any

import pytest
import torch
import torchvision
from jsonargparse import ArgumentParser
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from resnet_pl import models
from resnet_pl.models.resnet import PadShortcut, ResNet

# Parameters and multiply-adds (10^9, 224 px) with shortcuts A, B and C.
IMAGENET = {
    "resnet18": [(11_515_688, 1.795), (11_689_512, 1.814), (12_043_816, 1.878)],
    "resnet34": [(21_623_848, 3.644), (21_797_672, 3.664), (22_716_840, 3.831)],
    "resnet50": [(22_780_456, 3.730), (25_557_032, 4.089), (40_128_552, 6.555)],
    "resnet101": [(41_772_584, 7.442), (44_549_160, 7.801), (76_981_288, 13.762)],
    "resnet152": [(57_416_232, 11.154), (60_192_808, 11.514), (107_335_720, 20.968)],
}
DEPTHS = list(IMAGENET)


def tiny(**kwargs: Any) -> ResNet:
    """Returns a small network with every kind of block position."""
    kwargs = {"block": "basic", "layers": [2, 1, 1], "num_classes": 5, "width": 8, "stem": "cifar"} | kwargs
    torch.manual_seed(0)
    return ResNet(**kwargs)


def count(model: nn.Module, size: int) -> tuple[int, float]:
    """Returns the number of parameters, and of multiply-adds for one image of `size` × `size` pixels."""
    with torch.inference_mode(), FlopCounterMode(display=False) as flops:
        model.eval()(torch.empty(1, 3, size, size, device="meta"))
    return sum(p.numel() for p in model.parameters()), flops.get_total_flops() / 2


@pytest.mark.parametrize("name", DEPTHS)
def test_parameters_and_multiply_adds(name):
    for shortcut, (parameters, giga) in zip("ABC", IMAGENET[name], strict=True):
        with torch.device("meta"):
            result = count(getattr(models, name)(shortcut=shortcut), 224)
        assert (result[0], round(result[1] / 1e9, 3)) == (parameters, giga), shortcut


@pytest.mark.parametrize(("name", "residual"), [("plain18", "resnet18"), ("plain34", "resnet34")])
def test_plain_networks_cost_as_much_as_shortcut_a(name, residual):
    with torch.device("meta"):
        assert count(getattr(models, name)(), 224) == count(getattr(models, residual)(shortcut="A"), 224)


@pytest.mark.parametrize(
    ("name", "exact", "paper"), [("resnet50", 3.858, 3.8), ("resnet101", 7.570, 7.6), ("resnet152", 11.282, 11.3)]
)
def test_v1_has_the_cost_of_the_paper(name, exact, paper):
    with torch.device("meta"):
        model = getattr(models, name)(variant="v1")
        parameters, multiply_adds = count(model, 224)
    assert parameters == IMAGENET[name][1][0]
    assert round(multiply_adds / 1e9, 3) == exact
    assert multiply_adds / 1e9 == pytest.approx(paper, rel=0.02)
    assert (model.layer2[0].conv1.stride, model.layer2[0].conv2.stride) == ((2, 2), (1, 1))


# The deeper ones have more of the same blocks.
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in ("resnet18", "resnet50") else pytest.mark.slow) for name in DEPTHS]
)
def test_state_dicts_are_exchangeable_with_torchvision(name):
    torch.manual_seed(0)
    torchvision_model = getattr(torchvision.models, name)()
    with torch.device("meta"):
        model, copy = getattr(models, name)(), getattr(torchvision.models, name)()
    model.load_state_dict({k: v.clone() for k, v in torchvision_model.state_dict().items()}, strict=True, assign=True)
    copy.load_state_dict(model.state_dict(), strict=True, assign=True)
    assert list(model.state_dict()) == list(torchvision_model.state_dict())

    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        logits = model(images)
        assert logits.isfinite().all() and logits.std() > 0
        torch.testing.assert_close(logits, torchvision_model(images), rtol=0, atol=0)
        # Evaluation after one batch in training mode compares the running statistics of BatchNorm.
        torch.testing.assert_close(model.eval()(images), torchvision_model.eval()(images), rtol=0, atol=0)


def test_initialization_is_that_of_torchvision():
    torch.manual_seed(3)
    torchvision_model = torchvision.models.resnet18().state_dict()
    torch.manual_seed(3)
    for key, value in models.resnet18().state_dict().items():
        assert torch.equal(value, torchvision_model[key]), key


def test_he_initialization():
    for name, module in tiny(layers=[2, 2, 2, 2], width=32, stem="imagenet").named_modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * math.prod(module.kernel_size)
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.08), name
            assert module.bias is None, name


@pytest.mark.parametrize(("zero_pad", "first"), [("both", 3), ("end", 0)])
def test_shortcut_a_subsamples_and_pads_with_zeros(zero_pad, first):
    x = torch.randn(2, 4, 5, 5)
    out = PadShortcut(4, 10, 2, zero_pad)(x)
    assert out.shape == (2, 10, 3, 3)
    assert torch.equal(out[:, first : first + 4], x[:, :, ::2, ::2])
    assert out.count_nonzero() == 2 * 4 * 3 * 3


@pytest.mark.parametrize(("block", "kinds"), [("basic", "IIPP"), ("bottleneck", "PIPP")])
def test_shortcuts_are_those_of_the_paper(block, kinds):
    """`kinds`: identity (I), or padding or projection (P), for the four blocks, with shortcuts A and B."""

    def classes(shortcut: str) -> list[type]:
        model = tiny(block=block, shortcut=shortcut)
        return [
            type(block_module.downsample)
            for stage in (model.layer1, model.layer2, model.layer3)
            for block_module in stage
        ]

    dimensions_change = [kind == "P" for kind in kinds]
    assert classes("A") == [PadShortcut if g else nn.Identity for g in dimensions_change]
    assert classes("B") == [nn.Sequential if g else nn.Identity for g in dimensions_change]
    assert classes("C") == [nn.Sequential] * 4
    assert classes("none") == [type(None)] * 4


def test_the_position_of_the_zeros_changes_the_logits_only():
    both, end = tiny(shortcut="A"), tiny(shortcut="A", zero_pad="end")
    end.load_state_dict(both.state_dict(), strict=True)
    images = torch.randn(2, 3, 16, 16)
    assert not torch.allclose(both(images), end(images))


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_plain_networks_have_no_addition(block):
    images = torch.randn(2, 3, 16, 16)
    zeros = {}
    for shortcut in ("A", "none"):
        model = tiny(block=block, shortcut=shortcut)
        for name, parameter in model.named_parameters():
            if "layer" in name:
                nn.init.zeros_(parameter)
        zeros[shortcut] = not model.forward_features(images)["layer3"].any()
    assert zeros == {"A": False, "none": True}


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_zero_init_residual_makes_a_block_its_shortcut(block):
    x = torch.randn(2, 8 if block == "basic" else 32, 6, 6)
    for zero_init in (True, False):
        block_module = tiny(block=block, zero_init_residual=zero_init).layer1[1]
        assert torch.equal(block_module(x), x.relu()) is zero_init
        *others, last = [norm.weight for norm in block_module.modules() if isinstance(norm, nn.BatchNorm2d)]
        assert last.any().item() is not zero_init
        assert all((weight == 1).all() for weight in others)


@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
def test_forward_features_returns_every_stage(stem):
    model = tiny(layers=[1, 1, 1, 1], block="bottleneck", stem=stem, in_channels=1)
    images = torch.randn(2, 1, 65, 64)
    features = model.eval().forward_features(images)
    stem_stride = 4 if stem == "imagenet" else 1
    expected = {
        f"layer{i + 1}": (2, 32 * 2**i, math.ceil(65 / stem_stride / 2**i), math.ceil(64 / stem_stride / 2**i))
        for i in range(4)
    }
    assert {name: tuple(stage.shape) for name, stage in features.items()} == expected
    assert list(features) == ["layer1", "layer2", "layer3", "layer4"]
    torch.testing.assert_close(model(images), model.fc(features["layer4"].mean((2, 3))))


def train_two_steps(model: ResNet, forward: nn.Module | None = None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Returns the loss, gradients and buffers after two forward and backward passes in training mode."""
    torch.manual_seed(1)
    forward = model if forward is None else forward
    for _ in range(2):
        loss = forward(torch.randn(4, 3, 16, 16)).square().mean()
        loss.backward()
    gradients = {f"{name}.grad": parameter.grad for name, parameter in model.named_parameters()}
    return loss, gradients | dict(model.named_buffers())


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("shortcut", ["A", "B", "none"])
def test_activation_checkpointing_gives_the_same_numbers(block, shortcut):
    loss, state = train_two_steps(tiny(block=block, shortcut=shortcut))
    loss_again, state_again = train_two_steps(tiny(block=block, shortcut=shortcut, checkpoint_activations=True))
    assert torch.equal(loss, loss_again)
    for name, value in state.items():
        assert torch.equal(value, state_again[name]), name
    assert state_again["layer1.0.bn1.num_batches_tracked"] == 2


def test_activations_are_recomputed_in_training_only():
    model = tiny(checkpoint_activations=True)
    calls = []
    model.layer2[0].conv1.register_forward_hook(lambda *_: calls.append(1))
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    assert len(calls) == 2
    model.eval()(torch.randn(2, 3, 8, 8)).sum().backward()
    assert len(calls) == 3


@pytest.mark.slow
def test_activation_checkpointing_works_with_compilation():
    loss, state = train_two_steps(tiny(layers=[1, 1]))
    model = tiny(layers=[1, 1], checkpoint_activations=True)
    loss_again, state_again = train_two_steps(model, torch.compile(model, backend="aot_eager"))
    torch.testing.assert_close(loss_again, loss)
    for name, value in state.items():
        torch.testing.assert_close(state_again[name], value, msg=name)


def test_init_args_rebuild_the_same_model():
    model = tiny(block="bottleneck", layers=(1, 2), shortcut="C", variant="v1", in_channels=1, zero_pad="end")
    assert model.init_args["layers"] == [1, 2]
    assert all(isinstance(value, str | int | bool | list) for value in model.init_args.values())
    twin = ResNet(**model.init_args)
    twin.load_state_dict(model.state_dict(), strict=True)
    assert twin.init_args == model.init_args
    assert str(twin) == str(model)


@pytest.mark.parametrize(
    ("argument", "value", "allowed"),
    [
        ("block", "wide", "basic, bottleneck"),
        ("shortcut", "D", "A, B, C, none"),
        ("variant", "v2", "v1, v1.5"),
        ("stem", "mnist", "imagenet, cifar"),
        ("zero_pad", "start", "both, end"),
        ("num_classes", 0, "1 or more"),
        ("in_channels", 0, "1 or more"),
        ("width", -4, "1 or more"),
        ("layers", [2, 0], "1 or more"),
        ("layers", [], "1 or more"),
    ],
)
def test_invalid_arguments_are_named(argument, value, allowed):
    with pytest.raises(ValueError) as error:
        tiny(**{argument: value})
    message = str(error.value)
    assert message.startswith(f"{argument}={value!r}: expected") and allowed in message and "\n" not in message


def test_a_plain_network_cannot_use_zero_init_residual():
    with pytest.raises(ValueError, match=r"zero_init_residual=True.*shortcut='none'"):
        tiny(shortcut="none", zero_init_residual=True)


def parse(*args: str) -> nn.Module:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--model", type=nn.Module)
    return parser.instantiate(parser.parse_args(args)).model


def test_yaml_can_name_the_class():
    options = ["--model.block=bottleneck", "--model.layers=[1,1]", "--model.shortcut=C", "--model.width=4"]
    model = parse("--model=resnet_pl.models.ResNet", *options)
    assert (model.init_args["block"], model.init_args["layers"], model.init_args["shortcut"]) == (
        "bottleneck",
        [1, 1],
        "C",
    )


@pytest.mark.parametrize("name", [*DEPTHS, "plain18", "plain34", "cifar_resnet", "cifar_plain"])
def test_yaml_can_name_every_builder(name):
    with torch.device("meta"):
        model = parse(
            f"--model=resnet_pl.models.{name}", "--model.num_classes=7", "--model.checkpoint_activations=true"
        )
    assert isinstance(model, ResNet)
    assert model.fc.out_features == 7 and model.checkpoint_activations
    assert model.init_args["shortcut"] == ("none" if "plain" in name else "A" if "cifar" in name else "B")
    assert model.init_args["zero_init_residual"] is False, "the paper initializes every BatchNorm weight to 1"


def test_yaml_refuses_unknown_arguments_of_a_builder():
    with pytest.raises(Exception, match="shortcut"):
        parse("--model=resnet_pl.models.resnet18", "--model.shortcut=Z")
    with pytest.raises(Exception, match="layers"):
        parse("--model=resnet_pl.models.resnet18", "--model.layers=[1]")


def test_help_lists_the_arguments(capsys):
    with pytest.raises(SystemExit):
        parse("--model.help=resnet_pl.models.ResNet")
    text = " ".join(capsys.readouterr().out.split())
    assert "--model.shortcut {A,B,C,none}" in text
    assert "zero-padded identity" in text
