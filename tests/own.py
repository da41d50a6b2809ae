"""A module, data modules and metrics as a user writes them, for tests."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, random_split

from resnet_pl import ImageClassifier, load_run


class PlainModule(LightningModule):
    """A classifier from a tutorial, which knows nothing of this project."""

    def __init__(self, width: int = 8, lr: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.save_hyperparameters({"not_an_argument": 1})
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, width), nn.ReLU(), nn.Linear(width, 3))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch
        loss = nn.functional.cross_entropy(self.layers(images), labels)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        images, labels = batch
        self.log("val_acc", (self.layers(images).argmax(1) == labels).float().mean())

    def test_step(self, batch: Any, batch_idx: int) -> None:
        images, labels = batch
        self.log("test_acc", (self.layers(images).argmax(1) == labels).float().mean())

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.layers(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.hparams["lr"])


class NoArguments(PlainModule):
    """Has hyperparameters that are not arguments of its constructor, and no optimizer."""

    def __init__(self) -> None:
        super().__init__()

    def configure_optimizers(self) -> None:
        return None


class PlainData(LightningDataModule):
    """Float images and labels of three classes from a `DataLoader`, as in a tutorial."""

    def __init__(self, batch_size: int = 10) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.classes = ["dark", "gray", "bright"]

    def setup(self, stage: str) -> None:
        generator = torch.Generator().manual_seed(0)
        labels = torch.randint(0, 3, (60,), generator=generator)
        images = torch.rand(60, 3, 8, 8, generator=generator) / 2 + labels[:, None, None, None] / 4
        self.images: Dataset[Any] = TensorDataset(images, labels)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.images, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.images, batch_size=self.batch_size)

    test_dataloader = predict_dataloader = val_dataloader


class Endless(IterableDataset[Any]):
    """The images of a data set in an endless stream."""

    def __init__(self, images: Any) -> None:
        self.images = images

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield from (self.images[index] for index in range(len(self.images)))


class Unseeded(PlainData):
    """Splits its images with the global generator, and tests on as many as it is asked to."""

    def __init__(self, count: int = 20, batch_size: int = 10) -> None:
        super().__init__(batch_size)
        self.count = count

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.images, self.test = random_split(self.images, [60 - self.count, self.count])

    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.test, batch_size=10)


class Stream(PlainData):
    """Training data without a length."""

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Endless(self.images), batch_size=self.batch_size)


class Dictionaries(PlainData):
    """Batches that are neither `Batch` nor (images, labels)."""

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader([{"image": image, "label": label} for image, label in self.images], batch_size=10)


class Distilled(ImageClassifier):
    """One overridden method: the loss also compares the logits with those of a teacher."""

    def __init__(self, teacher_weight: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.teacher_weight = teacher_weight
        self.teacher = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 10)).requires_grad_(False)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        logits = self(batch.images)
        target = self.teacher(batch.images).softmax(1)
        loss = nn.functional.cross_entropy(logits, batch.labels)
        return loss + self.teacher_weight * nn.functional.cross_entropy(logits, target)


class LoadsTeacher(ImageClassifier):
    """Loads another run in its constructor."""

    def __init__(self, teacher_run: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.teacher = [load_run(teacher_run)[0]]


class LogsInTest(ImageClassifier):
    """Logs a metric of its own in the test, and has its own optimizer and scheduler."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    def on_test_epoch_end(self) -> None:
        super().on_test_epoch_end()
        self.log("test/answer", 42.0)


leaky: Callable[[], nn.Module] = partial(nn.LeakyReLU, 0.2)


class WidthNet(nn.Module):
    """A network whose default activation has no form in YAML."""

    def __init__(self, width: int = 4, act: Callable[[], nn.Module] = leaky) -> None:
        super().__init__()
        self.conv, self.act, self.fc = nn.Conv2d(3, width, 3), act(), nn.Linear(width, 1000)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.act(self.conv(images)).mean((2, 3)))


class SystemNet(WidthNet):
    """A network with a default that a checkpoint must not name."""

    def __init__(self, width: int = 4, clock: Any = time.sleep) -> None:
        super().__init__(width)


def wide_net(**kwargs: Any) -> WidthNet:
    """A function with another default than the class that it passes its arguments to."""
    kwargs.setdefault("width", 12)
    return WidthNet(**kwargs)
