"""scikit-learn's scanned digits: 1,797 images of 8×8 pixels, embedded, so that nothing need be downloaded."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from resnet_pl.data.batch_transforms import BatchTransform, PadCrop
from resnet_pl.data.statistics import Mean, Std
from resnet_pl.data.tensors import TensorDataModule, TensorImageDataset
from resnet_pl.types import PositiveInt


class Digits(TensorDataModule):
    """The digits 0 to 9, enlarged and repeated over three channels; 360 held out for testing, 180 for validation.

    Args:
        image_size: side to which the 8×8 scans are enlarged, pixels.
        batch_transforms: augmentation of whole batches; shifts of up to 2 pixels by default.
        val_split: share (below 1) or number of images held out for validation.
        test_split: share (below 1) or number of images held out for testing.
    """

    paper_batch_size = 128

    def __init__(
        self,
        image_size: PositiveInt = 16,
        mean: Mean = "channel",
        std: Std = "channel",
        batch_transforms: list[BatchTransform] | None = None,
        val_split: int | float = 180,
        test_split: int | float = 360,
        **kwargs: Any,
    ) -> None:
        if batch_transforms is None:
            batch_transforms = [PadCrop(padding=2)]
        super().__init__(
            image_size=image_size,
            mean=mean,
            std=std,
            batch_transforms=batch_transforms,
            val_split=val_split,
            test_split=test_split,
            **kwargs,
        )

    def read(self) -> dict[str, TensorImageDataset]:
        """See `TensorDataModule.read`."""
        from sklearn.datasets import load_digits

        scans = load_digits()
        self.classes = [str(name) for name in scans.target_names]
        images = torch.from_numpy(scans.images).float().unsqueeze(1) / 16 * 255
        images = F.interpolate(images, size=self.image_size, mode="bilinear", antialias=True)
        images = images.round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
        names = [f"digits/{i:04d}" for i in range(len(images))]
        return {"train": TensorImageDataset(images, torch.from_numpy(scans.target).long(), names)}
