"""Classifies images of any origin with a trained model, as `ImageClassifier.predict` does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from resnet_pl.checkpoint import METADATA_KEY
from resnet_pl.data.crops import CenterCrop, Crop, Letterbox, ResizeCenterCrop
from resnet_pl.data.decode import RGB, PixelFormat, pil_to_tensor, read_image
from resnet_pl.data.image_files import find_images
from resnet_pl.data.resizing import Size
from resnet_pl.run_dir import UNKNOWN
from resnet_pl.utils import UserError

if TYPE_CHECKING:
    from resnet_pl.classifier import ImageClassifier
    from resnet_pl.data import ImageDataModule


@dataclass
class Prediction:
    """The prediction for one image.

    Attributes:
        source: the file; None for an image that was given as an object.
        class_name: the most probable class; `unknown` below the model's `confidence_threshold`.
        probability: its probability.
        probabilities: probability of each class, `(K,)` float32, in the order of `ImageClassifier.class_names`.
        class_names: the predicted classes: the most probable one, none if it is unknown; with several classes per
            image, all that reach their threshold, the most probable first.
    """

    source: Path | None
    class_name: str
    probability: float
    probabilities: Tensor = field(repr=False)
    class_names: list[str] = field(default_factory=list)


@dataclass
class Preprocessing:
    """How images are prepared for a trained network.

    Attributes:
        image_size: size of the network's input, pixels; None if it is not known.
        eval_crop: crop of the evaluation; None if its class is not part of this project.
        pixel_format: number of channels and range of the pixels.
    """

    image_size: Size | None = None
    eval_crop: Crop | None = field(default_factory=ResizeCenterCrop)
    pixel_format: PixelFormat = RGB

    @classmethod
    def of_data(cls, data: ImageDataModule) -> Preprocessing:
        """Returns that of a data module."""
        return cls(data.image_size, data.eval_crop, data.pixel_format)

    @classmethod
    def of_checkpoint(cls, checkpoint: Mapping[str, Any]) -> Preprocessing:
        """Returns that of the training; without a size if data of another kind has prepared the images."""
        metadata = checkpoint.get(METADATA_KEY) or {}
        if not (data := metadata.get("data")):
            return cls()
        section = (metadata.get("config") or {}).get("data") or {}
        # Checkpoints of earlier versions have the size in the arguments only.
        stored = [data, checkpoint.get("datamodule_hyper_parameters"), section.get("init_args"), section]
        size = next((each["image_size"] for each in stored if each and each.get("image_size")), None)
        # Checkpoints of earlier versions have no crop and no pixel format: there was one of each.
        own = data.get("eval_crop")
        crop = known_crop(own) if own else ResizeCenterCrop()
        pixel_format = PixelFormat(*data.get("pixel_format", RGB))
        return cls(tuple(size) if isinstance(size, list) else size, crop, pixel_format)

    def function(self, image_size: Size | None = None) -> Callable[[Tensor], Tensor]:
        """Returns a function that converts an image `(C, H, W)` uint8 to an input of the network.

        Args:
            image_size: another size than that of the training, pixels.

        Raises:
            UserError: the size or the crop of the training is not known.
        """
        if self.image_size is None:
            raise UserError(
                "predict: the training data was not an ImageDataModule, so its preprocessing is not known\n"
                "pass transform=, a function from an image (3, H, W) uint8 to an input of the network"
            )
        if self.eval_crop is None:
            raise UserError(
                "predict: the training data has a crop of your own for the evaluation, which is not in the checkpoint\n"
                "load the model with load_run, or pass transform="
            )
        crop, size = self.eval_crop, image_size or self.image_size
        return lambda image: crop(image, size)


def known_crop(described: Mapping[str, Any]) -> Crop | None:
    """Returns a crop of this project from its class and arguments, see `describe_crop`; None for any other."""
    name = described["class_path"].removeprefix("resnet_pl.data.")
    classes: dict[str, type[Crop]] = {cls.__name__: cls for cls in (ResizeCenterCrop, CenterCrop, Letterbox)}
    return classes[name](**described["init_args"]) if name in classes else None


@torch.no_grad()
def classify(
    model: ImageClassifier,
    images: Any,
    prepare: Callable[[Tensor], Tensor],
    batch_size: int,
    pixel_format: PixelFormat = RGB,
) -> list[Prediction]:
    """Returns the predictions for images; the model's modules keep their modes.

    Args:
        model: the model.
        images: see `ImageClassifier.predict`.
        prepare: converts an image `(3, H, W)` uint8 to an input of the model.
        batch_size: images per forward pass.
        pixel_format: number of channels and range of the pixels of files.

    Raises:
        UserError: a path has no images, a file is not an image, or an object is of another type or shape.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    predictions, loaded = [], _load(images, pixel_format)
    try:
        while batch := list(islice(loaded, batch_size)):
            inputs = torch.stack([prepare(image) for _, image in batch])
            probabilities = model.to_probabilities(model(inputs.to(model.device))).cpu()
            best = probabilities.max(1)
            names = model.class_names or [str(index) for index in range(probabilities.shape[1])]
            for (source, _), row, value, index in zip(batch, probabilities, *map(Tensor.tolist, best), strict=True):
                if model.thresholds is not None:
                    name, found = names[index], _above(row, model.thresholds.cpu(), names)
                else:
                    name = UNKNOWN if is_unknown(value, model.confidence_threshold) else names[index]
                    found = [] if name == UNKNOWN else [name]
                predictions.append(Prediction(source, name, value, row, found))
    finally:
        for module in training:
            module.training = True
    return predictions


def is_unknown(confidence: float, threshold: float | None) -> bool:
    """Whether the probability of the most probable class is below the confidence threshold, or NaN."""
    return threshold is not None and not confidence >= threshold


def _above(probabilities: Tensor, thresholds: Tensor, names: list[str]) -> list[str]:
    """The classes that reach their thresholds, the most probable first."""
    order = probabilities.argsort(descending=True, stable=True).tolist()
    return [names[index] for index in order if probabilities[index] >= thresholds[index]]


def _load(images: Any, pixel_format: PixelFormat) -> Iterator[tuple[Path | None, Tensor]]:
    """Yields the file of each image, if it has one, and its pixels, `(3, H, W)` uint8."""
    one = isinstance(images, str | Image) or not isinstance(images, Iterable) or getattr(images, "ndim", 0) in (2, 3)
    sources: Any = [images] if one else images
    for image in sources:
        if isinstance(image, str | Path):
            for path in find_images([str(image)], "predict"):
                yield path, read_image(path, pixel_format)
        else:
            yield None, _pixels(image, pixel_format)


def _pixels(image: Any, pixel_format: PixelFormat) -> Tensor:
    """Returns the pixels of an image object, `(3, H, W)` uint8."""
    if isinstance(image, Image):
        return pil_to_tensor(image, pixel_format)
    channels = pixel_format.channels
    shape, dtype = tuple(getattr(image, "shape", ())), str(getattr(image, "dtype", "")).removeprefix("torch.")
    if len(shape) == 3 and dtype == "uint8" and min(shape) > 0:
        if isinstance(image, np.ndarray) and shape[2] == channels:
            return torch.from_numpy(image.copy()).permute(2, 0, 1)
        if isinstance(image, Tensor) and shape[0] == channels:
            return image
    what = f" of shape {shape} and type {dtype}" if shape else ""
    raise UserError(
        f"predict: a {type(image).__name__}{what} is not an image\n"
        f"pass a path, a folder, a PIL image, an array (H, W, {channels}) uint8 or a tensor ({channels}, H, W) uint8"
    )
