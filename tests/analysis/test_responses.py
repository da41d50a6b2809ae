"""The standard deviation of each 3×3 layer's response."""

import pytest
import torch
import torchvision
from torch import Tensor, nn

from resnet_pl.analysis.responses import response_stds
from resnet_pl.models import cifar_plain, cifar_resnet, resnet50

NOISE = torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def trained_a_little(net: nn.Module) -> nn.Module:
    """Gives every BatchNorm scales, shifts and statistics of its own."""
    generator = torch.Generator().manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, low in ((module.weight, 0.5), (module.bias, -0.5), (module.running_var, 0.5)):
                values.data = low + torch.rand(values.shape, generator=generator)
    return net.eval()


def test_known_deviations() -> None:
    # A convolution that copies images of -1 and 1; a new BatchNorm takes them as they are.
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, bias=False), nn.BatchNorm2d(2, eps=0), nn.ReLU(inplace=True))
    net[0].weight.data.zero_()[:, 0, 1, 1] = 1
    net[1].weight.data, net[1].bias.data = torch.tensor([2.0, 4.0]), torch.tensor([3.0, 3.0])
    images = torch.ones(6, 1, 4, 4)
    images[::2] = -1
    # ±2 and ±4 about 3 in equal numbers, before the ReLU.
    assert response_stds(net.eval(), images.split(4), net) == {"0": pytest.approx(10**0.5, rel=1e-12)}
    net[1].weight.data.zero_()
    assert response_stds(net, [images], net) == {"0": 0.0}
    net[1].bias.data = torch.tensor([1.0, 5.0])
    assert response_stds(net, [images], net) == {"0": 2.0}


@pytest.mark.parametrize("build", [cifar_resnet, cifar_plain])
def test_any_batch_size_gives_the_deviation_over_all_images(build) -> None:
    net = trained_a_little(build(8))
    outputs: dict[str, Tensor] = {}
    for name, module in net.named_modules():
        if name.rsplit(".", 1)[-1] in ("bn1", "bn2"):
            module.register_forward_hook(lambda m, i, output, name=name: outputs.update({name: output.clone()}))
    with torch.no_grad():
        net(NOISE)
    direct = {name.replace("bn", "conv"): float(out.double().std(correction=0)) for name, out in outputs.items()}
    whole = response_stds(net, [NOISE], net)
    assert list(whole) == list(direct) and len(set(direct.values())) == 7
    assert whole == pytest.approx(direct, rel=1e-12)
    for size in (1, 5):
        # The layers' own float32 rounding alone depends on the batch.
        assert response_stds(net, NOISE.split(size), net) == pytest.approx(direct, rel=1e-6)


def test_a_great_mean_costs_no_digits() -> None:
    net = trained_a_little(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    before = response_stds(net, [NOISE], net)["0"]
    net[1].bias.data += 1024
    shifted = response_stds(net, NOISE.split(1), net)["0"]
    # float32 near 1024 has steps of 2^-13; the deviation of so many rounded values is far more exact than that.
    assert shifted == pytest.approx(before, abs=2**-13)


def test_which_layers_are_measured() -> None:
    small = response_stds(cifar_resnet(20).eval(), [NOISE[:1]], nn.Identity())
    assert small == {}
    net = cifar_resnet(20).eval()
    blocks = [f"layer{stage}.{block}.conv{i}" for stage in (1, 2, 3) for block in range(3) for i in (1, 2)]
    assert list(response_stds(net, [NOISE[:1]], net)) == ["conv1", *blocks]
    # The 7×7 stem, the 1×1 convolutions and the projections are none.
    net = resnet50(width=8).eval()
    counts = zip((1, 2, 3, 4), (3, 4, 6, 3), strict=True)
    names = [f"layer{stage}.{block}.conv2" for stage, count in counts for block in range(count)]
    assert list(response_stds(net, [torch.zeros(1, 3, 64, 64)], net)) == names


def test_other_nets_are_measured_by_what_follows_what() -> None:
    vgg = torchvision.models.vgg11_bn(init_weights=False).features.eval()
    convolutions = [str(i) for i, module in enumerate(vgg) if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 8 and list(response_stds(vgg, [torch.zeros(1, 3, 32, 32)], vgg)) == convolutions
    # Something between the two, or no BatchNorm at all.
    apart = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.ReLU()).eval()
    assert response_stds(apart, [NOISE], apart) == {}


def test_nothing_is_left_behind() -> None:
    net = cifar_resnet(8).eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    response_stds(net, [NOISE], net)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert not any(module._forward_hooks for module in net.modules())
    with pytest.raises(RuntimeError):
        response_stds(net, [NOISE[:, :2]], net)
    assert not any(module._forward_hooks for module in net.modules())
