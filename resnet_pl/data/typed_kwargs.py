"""Constructor arguments that data modules pass on to their base class, for type checkers and IDEs.

Each class lists what the constructor of the base class takes, without the arguments that a subclass redefines.
Defaults and descriptions are in the constructors.
"""

from __future__ import annotations

from typing import Literal, TypedDict

from torch import nn

from resnet_pl.data.batch_transforms import BatchTransform
from resnet_pl.data.crops import Crop
from resnet_pl.data.statistics import Mean, Std
from resnet_pl.types import NonNegativeInt, PositiveInt


class ImageDataModuleArgs(TypedDict, total=False):
    """Arguments of `ImageDataModule` that no subclass redefines."""

    eval_batch_size: PositiveInt | None
    transforms: list[nn.Module] | None
    mix: BatchTransform | None
    sampler: Literal["balanced"] | None
    num_folds: PositiveInt | None
    fold: NonNegativeInt
    split_seed: int
    num_workers: NonNegativeInt | None
    on_bad_image: Literal["error", "skip"]


class ImageFolderArgs(ImageDataModuleArgs, total=False):
    """Arguments of `ImageFolder` without `root` and `batch_size`."""

    image_size: PositiveInt | tuple[PositiveInt, PositiveInt]
    train_image_size: PositiveInt | tuple[PositiveInt, PositiveInt] | None
    crop: Crop | None
    mean: Mean
    std: Std
    batch_transforms: list[BatchTransform] | None
    val_split: int | float
    test_split: int | float
    scaled_decoding: bool
    verify_images: bool
    cache: bool
    cache_side: PositiveInt | None
    cache_dir: str | None
    group_pattern: str | None
    in_channels: PositiveInt
    max_value: PositiveInt | None


class CIFARArgs(ImageDataModuleArgs, total=False):
    """Arguments of `CIFAR10` and `CIFAR100` without `root`."""

    download: bool
    batch_size: PositiveInt
    image_size: PositiveInt | tuple[PositiveInt, PositiveInt]
    mean: Mean
    std: Std
    batch_transforms: list[BatchTransform] | None
    val_split: int | float
    test_split: int | float
