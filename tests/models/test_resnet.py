"""The nets against the paper's numbers, torchvision's nets and their own promises."""

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
    """A net of every kind of block position, quick to run."""
    kwargs = {"block": "basic", "layers": [2, 1, 1], "num_classes": 5, "width": 8, "stem": "cifar"} | kwargs
    torch.manual_seed(0)
    return ResNet(**kwargs)


def count(net: nn.Module, size: int) -> tuple[int, float]:
    """Parameters, and multiply-adds of one image of `size` pixels a side."""
    with FlopCounterMode(display=False) as flops:
        net(torch.empty(1, 3, size, size, device="meta"))
    return sum(p.numel() for p in net.parameters()), flops.get_total_flops() / 2


@pytest.mark.parametrize("name", DEPTHS)
def test_parameters_and_multiply_adds(name):
    for shortcut, (parameters, giga) in zip("ABC", IMAGENET[name], strict=True):
        with torch.device("meta"):
            counted = count(getattr(models, name)(shortcut=shortcut), 224)
        assert (counted[0], round(counted[1] / 1e9, 3)) == (parameters, giga), shortcut


@pytest.mark.parametrize(("name", "like"), [("plain18", "resnet18"), ("plain34", "resnet34")])
def test_plain_nets_cost_what_shortcut_a_costs(name, like):
    with torch.device("meta"):
        assert count(getattr(models, name)(), 224) == count(getattr(models, like)(shortcut="A"), 224)


@pytest.mark.parametrize(
    ("name", "exact", "paper"), [("resnet50", 3.858, 3.8), ("resnet101", 7.570, 7.6), ("resnet152", 11.282, 11.3)]
)
def test_v1_costs_what_the_paper_says(name, exact, paper):
    with torch.device("meta"):
        net = getattr(models, name)(variant="v1")
        parameters, multiply_adds = count(net, 224)
    assert parameters == IMAGENET[name][1][0]
    assert round(multiply_adds / 1e9, 3) == exact
    assert multiply_adds / 1e9 == pytest.approx(paper, rel=0.02)
    assert (net.layer2[0].conv1.stride, net.layer2[0].conv2.stride) == ((2, 2), (1, 1))


@pytest.mark.parametrize("name", DEPTHS)
def test_weights_pass_both_ways_with_torchvision(name):
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, name)()
    with torch.device("meta"):
        ours, back = getattr(models, name)(), getattr(torchvision.models, name)()
    ours.load_state_dict({k: v.clone() for k, v in theirs.state_dict().items()}, strict=True, assign=True)
    back.load_state_dict(ours.state_dict(), strict=True, assign=True)
    assert list(ours.state_dict()) == list(theirs.state_dict())

    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        logits = ours(images)
        assert logits.isfinite().all() and logits.std() > 0
        torch.testing.assert_close(logits, theirs(images), rtol=0, atol=0)
        # Both have now seen one batch, so that evaluation compares what BatchNorm remembers of it.
        torch.testing.assert_close(ours.eval()(images), theirs.eval()(images), rtol=0, atol=0)


def test_the_same_seed_starts_where_torchvision_starts():
    torch.manual_seed(3)
    theirs = torchvision.models.resnet18().state_dict()
    torch.manual_seed(3)
    for key, value in models.resnet18().state_dict().items():
        assert torch.equal(value, theirs[key]), key


def test_convolutions_start_as_he_says():
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
def test_each_shortcut_is_where_the_paper_puts_it(block, kinds):
    """`kinds`: identity or something more (pad, projection) for the four blocks, with A and B."""

    def classes(shortcut: str) -> list[type]:
        net = tiny(block=block, shortcut=shortcut)
        return [type(unit.downsample) for stage in (net.layer1, net.layer2, net.layer3) for unit in stage]

    grows = [kind == "P" for kind in kinds]
    assert classes("A") == [PadShortcut if g else nn.Identity for g in grows]
    assert classes("B") == [nn.Sequential if g else nn.Identity for g in grows]
    assert classes("C") == [nn.Sequential] * 4
    assert classes("none") == [type(None)] * 4


def test_where_the_zeros_go_changes_the_scores_and_nothing_else():
    both, end = tiny(shortcut="A"), tiny(shortcut="A", zero_pad="end")
    end.load_state_dict(both.state_dict(), strict=True)
    images = torch.randn(2, 3, 16, 16)
    assert not torch.allclose(both(images), end(images))


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_plain_nets_add_nothing(block):
    images = torch.randn(2, 3, 16, 16)
    zeros = {}
    for shortcut in ("A", "none"):
        net = tiny(block=block, shortcut=shortcut)
        for name, parameter in net.named_parameters():
            if "layer" in name:
                nn.init.zeros_(parameter)
        zeros[shortcut] = not net.forward_features(images)["layer3"].any()
    assert zeros == {"A": False, "none": True}


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_zero_init_residual_makes_a_block_its_shortcut(block):
    x = torch.randn(2, 8 if block == "basic" else 32, 6, 6)
    for zeroed in (True, False):
        unit = tiny(block=block, zero_init_residual=zeroed).layer1[1]
        assert torch.equal(unit(x), x.relu()) is zeroed
        *others, last = [norm.weight for norm in unit.modules() if isinstance(norm, nn.BatchNorm2d)]
        assert last.any().item() is not zeroed
        assert all((weight == 1).all() for weight in others)


@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
def test_forward_features_gives_every_stage(stem):
    net = tiny(layers=[1, 1, 1, 1], block="bottleneck", stem=stem, in_channels=1)
    images = torch.randn(2, 1, 65, 64)
    features = net.eval().forward_features(images)
    shrink = 4 if stem == "imagenet" else 1
    expected = {
        f"layer{i + 1}": (2, 32 * 2**i, math.ceil(65 / shrink / 2**i), math.ceil(64 / shrink / 2**i)) for i in range(4)
    }
    assert {name: tuple(stage.shape) for name, stage in features.items()} == expected
    assert list(features) == ["layer1", "layer2", "layer3", "layer4"]
    torch.testing.assert_close(net(images), net.fc(features["layer4"].mean((2, 3))))


def step(net: ResNet, run: nn.Module | None = None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss, and all gradients and buffers, after two training steps' forward and backward passes."""
    torch.manual_seed(1)
    run = net if run is None else run
    for _ in range(2):
        loss = run(torch.randn(4, 3, 16, 16)).square().mean()
        loss.backward()
    gradients = {f"{name}.grad": parameter.grad for name, parameter in net.named_parameters()}
    return loss, gradients | dict(net.named_buffers())


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("shortcut", ["A", "B", "none"])
def test_checkpointed_activations_change_no_number(block, shortcut):
    loss, state = step(tiny(block=block, shortcut=shortcut))
    again, state_again = step(tiny(block=block, shortcut=shortcut, checkpoint_activations=True))
    assert torch.equal(loss, again)
    for name, value in state.items():
        assert torch.equal(value, state_again[name]), name
    assert state_again["layer1.0.bn1.num_batches_tracked"] == 2


def test_checkpointed_activations_are_recomputed_in_training_only():
    net = tiny(checkpoint_activations=True)
    calls = []
    net.layer2[0].conv1.register_forward_hook(lambda *_: calls.append(1))
    net(torch.randn(2, 3, 8, 8)).sum().backward()
    assert len(calls) == 2
    net.eval()(torch.randn(2, 3, 8, 8)).sum().backward()
    assert len(calls) == 3


def test_checkpointed_activations_survive_compilation():
    loss, state = step(tiny(layers=[1, 1]))
    net = tiny(layers=[1, 1], checkpoint_activations=True)
    again, state_again = step(net, torch.compile(net, backend="aot_eager"))
    torch.testing.assert_close(again, loss)
    for name, value in state.items():
        torch.testing.assert_close(state_again[name], value, msg=name)


def test_init_args_name_the_same_net():
    net = tiny(block="bottleneck", layers=(1, 2), shortcut="C", variant="v1", in_channels=1, zero_pad="end")
    assert net.init_args["layers"] == [1, 2]
    assert all(isinstance(value, str | int | bool | list) for value in net.init_args.values())
    twin = ResNet(**net.init_args)
    twin.load_state_dict(net.state_dict(), strict=True)
    assert twin.init_args == net.init_args
    assert str(twin) == str(net)


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
def test_bad_arguments_are_named(argument, value, allowed):
    with pytest.raises(ValueError) as error:
        tiny(**{argument: value})
    message = str(error.value)
    assert message.startswith(f"{argument}={value!r}: expected") and allowed in message and "\n" not in message


def test_a_plain_net_cannot_start_at_zero():
    with pytest.raises(ValueError, match=r"zero_init_residual=True.*shortcut='none'"):
        tiny(shortcut="none", zero_init_residual=True)


def parse(*args: str) -> nn.Module:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--net", type=nn.Module)
    return parser.instantiate(parser.parse_args(args)).net


def test_yaml_can_name_the_class():
    options = ["--net.block=bottleneck", "--net.layers=[1,1]", "--net.shortcut=C", "--net.width=4"]
    net = parse("--net=resnet_pl.models.ResNet", *options)
    assert (net.init_args["block"], net.init_args["layers"], net.init_args["shortcut"]) == ("bottleneck", [1, 1], "C")


@pytest.mark.parametrize("name", [*DEPTHS, "plain18", "plain34", "cifar_resnet", "cifar_plain"])
def test_yaml_can_name_every_builder(name):
    with torch.device("meta"):
        net = parse(f"--net=resnet_pl.models.{name}", "--net.num_classes=7", "--net.checkpoint_activations=true")
    assert isinstance(net, ResNet)
    assert net.fc.out_features == 7 and net.checkpoint_activations
    assert net.init_args["shortcut"] == ("none" if "plain" in name else "A" if "cifar" in name else "B")
    assert net.init_args["zero_init_residual"] is False, "the paper starts every BatchNorm at one"


def test_yaml_refuses_what_a_builder_does_not_take():
    with pytest.raises(Exception, match="shortcut"):
        parse("--net=resnet_pl.models.resnet18", "--net.shortcut=Z")
    with pytest.raises(Exception, match="layers"):
        parse("--net=resnet_pl.models.resnet18", "--net.layers=[1]")


def test_help_lists_the_arguments(capsys):
    with pytest.raises(SystemExit):
        parse("--net.help=resnet_pl.models.ResNet")
    shown = " ".join(capsys.readouterr().out.split())
    assert "--net.shortcut {A,B,C,none}" in shown
    assert "zero-padded identity" in shown
