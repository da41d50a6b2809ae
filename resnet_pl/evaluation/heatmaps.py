"""Heat maps: which parts of an image increase the score of a class (Grad-CAM, arXiv:1610.02391)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from resnet_pl.evaluation.features import Grid, find_feature_map
from resnet_pl.utils import require

if TYPE_CHECKING:
    from resnet_pl.classifier import ImageClassifier


def heatmaps(model: ImageClassifier, inputs: Tensor, classes: Tensor, layer: str | None = None) -> Tensor:
    """Returns the Grad-CAM heat maps of images: the evidence for one class, at the resolution of the last feature map.

    The model runs in evaluation mode and without autocast. Its modes, gradients and hooks are the same afterwards. No
    other thread may use the model at the same time.

    Args:
        model: any module with a `backbone`, such as `ImageClassifier`.
        inputs: images as the model takes them, `(N, C, H, W)`, uint8 or float in [0, 1], on the device of the model.
        classes: index of the class of each image whose evidence is shown, `(N,)`.
        layer: name of a layer of the backbone, such as `layer3`; by default the last one with a feature map.

    Returns:
        `(N, H, W)` float32 in [0, 1]: 1 at the maximum of each image; all 0 if nothing in the image is evidence.

    Raises:
        UserError: captum is not installed, the network has no feature map, or there is no such layer.
    """
    grad_cam: Any = require("captum.attr", "explain", "a heat map").LayerGradCam
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.inference_mode(False), torch.autocast(inputs.device.type, enabled=False):
            # Copies: tensors of the Trainer's inference mode cannot take part in a backward pass.
            images = inputs.float() / 255 if inputs.dtype == torch.uint8 else inputs.detach().clone()
            found = find_feature_map(model, images[:1].clone(), layer)
            maps = _attribute(grad_cam, model, *found, images, classes.clone())
    finally:
        for module in training:
            module.training = True
    maps = interpolate(maps.float(), size=inputs.shape[-2:], mode="bilinear").squeeze(1)
    return maps / maps.amax((1, 2), keepdim=True).clamp(min=torch.finfo().tiny)


def _attribute(
    grad_cam: Any, model: ImageClassifier, layer: str, grid: Grid, images: Tensor, classes: Tensor
) -> Tensor:
    """Returns the heat maps `(N, 1, h, w)` of a layer."""
    features = nn.Identity()  # its output is a map (N, C, h, w), as captum takes it, for any layout of the layer

    def insert(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        if output.ndim != len(grid.layout):  # another call of the same layer
            return output
        torch.set_grad_enabled(True)  # until `forward` returns: the layers before this one need no gradients
        return grid.from_map(features(grid.to_map(output)), output)

    def forward(images: Tensor) -> Tensor:
        with torch.no_grad():
            return model(images)

    handle = model.backbone.get_submodule(layer).register_forward_hook(insert)
    try:
        return grad_cam(forward, features).attribute(images, classes, relu_attributions=True).detach()
    finally:
        handle.remove()


def overlay(image: np.ndarray, heatmap: np.ndarray) -> np.ndarray:
    """Returns an image in gray under its heat map, from violet (no evidence) to yellow (most evidence).

    Args:
        image: `(H, W, 3)` uint8.
        heatmap: `(H, W)` in [0, 1].

    Returns:
        `(H, W, 3)` uint8.
    """
    from matplotlib import colormaps

    gray = image.mean(2, keepdims=True)  # the colors of the image would be mistaken for those of the map
    colors, share = colormaps["inferno"](heatmap)[..., :3] * 255, 0.4 + 0.3 * heatmap[..., None]
    return (gray * (1 - share) + colors * share).round().astype(np.uint8)
