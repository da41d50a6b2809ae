"""How a net is tested: the options of `validate` and `test`, and what they mean for net and data."""

from __future__ import annotations

from typing import Literal

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt
from torch.nn.modules.batchnorm import _BatchNorm

from resnet_pl.classifier import ImageClassifier
from resnet_pl.data import ImageDataModule
from resnet_pl.data.views import MultiScale, five_crops
from resnet_pl.utils import UserError

Name = Literal["single", "flip", "10-crop", "multi-scale"]


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options."""
    views = "what the net looks at: each image once, its mirror image too, ten crops, or the whole image at many sizes"
    parser.add_argument("--views", type=Name, default="single", help=views)
    scales = "shorter sides for multi-scale, pixels; 224 256 384 480 640 in proportion to the net's size if not given"
    parser.add_argument("--scales", type=PositiveInt, nargs="+", help=scales)
    ensemble = "checkpoints whose class probabilities are averaged"
    parser.add_argument("--ensemble", type=str, nargs="+", help=ensemble)
    precise = "average BatchNorm statistics over so many training images, or all, before the test"
    parser.add_argument("--precise_bn", type=PositiveInt | Literal["all"] | None, default=None, help=precise)
    save_to = "where to keep the checkpoint with those statistics, or with or without them the weights as .safetensors"
    parser.add_argument("--save_to", type=str | None, default=None, help=save_to)


def check(settings: Namespace) -> None:
    """Raises UserError where the options do not fit together."""
    if settings["scales"] and settings["views"] != "multi-scale":
        raise UserError("--scales are for --views multi-scale: add it, or leave --scales out")
    path = settings["save_to"]
    if path and (settings["ensemble"] or not (settings["precise_bn"] or path.endswith(".safetensors"))):
        raise UserError(
            "--save_to keeps the BatchNorm statistics of one checkpoint, or its weights as NAME.safetensors\n"
            "give --precise_bn all or such a name, and no --ensemble"
        )


def apply(settings: Namespace, net: ImageClassifier, data: ImageDataModule) -> None:
    """Makes net and data follow the options.

    Raises:
        UserError: a scale is smaller than the net's own size, or there is no BatchNorm to average.
    """
    name, size = settings["views"], data.image_size
    net.mirror = name in ("flip", "10-crop")
    if name == "10-crop":
        data.views = five_crops
    if name == "multi-scale":
        data.views = MultiScale(settings["scales"])
        if (least := min(data.views.at(size))) < size:
            raise UserError(f"--scales: {least} is smaller than the {size} pixels of the net\ngive {size} or more")
    if settings["precise_bn"] and not any(isinstance(module, _BatchNorm) for module in net.modules()):
        raise UserError("--precise_bn: the net has no BatchNorm\nleave the option out")


def told(settings: Namespace, data: ImageDataModule, others: list[str]) -> list[str]:
    """The protocol in words, for the report and as the key of its results.

    Args:
        others: the other members of an ensemble.
    """
    words = {"single": "single view", "flip": "view and mirror image"}.get(settings["views"], settings["views"])
    if isinstance(data.views, MultiScale):
        words += " " + " ".join(str(scale) for scale in data.views.at(data.image_size))
    parts = [words]
    parts += [f"precise BN over {settings['precise_bn']} images"] if settings["precise_bn"] else []
    return parts + ([f"ensemble with {' and '.join(others)}"] if others else [])
