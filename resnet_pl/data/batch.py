"""The batch of images that data loaders yield and modules take."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor

from resnet_pl.data.views import View
from resnet_pl.utils import UserError


class Batch(NamedTuple):
    """One batch.

    Attributes:
        images: `(N, C, H, W)`, uint8, or float in [0, 1] after batch augmentation; a list of `View` with test-time
            augmentation.
        labels: `(N,)` int64, -1 if unknown; `(N, K)` class probabilities after MixUp or CutMix; with several
            classes per image `(N, K)` float, 1 for each of its classes.
        indices: `(N,)` int64, index of each image in its split; plus r times the size of the split for the r-th repeat
            of an image in an epoch (`data.sampler: balanced`).
        epoch: epoch of the batch, from 0.
        batch_idx: index of the batch in its epoch, from 0.
    """

    images: Tensor | list[View]
    labels: Tensor
    indices: Tensor
    epoch: int
    batch_idx: int

    @classmethod
    def find(cls, batch: Any, batch_idx: int = 0) -> Batch | None:
        """Returns what `of` does; None for a batch of another kind, which a module with steps of its own can have."""
        with suppress(UserError):
            return cls.of(batch, batch_idx)
        return None

    @classmethod
    def of(cls, batch: Any, batch_idx: int = 0) -> Batch:
        """Returns the batch of any data loader as a `Batch`.

        Args:
            batch: a `Batch`, which is returned unchanged, or `(images, labels)`: the images get running indices.
            batch_idx: index of the batch in its epoch.

        Raises:
            UserError: it is neither.
        """
        if isinstance(batch, Batch):
            return batch
        parts = batch if isinstance(batch, list | tuple) else [batch]
        if len(parts) != 2 or not all(isinstance(part, Tensor) for part in parts):
            kinds = ", ".join(type(part).__name__ for part in parts)
            raise UserError(
                f"data: a batch is ({kinds}), not two tensors (images, labels)\n"
                "return them from the data set or its collate_fn, or override the steps of ImageClassifier"
            )
        images, labels = parts
        if images.ndim != 4 or (images.shape[1] > 4 and images.shape[-1] <= 4):
            raise UserError(f"data: images have the shape {tuple(images.shape)}\nreturn (N, C, H, W)")
        if labels.shape[:1] != images.shape[:1] or labels.ndim > 2 or labels.is_floating_point() != (labels.ndim == 2):
            raise UserError(
                f"data: labels have the shape {tuple(labels.shape)} and the type {str(labels.dtype)[6:]}\n"
                "return class indices (N,) as integers, or class probabilities (N, K) as floats"
            )
        labels = labels if labels.ndim == 2 else labels.long()
        indices = torch.arange(len(images), device=labels.device) + batch_idx * len(images)
        return cls(images, labels, indices, 0, batch_idx)

    def to(self, device: torch.device | str, non_blocking: bool | None = None) -> Batch:
        """Returns the batch with its tensors on a device; Lightning calls this for every batch.

        Args:
            device: destination of images, labels and indices.
            non_blocking: whether the CPU continues during the copy; by default only if the device is a GPU.
        """
        if non_blocking is None:
            non_blocking = torch.device(device).type == "cuda"

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        if isinstance(self.images, Tensor):
            images: Tensor | list[View] = move(self.images)
        else:
            images = [View(move(view.images), move(view.owners)) for view in self.images]
        return Batch(images, move(self.labels), move(self.indices), self.epoch, self.batch_idx)


def check_labels(labels: Tensor, num_classes: int, multi_label: bool = False) -> None:
    """Raises UserError if class indices `(N,)` or probabilities `(N, K)` do not fit the number of classes."""
    if multi_label and labels.ndim == 1:
        raise UserError(
            "data: labels have the shape (N,), and model.multi_label needs (N, K)\n"
            "return floats, 1 for each class of an image and 0 for the others"
        )
    if labels.ndim == 2:
        wrong = f"labels have {labels.shape[1]} columns" if labels.shape[1] != num_classes else ""
    else:
        outside = labels[(labels < -1) | (labels >= num_classes)]
        wrong = f"there is a label {int(outside[0])}" if len(outside) else ""
    if wrong:
        raise UserError(
            f"data: {wrong}, but the network has {num_classes} classes, 0 to {num_classes - 1}\n"
            "give the data module an attribute `classes` with all names, and count the labels from 0"
        )
