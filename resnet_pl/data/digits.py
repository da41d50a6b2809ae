"""scikit-learn's scanned digits: 1,797 images of 8×8 pixels, included in scikit-learn: no download."""

from __future__ import annotations

from functools import partial

import torch
from torch.nn import functional as F
from typing_extensions import override

from resnet_pl.data.batch_transforms import BatchTransform, PadCrop
from resnet_pl.data.statistics import Mean, Std
from resnet_pl.data.tensors import TensorDataModule, TensorImageDataset
from resnet_pl.data.typed_kwargs import ImageDataModuleArgs
from resnet_pl.types import PositiveInt, Unpack


class Digits(TensorDataModule):
    """The digits 0 to 9, enlarged, in three equal channels; 360 held out for testing and 180 for validation.

    Args:
        image_size: height and width to which the 8×8 scans are enlarged, pixels.
        batch_transforms: augmentation of training batches; shifts of up to 2 pixels by default. A list replaces the
            default, `+` appends to it.
        val_split: fraction (below 1) or number of images held out for validation.
        test_split: fraction (below 1) or number of images held out for testing.
    """

    defaults = {"batch_transforms": [partial(PadCrop, padding=2)]}

    def __init__(
        self,
        batch_size: PositiveInt = 64,
        image_size: PositiveInt | tuple[PositiveInt, PositiveInt] = 16,
        mean: Mean = "channel",
        std: Std = "channel",
        batch_transforms: list[BatchTransform] | None = None,
        val_split: int | float = 180,
        test_split: int | float = 360,
        **kwargs: Unpack[ImageDataModuleArgs],
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            image_size=image_size,
            mean=mean,
            std=std,
            batch_transforms=batch_transforms,
            val_split=val_split,
            test_split=test_split,
            **kwargs,
        )

    @override
    def read(self) -> dict[str, TensorImageDataset]:
        from sklearn.datasets import load_digits

        scans, labels = load_digits(return_X_y=True)
        self.classes = [str(digit) for digit in range(10)]
        images = torch.from_numpy(scans).float().view(-1, 1, 8, 8) / 16 * 255
        images = F.interpolate(images, size=self.image_size, mode="bilinear", antialias=True)
        images = images.round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
        names = [f"digits/{i:04d}" for i in range(len(images))]
        return {"train": TensorImageDataset(images, torch.from_numpy(labels).long(), names)}
