"""How large the gradient of each layer is."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.conv import _ConvNd


def gradient_norms(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], loss: Callable[[Tensor, Tensor], Tensor]
) -> dict[str, float]:
    """L2 norm of the loss's gradient with respect to each convolution's and linear layer's weight, as in training.

    The model is as it was afterwards: running statistics, mode and gradients.

    Args:
        model: images to logits.
        batches: images and labels.
        loss: of (logits, labels).

    Returns:
        The mean over the batches, by the layer's name, in the model's own order.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, _ConvNd | nn.Linear)}
    # Of copies, so that a layer that is frozen has a gradient too.
    weights = {f"{name}.weight": layer.weight.detach().requires_grad_() for name, layer in layers.items()}
    modes = {module: module.training for module in model.modules()}
    norms = []
    model.train()
    try:
        for images, labels in batches:
            # BatchNorm counts the batch in copies of its statistics.
            buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
            logits = functional_call(model, buffers | weights, (images,))
            gradients = torch.autograd.grad(loss(logits, labels), list(weights.values()), materialize_grads=True)
            norms.append(torch.stack([gradient.double().norm() for gradient in gradients]))
    finally:
        for module, mode in modes.items():
            module.training = mode
    return dict(zip(layers, torch.stack(norms).mean(0).tolist(), strict=True))
