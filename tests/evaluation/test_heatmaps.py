"""Heat maps: they show where the evidence is, for any kind of network, and leave the model unchanged."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import ConvNeXt, DenseNet, EfficientNet, SwinTransformer, VisionTransformer
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.efficientnet import MBConvConfig

from resnet_pl import ImageClassifier, cifar_resnet
from resnet_pl.evaluation.features import find_feature_map
from resnet_pl.evaluation.heatmaps import describe_limits, heatmaps, overlay
from resnet_pl.models.heads import find_classifier
from resnet_pl.utils import UserError
from tests.tiny import classifier

captum = pytest.importorskip("captum.attr")


def two_layer_head() -> nn.Module:
    """A network like VGG: the map is flattened for a head with several layers."""
    features = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(inplace=True), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())
    head = nn.Sequential(nn.Flatten(), nn.Linear(16 * 64, 24), nn.ReLU(), nn.Linear(24, 5))
    return nn.Sequential(features, head)


def small_networks() -> dict[str, tuple[Callable[[], nn.Module], str]]:
    """Small networks of several families, and the layer of their last feature map."""
    norm = partial(nn.BatchNorm2d, eps=1e-3)
    swin = {"patch_size": [4, 4], "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": [4, 4]}
    vit = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
    blocks = [MBConvConfig(2, 3, 2, 8, 8, 1, 1.0, 1.0)]
    return {
        "resnet": (lambda: cifar_resnet(8, num_classes=5), "layer3"),
        "convnext": (
            lambda: ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], num_classes=5),
            "features",
        ),
        "efficientnet": (lambda: EfficientNet(blocks, 0.1, norm_layer=norm, num_classes=5), "features"),
        "densenet": (lambda: DenseNet(4, (1, 1), 8, num_classes=5), "features"),
        "vgg": (two_layer_head, "0"),
        "swin": (lambda: SwinTransformer(**swin, num_classes=5), "permute"),
        "vit": (lambda: VisionTransformer(**vit, num_classes=5), "encoder.layers.encoder_layer_1.ln_1"),
    }


@pytest.mark.parametrize("name", small_networks())
def test_the_last_feature_map_of_each_family_is_found(name: str) -> None:
    build, layer = small_networks()[name]
    torch.manual_seed(0)
    model = ImageClassifier(build(), num_classes=5)
    model.configure_model()
    find_classifier(model.backbone)[1].reset_parameters()  # torchvision's transformers start with zeros
    model.eval()
    assert find_feature_map(model, torch.rand(1, 3, 32, 32))[0] == layer
    assert bool(describe_limits(model.backbone)) == (name in ("swin", "vit"))
    maps = heatmaps(model, torch.randint(0, 256, (3, 3, 32, 32)).byte(), torch.tensor([0, 4, 2]))
    assert maps.shape == (3, 32, 32) and maps.dtype == torch.float32
    assert maps.min() >= 0 and all(each in (0, 1) for each in maps.amax((1, 2)).tolist()) and maps.any()


def test_the_map_of_a_resnet_is_grad_cam_and_a_layer_can_be_named() -> None:
    model = ready()
    images, classes = torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 2, 3])
    expected = captum.LayerGradCam(model, model.backbone.layer3).attribute(images, classes, relu_attributions=True)
    expected = nn.functional.interpolate(expected.detach(), (16, 16), mode="bilinear")[:, 0]
    expected = expected / expected.amax((1, 2), keepdim=True)
    torch.testing.assert_close(heatmaps(model, images, classes), expected)
    torch.testing.assert_close(heatmaps(model, images, classes, "layer3"), expected)
    assert not torch.equal(heatmaps(model, images, classes, "layer2"), expected)


def ready(**kwargs: Any) -> ImageClassifier:
    """A model in evaluation mode."""
    model = classifier(**kwargs)
    model.configure_model()
    return model.eval()


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_the_model_is_unchanged(mode: Callable[[], Any]) -> None:
    model = ready().train()
    model.backbone.requires_grad_(False).layer1.eval()
    modes = [module.training for module in model.modules()]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    with mode():
        images, classes = torch.rand(3, 3, 16, 16, generator=torch.Generator()), torch.tensor([1, 1, 0])
        before, enabled = images.clone(), torch.is_grad_enabled()
        maps = heatmaps(model, images, classes)
        assert torch.is_grad_enabled() == enabled and not images.requires_grad and torch.equal(images, before)
    assert maps.any() and not maps.requires_grad
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_the_maps_do_not_depend_on_the_memory_format_the_mode_or_autocast() -> None:
    images, classes = torch.rand(3, 3, 16, 16), torch.tensor([1, 2, 0])
    model, other = ready(), ready(channels_last=False)
    maps = heatmaps(model, images, classes)
    torch.testing.assert_close(heatmaps(other, images, classes), maps, atol=1e-4, rtol=1e-4)
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        model(images)
        assert torch.equal(heatmaps(model.train(), images, classes), maps)
    low = heatmaps(model.bfloat16(), images, classes)
    assert low.dtype == torch.float32 and (low - maps).abs().mean() < 0.05


def test_a_network_without_a_feature_map_and_unknown_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    images, classes = torch.rand(1, 3, 8, 8), torch.tensor([0])
    flat = ready(backbone=nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 4)))
    with pytest.raises(UserError, match="Sequential has no feature map"):
        heatmaps(flat, images, classes)
    with pytest.raises(UserError, match=r"layre3 is not a layer of the network\nuse one of layer3"):
        heatmaps(ready(), images, classes, "layre3")
    with pytest.raises(UserError, match=r"fc has no feature map\nuse one of "):
        heatmaps(ready(), images, classes, "fc")
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(UserError, match="a heat map needs the package captum"):
        heatmaps(ready(), images, classes)


def test_the_overlay_is_yellow_where_the_evidence_is() -> None:
    image = np.full((4, 4, 3), (200, 20, 80), np.uint8)
    heatmap = np.zeros((4, 4), np.float32)
    heatmap[0, 0] = 1
    shown = overlay(image, heatmap)
    assert shown.shape == image.shape and shown.dtype == np.uint8
    (red, green, blue), (_, other, _) = shown[0, 0].tolist(), shown[3, 3].tolist()
    assert min(red, green) > blue and green > 2 * other
