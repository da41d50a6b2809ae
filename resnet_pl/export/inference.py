"""The module that is exported: preprocessing, network and probabilities."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from resnet_pl.classifier import ImageClassifier
from resnet_pl.data.crops import Crop
from resnet_pl.data.resizing import Size, height_width
from resnet_pl.utils import UserError


class InferenceModel(nn.Module):
    """A trained classifier as it is exported.

    Args:
        model: the classifier, in evaluation mode.
        image_size: size of the network's input, pixels.
        crop: crop of the evaluation; None if the images are prepared before.
        channels: channels of an image.
    """

    def __init__(self, model: ImageClassifier, image_size: Size, crop: Crop | None, channels: int = 3) -> None:
        super().__init__()
        self.model, self.crop, self.channels = model, crop, channels
        rows, columns = height_width(image_size)
        self.image_size = int(rows), int(columns)  # not a subclass of int, which torch cannot trace

    def forward(self, images: Tensor) -> Tensor:
        """Returns class probabilities `(N, K)` float32.

        Args:
            images: RGB images of any size as a decoder returns them, `(N, H, W, 3)` uint8. Without a crop, images of
                the network's input size, `(N, C, S, S)` float32 in [0, 1].
        """
        if self.crop is not None:
            images = self.crop(images.permute(0, 3, 1, 2).float(), self.image_size) / 255
        return self.model.to_probabilities(self.model(images))

    def trace(self) -> ExportedProgram:
        """Returns the module as a graph. The number of images and, with a crop, their height and width are free.

        Raises:
            UserError: torch cannot export the network.
        """
        # Sizes that differ from each other and from 0 and 1, for which the graph would be specialized.
        if self.crop is None:
            images = torch.rand(2, self.channels, *self.image_size)
            free = {0: Dim.DYNAMIC}
        else:
            images = torch.randint(0, 256, (2, 61, 97, 3), dtype=torch.uint8)
            free = dict.fromkeys((0, 1, 2), Dim.DYNAMIC)
        with exporting(self.model):
            return torch.export.export(self, (images,), dynamic_shapes={"images": free}, strict=False)


@contextmanager
def exporting(model: ImageClassifier) -> Iterator[None]:
    """Reports an error of torch's exporters in two lines; suppresses their messages, which are about their internals.

    Raises:
        UserError: the block raises an exception, except one about a file or the memory, which is unchanged.
    """
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except (UserError, OSError, MemoryError):
        raise
    except Exception as error:
        while error.__cause__ is not None and isinstance(error.__cause__, Exception):
            error = error.__cause__
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(
            f"export: {type(model.backbone).__name__} cannot be exported: {reason}\n"
            "replace this operation in the network, or export the weights alone: --format safetensors"
        ) from error
    finally:
        logging.disable(previous)
