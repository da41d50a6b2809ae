"""Default lists of transforms that a data module names in `defaults`."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from resnet_pl.config import default_arguments
from resnet_pl.data import CIFAR10, BatchTransform, Cutout, Digits, ImageFolder, PadCrop, RandomFlip, ScaleCrop


class Named(Digits):
    """Names another default list, and inherits that of its base class for other arguments."""

    defaults = {"batch_transforms": [RandomFlip, partial(Cutout, size=4)]}


class Needy(Digits):
    """Has a required argument."""

    def __init__(self, csv: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)


class Fixed(Digits):
    """Passes on a list of its own and does not take the argument."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(batch_transforms=[RandomFlip()], **kwargs)


class Own(Digits):
    """Has a default list of its own in the constructor."""

    def __init__(self, batch_transforms: list[BatchTransform] | None = None, **kwargs: Any) -> None:
        super().__init__(batch_transforms=[Cutout()] if batch_transforms is None else batch_transforms, **kwargs)


PAD_CROP = {"class_path": "resnet_pl.data.batch_transforms.PadCrop", "init_args": {"padding": 2}}
FLIP = {"class_path": "resnet_pl.data.batch_transforms.RandomFlip", "init_args": {}}
CUTOUT = {"class_path": "resnet_pl.data.batch_transforms.Cutout", "init_args": {"size": 4}}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Digits", {"batch_transforms": [PAD_CROP]}),
        (f"{__name__}.Named", {"batch_transforms": [FLIP, CUTOUT]}),
        (f"{__name__}.Needy", {"batch_transforms": [PAD_CROP]}),
        (f"{__name__}.Fixed", {}),
        (f"{__name__}.Own", {}),
        ("nowhere.Digits", {}),
        ("lightning.pytorch.LightningDataModule", {}),
        ("", {}),
    ],
)
def test_defaults_as_in_a_configuration_file(name: str, expected: dict[str, Any]) -> None:
    assert default_arguments(name) == expected


def test_an_image_folder_has_a_default_crop() -> None:
    assert default_arguments("ImageFolder")["crop"]["class_path"].endswith(".ScaleCrop")
    assert isinstance(ImageFolder("nowhere").crop, ScaleCrop)


def test_the_constructor_uses_the_same_defaults() -> None:
    def names(data: Digits | CIFAR10) -> list[str]:
        return [type(transform).__name__ for transform in data.batch_transforms]

    assert names(Named()) == ["RandomFlip", "Cutout"] and names(Own()) == ["Cutout"]
    assert names(Fixed()) == ["RandomFlip"]
    assert names(CIFAR10(batch_transforms=[PadCrop()])) == ["PadCrop"] and names(CIFAR10(batch_transforms=[])) == []
    assert names(CIFAR10()) == ["RandomFlip", "PadCrop"]
    first, second = Digits().batch_transforms, Digits().batch_transforms
    assert isinstance(first[0], PadCrop) and first[0].padding == 2 and first[0] is not second[0]
