"""Decodes and classifies the photos of requests, one at a time."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from resnet_pl.classifier import ImageClassifier
from resnet_pl.data.bad_images import BadImage
from resnet_pl.data.decode import EncodedImage, to_pixels
from resnet_pl.data.jpeg import count_scans
from resnet_pl.evaluation.classify import Prediction
from resnet_pl.evaluation.heatmaps import heatmaps, overlay
from resnet_pl.server.uploads import Photo
from resnet_pl.utils import UserError

Result = TypeVar("Result")
MAX_SCANS = 32  # encoders write about ten; a hostile file of 300 kB can have 400, which take a minute


class Worker:
    """Classifies photos in one thread: requests wait for each other, and the memory is that of one photo.

    Args:
        model: the model, in evaluation mode.
        max_pixels: largest photo that is decoded.

    Raises:
        UserError: the preprocessing of the model is not known.
    """

    def __init__(self, model: ImageClassifier, max_pixels: int) -> None:
        self.model, self.max_pixels = model, max_pixels
        self.prepare = model.preprocessing.function()
        self.thread = ThreadPoolExecutor(1)

    async def run(self, function: Callable[..., Result], *args: Any) -> Result:
        """Calls one of the functions below in the thread."""
        return await asyncio.get_running_loop().run_in_executor(self.thread, function, *args)

    def classify(self, photos: Sequence[Photo], top_k: int) -> list[dict[str, Any]]:
        """Returns the answer for each photo, see docs/deploy.md.

        Args:
            photos: the photos.
            top_k: number of classes with probabilities, the most probable first.

        Raises:
            BadImage: a photo cannot be read; a `LargeImage` if it has too many pixels.
        """
        inputs = [self._read(photo) for photo in photos]
        predictions = self.model.predict(inputs, transform=lambda image: image)
        return [self._answer(*pair, top_k) for pair in zip(photos, predictions, strict=True)]

    def heatmap(self, photo: Photo, class_name: str | None) -> bytes:
        """Returns a PNG of the input of the network with the heat map of a class, by default the predicted one.

        Raises:
            BadImage: see `classify`.
            UserError: there is no such class, or the network has no heat maps.
        """
        names = self.model.class_names
        if class_name is not None and class_name not in names:
            raise UserError(f"there is no class {class_name!r}")
        image = self._read(photo)
        inputs = image[None].to(self.model.device)
        if class_name is None:
            best = self.model.predict([image], transform=lambda image: image)[0].probabilities.argmax().item()
        else:
            best = names.index(class_name)
        found = heatmaps(self.model, inputs, torch.tensor([best], device=self.model.device))[0]
        file = io.BytesIO()
        Image.fromarray(overlay(to_pixels(image), found.detach().cpu().numpy())).save(file, "PNG")
        return file.getvalue()

    def _read(self, photo: Photo) -> Tensor:
        """Returns the input of the network for a photo, uint8 `(C, H, W)`."""
        if (scans := count_scans(photo.data)) > MAX_SCANS:
            raise BadImage(photo.name, f"a JPEG with {scans} scans")
        encoded = EncodedImage(Path(photo.name), self.model.preprocessing.pixel_format, photo.data, self.max_pixels)
        return self.prepare(encoded.decode())

    def _answer(self, photo: Photo, prediction: Prediction, top_k: int) -> dict[str, Any]:
        names = self.model.class_names
        values, order = prediction.probabilities.topk(min(top_k, len(names)))
        several = bool(self.model.hparams["multi_label"])
        return {
            "file": photo.name,
            **({"classes": prediction.class_names} if several else {"class": prediction.class_name}),
            "probabilities": [
                {"class": names[index], "probability": round(value, 6)}
                for index, value in zip(order.tolist(), values.tolist(), strict=True)
            ],
        }
