"""Published weights in place of a checkpoint: `predict --model.weights ResNet50_Weights.DEFAULT --images cat.jpg`."""

from __future__ import annotations

from typing import Any

import torchvision.models
from torchvision.models import WeightsEnum, get_model_weights, get_weight, list_models

from resnet_pl import models
from resnet_pl.command_line import CommandLine
from resnet_pl.config import find_data_module
from resnet_pl.data import ImageFolder
from resnet_pl.utils import UserError, rank_zero_print


def published_config(command_line: CommandLine) -> dict[str, Any]:
    """Returns the configuration for an evaluation of weights without training: their network and preprocessing.

    The images are those of an `ImageFolder` by default. Options and files override all of it.

    Raises:
        UserError: no network is given, and the name of the weights does not say which one it is.
    """
    weights, backbone = str(command_line.get("model.weights")), command_line.get("model.backbone")
    config: dict[str, Any] = {}
    if backbone is None:
        if (backbone := _network_of(weights)) is None:
            raise UserError(
                f"model.backbone: required\nname the network of {weights}, such as --model.backbone resnet50"
            )
        config["model"] = {"class_path": "resnet_pl.ImageClassifier", "init_args": {"backbone": backbone}}
    path = command_line.data_class or "resnet_pl.ImageFolder"
    cls = find_data_module(path)
    if isinstance(cls, type) and issubclass(cls, ImageFolder):
        entry = _entry(weights, backbone)
        config["data"] = {"class_path": path, "init_args": {} if entry is None else _preprocessing(entry)}
    return config


def _network_of(weights: str) -> str | None:
    """Returns the import path of the network for a full name of torchvision's weights."""
    enum = weights.partition(".")[0]
    names = [name for name in list_models(module=torchvision.models) if get_model_weights(name).__name__ == enum]
    if not names:
        return None
    package = "resnet_pl.models" if names[0] in models.NETWORKS else "torchvision.models"
    return f"{package}.{names[0]}"


def _entry(weights: str, backbone: Any) -> WeightsEnum | None:
    """Returns torchvision's entry for a full name, or for a short one of the network's weights."""
    path = backbone.get("class_path") if isinstance(backbone, dict) else backbone
    network = str(path).rpartition(".")[2]
    try:
        return get_weight(weights) if "." in weights else get_model_weights(network)[weights]
    except (KeyError, ValueError, AttributeError):  # a file, or unknown, which is reported later
        return None


def _preprocessing(entry: WeightsEnum) -> dict[str, Any]:
    """Returns the arguments of the data for the preprocessing of the weights, and says what differs from it."""
    transforms = entry.transforms()
    (size,), (side,), interpolation = transforms.crop_size, transforms.resize_size, transforms.interpolation.value
    ours = round(size * 256 / 224)
    if (side, interpolation) != (ours, "bilinear"):
        rank_zero_print(
            f"note: {entry} was published for images of {side} pixels, {interpolation}; here {ours}, bilinear\n"
            "the accuracy can differ by some tenths of a percent"
        )
    return {"image_size": size, "mean": list(transforms.mean), "std": list(transforms.std)}
