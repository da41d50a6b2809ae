"""Standard deviation of the response of each 3×3 layer."""

import pytest
import torch
import torchvision
from torch import Tensor, nn

from resnet_pl.analysis.responses import response_stds
from resnet_pl.models import cifar_plain, cifar_resnet, resnet50

NOISE = torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def randomize_batch_norm(model: nn.Module) -> nn.Module:
    """Gives every BatchNorm random scales, shifts and statistics."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, low in ((module.weight, 0.5), (module.bias, -0.5), (module.running_var, 0.5)):
                values.data = low + torch.rand(values.shape, generator=generator)
    return model.eval()


def test_known_deviations() -> None:
    # The convolution copies images of -1 and 1, and BatchNorm is initially the identity.
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, bias=False), nn.BatchNorm2d(2, eps=0), nn.ReLU(inplace=True))
    model[0].weight.data.zero_()[:, 0, 1, 1] = 1
    model[1].weight.data, model[1].bias.data = torch.tensor([2.0, 4.0]), torch.tensor([3.0, 3.0])
    images = torch.ones(6, 1, 4, 4)
    images[::2] = -1
    # Before the ReLU: 3 ± 2 and 3 ± 4, equally often.
    assert response_stds(model.eval(), images.split(4), model) == {"0": pytest.approx(10**0.5, rel=1e-12)}
    model[1].weight.data.zero_()
    assert response_stds(model, [images], model) == {"0": 0.0}
    model[1].bias.data = torch.tensor([1.0, 5.0])
    assert response_stds(model, [images], model) == {"0": 2.0}


@pytest.mark.parametrize("build", [cifar_resnet, cifar_plain])
def test_the_deviation_over_all_images_does_not_depend_on_the_batch_size(build) -> None:
    model = randomize_batch_norm(build(8))
    outputs: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if name.rsplit(".", 1)[-1] in ("bn1", "bn2"):
            module.register_forward_hook(lambda m, i, output, name=name: outputs.update({name: output.clone()}))
    with torch.no_grad():
        model(NOISE)
    direct = {name.replace("bn", "conv"): float(out.double().std(correction=0)) for name, out in outputs.items()}
    at_once = response_stds(model, [NOISE], model)
    assert list(at_once) == list(direct) and len(set(direct.values())) == 7
    assert at_once == pytest.approx(direct, rel=1e-12)
    for size in (1, 5):
        # Only the float32 rounding inside the layers depends on the batch size.
        assert response_stds(model, NOISE.split(size), model) == pytest.approx(direct, rel=1e-6)


def test_a_large_mean_does_not_reduce_the_precision() -> None:
    model = randomize_batch_norm(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    before = response_stds(model, [NOISE], model)["0"]
    model[1].bias.data += 1024
    shifted = response_stds(model, NOISE.split(1), model)["0"]
    # The spacing of float32 at 1024 is 2^-13; the deviation of many rounded values is much more precise.
    assert shifted == pytest.approx(before, abs=2**-13)


def test_which_layers_are_measured() -> None:
    small = response_stds(cifar_resnet(20).eval(), [NOISE[:1]], nn.Identity())
    assert small == {}
    model = cifar_resnet(20).eval()
    blocks = [f"layer{stage}.{block}.conv{i}" for stage in (1, 2, 3) for block in range(3) for i in (1, 2)]
    assert list(response_stds(model, [NOISE[:1]], model)) == ["conv1", *blocks]
    # Not the 7×7 stem, the 1×1 convolutions and the projections.
    model = resnet50(width=8).eval()
    counts = zip((1, 2, 3, 4), (3, 4, 6, 3), strict=True)
    names = [f"layer{stage}.{block}.conv2" for stage, count in counts for block in range(count)]
    assert list(response_stds(model, [torch.zeros(1, 3, 64, 64)], model)) == names


def test_other_models_are_measured_if_batch_norm_follows_the_convolution() -> None:
    vgg = torchvision.models.vgg11_bn(init_weights=False).features.eval()
    convolutions = [str(i) for i, module in enumerate(vgg) if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 8 and list(response_stds(vgg, [torch.zeros(1, 3, 32, 32)], vgg)) == convolutions
    # A ReLU between convolution and BatchNorm, and a convolution without BatchNorm.
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.ReLU()).eval()
    assert response_stds(other, [NOISE], other) == {}


def test_the_model_is_not_changed_even_after_an_error() -> None:
    model = cifar_resnet(8).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = response_stds(model, [NOISE], model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    with pytest.raises(RuntimeError):
        response_stds(model, [NOISE[:, :2]], model)
    # A remaining hook would mark the outputs of later calls.
    outputs = []
    model.conv1.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    with torch.no_grad():
        model(NOISE)
    assert not hasattr(outputs[0], "convolution")
    assert response_stds(model, [NOISE], model) == first
