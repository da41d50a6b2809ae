"""Heat maps: which parts of an image increase the score of a class (a variant of Grad-CAM, arXiv:2011.08891)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from resnet_pl.evaluation.features import find_feature_map
from resnet_pl.utils import require

if TYPE_CHECKING:
    from resnet_pl.classifier import ImageClassifier


def heatmaps(model: ImageClassifier, inputs: Tensor, classes: Tensor, layer: str | None = None) -> Tensor:
    """Returns heat maps of images: the evidence for one class, at the resolution of the last feature map.

    The evidence is gradient × activation, summed over the channels, where it is positive (HiResCAM, arXiv:2011.08891).
    In a ResNet, and any network that averages its last feature map over the positions, this is Grad-CAM
    (arXiv:1610.02391). In others, it does not lose the positions that Grad-CAM's mean of the gradients loses.

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
    method: Any = require("captum.attr", "explain", "a heat map").LayerGradientXActivation
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.inference_mode(False), torch.autocast(inputs.device.type, enabled=False):
            # Copies: tensors of the Trainer's inference mode cannot take part in a backward pass.
            images = inputs.float() / 255 if inputs.dtype == torch.uint8 else inputs.detach().clone()
            name, grid = find_feature_map(model, images[:1].clone(), layer)
            found = model.backbone.get_submodule(name)
            handle = found.register_forward_hook(_enable_gradients)
            try:
                evidence = method(torch.no_grad()(model.forward), found).attribute(images, classes.clone())
            finally:
                handle.remove()
    finally:
        for module in training:
            module.training = True
    maps = grid.to_map(evidence.detach().float()).sum(1, keepdim=True).relu()
    maps = interpolate(maps, size=inputs.shape[-2:], mode="bilinear").squeeze(1)
    return maps / maps.amax((1, 2), keepdim=True).clamp(min=torch.finfo().tiny)


def describe_limits(backbone: nn.Module) -> str | None:
    """Returns why heat maps of this network can be wrong; None for a network without attention."""
    if not any(type(module).__name__.endswith("Attention") for module in backbone.modules()):
        return None
    return "heat maps of a transformer often show other places than the evidence: attention moves it between positions"


def _enable_gradients(*args: Any) -> None:
    """Hook of the layer: the layers before it need no gradients, whose activations would take memory."""
    torch.set_grad_enabled(True)


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
