"""Classifier heads of any network: finds and replaces them, and takes the logits from the outputs of several heads."""

from collections.abc import Callable, Set
from typing import Any, cast

from torch import Tensor, nn

from resnet_pl.data.decode import options_for
from resnet_pl.models.resnet import ResNet
from resnet_pl.utils import UserError, rank_zero_print

Head = nn.Linear | nn.Conv2d

AUXILIARY_WEIGHTS = {1: 0.4, 2: 0.3}
"""Weight of each auxiliary loss, by their number: Inception v3 as trained by its authors (TensorFlow's slim), and
GoogLeNet (arXiv:1409.4842, section 5)."""


def find_heads(model: nn.Module) -> dict[str, Head]:
    """Returns the classifier layers of any classification network by name, the main one first.

    A network of timm names its classifiers: a distilled transformer has two. Otherwise the main one is the last
    `nn.Linear`, or in a network without one, such as SqueezeNet, the last 1×1 convolution with a bias. Auxiliary
    classifiers are those of the modules `aux…`, as in GoogLeNet and Inception v3.

    Raises:
        UserError: the network has no such layer.
    """
    auxiliary = [child for name, child in model.named_children() if name.lower().startswith("aux")]
    inside = {id(module) for child in auxiliary for module in child.modules()}
    get_classifier: Any = getattr(model, "get_classifier", None)
    named: Any = get_classifier() if callable(get_classifier) else model
    main = [named] if isinstance(named, nn.Module) else list(named)
    found = [_last_layer(part, inside) for part in main] + [_last_layer(child) for child in auxiliary]
    names = {id(module): name for name, module in model.named_modules()}
    heads = {names[id(layer)]: layer for layer in found if layer is not None and id(layer) in names}
    if not heads or found[0] is None:
        raise UserError(f"{type(model).__name__}: no classifier layer found\nexpected an nn.Linear, or a 1×1 nn.Conv2d")
    return heads


def _last_layer(module: nn.Module, without: Set[int] = frozenset()) -> Head | None:
    """Returns the last layer of a module that can be a classifier, except those whose `id` is excluded."""
    layers = [layer for layer in module.modules() if id(layer) not in without]
    linear: list[Head] = [layer for layer in layers if isinstance(layer, nn.Linear)]
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)]
    return next(reversed(linear or [layer for layer in convolutions if layer.bias is not None]), None)


def find_classifier(model: nn.Module) -> tuple[str, Head]:
    """Returns the name and module of the main classifier layer of any classification network, see `find_heads`."""
    return next(iter(find_heads(model).items()))


def reset_classifier(model: nn.Module, num_classes: int) -> bool:
    """Replaces the classifier layers if they have another number of classes; returns whether it did."""
    changed = {name: head for name, head in find_heads(model).items() if len(head.weight) != num_classes}
    for name, head in changed.items():
        if type(head) not in (nn.Linear, nn.Conv2d) and not type(head).__module__.startswith(("torch.", "timm.")):
            rank_zero_print(
                f"note: the head {name}, a {type(head).__name__}, is replaced by a plain layer with {num_classes} "
                f"outputs\ngive the network {num_classes} outputs to keep it"
            )
        options = {"bias": head.bias is not None, "device": head.weight.device, "dtype": head.weight.dtype}
        if isinstance(head, nn.Linear):
            new = nn.Linear(head.in_features, num_classes, **options)
        else:
            new = nn.Conv2d(head.in_channels, num_classes, 1, cast("tuple[int, int]", head.stride), **options)
        model.set_submodule(name, new)
    if changed and isinstance(model, ResNet):
        model.init_args["num_classes"] = num_classes
    return bool(changed)


def split_outputs(outputs: Any) -> tuple[Tensor, list[Tensor]]:
    """Returns the logits `(N, K)` of the main head and those of auxiliary heads, from what a network returns.

    Raises:
        UserError: the outputs are not logits, or not a tuple of logits of the same shape.
    """
    if isinstance(outputs, Tensor):
        return outputs, []
    several = list(outputs) if isinstance(outputs, tuple | list) else []
    if several and all(isinstance(each, Tensor) and each.shape == several[0].shape for each in several):
        return several[0], several[1:]
    parts = ", ".join(str(tuple(each.shape)) if isinstance(each, Tensor) else type(each).__name__ for each in several)
    raise UserError(
        f"model.backbone: the network returns {type(outputs).__name__}{f' of {parts}' if parts else ''}, not logits\n"
        "return the logits (N, K) alone, or a tuple with the logits of auxiliary heads after them"
    )


def training_loss(criterion: Callable[[Tensor, Tensor], Tensor], outputs: Any, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the loss, with the weighted losses of auxiliary heads, and the logits of the main head.

    Args:
        criterion: loss of logits `(N, K)` and labels.
        outputs: what the network returns in training mode, see `split_outputs`.
        labels: `(N,)`, or `(N, K)` probabilities.
    """
    logits, auxiliary = split_outputs(outputs)
    loss = criterion(logits, labels)
    weight = AUXILIARY_WEIGHTS.get(len(auxiliary), 0.3)
    for other in auxiliary:
        loss = loss + weight * criterion(other, labels)
    return loss, logits


def check_channels(model: nn.Module, channels: int, weights: str | bool | None) -> None:
    """Raises UserError if a network does not take images with this number of channels.

    Args:
        model: the network; its first convolution is checked.
        channels: channels of the images.
        weights: pretrained weights that will be loaded, if any; they are for RGB images.
    """
    takes = next((module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d)), channels)
    if takes != channels:
        raise UserError(
            f"model.backbone takes images with {takes} channels, data.in_channels is {channels}\n"
            f"{options_for(channels)}"
        )
    if channels != 3 and weights:
        raise UserError(
            f"model.weights are for images with 3 channels, data.in_channels is {channels}\n{options_for(channels)}"
        )
