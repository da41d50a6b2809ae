"""Timed training steps: by a plain PyTorch loop, and by `fit` as the command line sets it up."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from itertools import count
from types import SimpleNamespace
from typing import Any, Protocol
from unittest.mock import patch

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from typing_extensions import override

from resnet_pl.classifier import ImageClassifier
from resnet_pl.cli import parser, train
from resnet_pl.cli.parser import ProjectCLI
from resnet_pl.command_line import CommandLine
from resnet_pl.data import ImageDataModule, TensorDataModule
from resnet_pl.data.batch import Batch
from resnet_pl.data.batch_transforms import PadCrop, RandomFlip
from resnet_pl.data.tensors import TensorImageDataset
from resnet_pl.optim import fuse


class Noise(TensorDataModule):
    """Random images; the time of a step does not depend on their content.

    Args:
        count: training images.
        augment: whether they are flipped and cropped, as for CIFAR-10.
    """

    def __init__(self, count: int = 1000, augment: bool = False, **kwargs: Any) -> None:
        transforms = [RandomFlip(), PadCrop(4)] if augment else None
        super().__init__(val_split=0, test_split=0, batch_transforms=transforms, **kwargs)
        self.count = count

    @override
    def read(self) -> dict[str, TensorImageDataset]:
        self.classes = [str(number) for number in range(10)]
        generator = torch.Generator().manual_seed(0)
        shape = (self.count, 3, self.image_size, self.image_size)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        return {"train": TensorImageDataset(images, torch.arange(self.count) % 10, [str(i) for i in range(self.count)])}


class LinearModel(nn.Module):
    """A linear layer: the time of a step is then almost only the fixed overhead."""

    def __init__(self) -> None:
        super().__init__()
        self.flatten, self.fc = nn.Flatten(), nn.Linear(3 * 8 * 8, 10)

    @override
    def forward(self, images: Tensor) -> Tensor:
        """Maps `(N, 3, 8, 8)` to `(N, 10)`."""
        return self.fc(self.flatten(images))


class CacheEvictingModel(LinearModel):
    """A linear layer whose forward pass also evicts all other data from the CPU's caches, as large networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = torch.zeros(2**25)

    @override
    def forward(self, images: Tensor) -> Tensor:
        """Maps `(N, 3, 8, 8)` to `(N, 10)`."""
        self.memory.add_(1)
        return super().forward(images)


def build_fit(folder: str, *options: str) -> ProjectCLI:
    """Sets up `fit` as the command line does, without running it; returns `trainer`, `model` and `datamodule`.

    Args:
        folder: parent folder of its run.
        *options: options of `fit`.
    """
    built: list[ProjectCLI] = []
    subcommand: Any = SimpleNamespace(**{**vars(train), "run": built.append})
    parser.run(CommandLine(["fit", *options, "--trainer.default_root_dir", folder]), subcommand)
    return built[0]


class FakeTerminal(io.StringIO):
    """A text stream that claims to be a terminal, so that the progress bar is drawn."""

    @override
    def isatty(self) -> bool:
        return True


@contextmanager
def hidden_terminal() -> Iterator[None]:
    """Inside the block, progress bars are drawn and the output is discarded."""
    with patch.dict(os.environ, TERM="xterm"), redirect_stdout(FakeTerminal()):
        yield


class Profiler(Protocol):
    """What `Stopwatch` needs of a profiler; cProfile.Profile has it."""

    def enable(self) -> None:
        """Starts to record."""

    def disable(self) -> None:
        """Stops recording."""


class Stopwatch(Callback):
    """Times the first step, and `steps` steps after `skip` warm-up steps; then it stops the training.

    Args:
        skip: warm-up steps, at least 1.
        steps: timed steps.
        profile: profiler with `enable` and `disable`, active during the timed steps.

    Attributes:
        first: time of the first step, seconds.
        seconds: time of all timed steps, seconds.
    """

    def __init__(self, skip: int, steps: int, profile: Profiler | None = None) -> None:
        self.skip, self.steps, self.profile = skip, steps, profile
        self.first = self.seconds = self._start = 0.0
        self._done = 0

    def start(self, device: torch.device) -> None:
        """Starts the time; to be called before the first step."""
        self._start = synchronized_time(device)

    def tick(self, device: torch.device) -> bool:
        """Counts a step; returns whether it was the last one."""
        self._done += 1
        if self._done == 1:
            self.first = synchronized_time(device) - self._start
        if self._done == self.skip:
            self._start = synchronized_time(device)
            if self.profile is not None:
                self.profile.enable()
        if self._done < self.skip + self.steps:
            return False
        if self.profile is not None:
            self.profile.disable()
        self.seconds = synchronized_time(device) - self._start
        return True

    @property
    def step(self) -> float:
        """Mean time of the timed steps, seconds."""
        return self.seconds / self.steps

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start(pl_module.device)

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        trainer.should_stop = self.tick(pl_module.device)


def synchronized_time(device: torch.device) -> float:
    """Waits until the device has finished its work; returns the time in seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def run_fit(cli: ProjectCLI, watch: Stopwatch) -> Stopwatch:
    """Trains as the command line does, until the stopwatch stops the training."""
    cli.trainer.callbacks.append(watch)
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    return watch


def setup_without_trainer(cli: ProjectCLI) -> None:
    """Prepares model and data as the start of `fit` does, for a loop without a Trainer."""
    cli.datamodule.trainer = cli.model.trainer = cli.trainer
    cli.trainer.datamodule = cli.datamodule
    cli.datamodule.setup("fit")
    cli.model.configure_model()
    cli.model.to(cli.trainer.strategy.root_device)


def run_plain_loop(
    model: ImageClassifier, data: ImageDataModule, watch: Stopwatch, context: Callable[[], Any] = nullcontext
) -> Stopwatch:
    """Trains in a plain PyTorch loop with the same data loader and model, until the stopwatch has its steps.

    Args:
        model: only its forward pass, loss and optimizer are used.
        data: a data module that is set up; its loader and batch transforms are used.
        watch: as for `run_fit`.
        context: context manager of the forward pass, such as autocast.
    """
    device, optimizer, loader = model.device, model.optimizer(list(model.parameters())), data.train_dataloader()
    fuse(optimizer)
    model.train()
    watch.start(device)
    for epoch in count():
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            batch = data.augment(Batch(*(part.to(device) if isinstance(part, Tensor) else part for part in batch)))
            optimizer.zero_grad()
            with context():
                loss = model.criterion(model(batch.images), batch.labels)
            loss.backward()
            optimizer.step()
            if watch.tick(device):
                return watch
