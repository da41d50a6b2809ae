"""Data loaders of the user's own as a data module."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import Dataset
from typing_extensions import override

from resnet_pl.utils import UserError


class DataLoaders(LightningDataModule):
    """A data module of data loaders that yield `(images, labels)`; resuming within an epoch repeats the epoch's order.

    Args:
        train: loader for training.
        val: loader for validation.
        test: loader for testing.
    """

    def __init__(self, train: Any, val: Any = None, test: Any = None) -> None:
        super().__init__()
        self.loaders = {"train": train, "val": val, "test": test}
        self.batch_size: int | None = getattr(train, "batch_size", None)

    @override
    def train_dataloader(self) -> Any:
        return self.loaders["train"]

    @override
    def val_dataloader(self) -> Any:
        return [] if self.loaders["val"] is None else self.loaders["val"]

    @override
    def test_dataloader(self) -> Any:
        return [] if self.loaders["test"] is None else self.loaders["test"]


def as_data_module(data: Any) -> LightningDataModule:
    """Returns a data module for what Python code passes as `data`.

    Args:
        data: a data module, a loader for training, or up to three loaders: training, validation, testing; or a
            dictionary of them with the keys `train`, `val` and `test`.

    Raises:
        UserError: it is something else.
    """
    if isinstance(data, LightningDataModule):
        return data
    if isinstance(data, Mapping) and data.keys() <= {"train", "val", "test"}:
        data = [data.get(name) for name in ("train", "val", "test")]
    loaders = data if isinstance(data, list | tuple) else [data]
    wrong = [each for each in loaders if isinstance(each, str | Dataset) or not isinstance(each, Iterable | None)]
    if wrong or not 1 <= len(loaders) <= 3:
        what = f"a {type(wrong[0]).__name__}" if wrong else f"{len(loaders)} loaders"
        raise UserError(
            f"data: {what} instead of a data module or loaders\n"
            "pass a LightningDataModule, a DataLoader, or loaders for training, validation and testing"
        )
    return DataLoaders(*loaders)
