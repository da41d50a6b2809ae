"""Training steps, timed: by a bare loop, and by `fit` as the command line sets it up."""

from __future__ import annotations

import cProfile
import io
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from itertools import count
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from resnet_pl.classifier import ImageClassifier
from resnet_pl.cli import parser, train
from resnet_pl.cli.parser import ProjectCLI
from resnet_pl.command_line import CommandLine
from resnet_pl.data import ImageDataModule, TensorDataModule
from resnet_pl.data.batch_transforms import PadCrop, RandomFlip
from resnet_pl.data.loader import Batch
from resnet_pl.data.tensors import TensorImageDataset
from resnet_pl.optim import fuse


class Noise(TensorDataModule):
    """Random images: what they show does not change what a step costs.

    Args:
        count: training images.
        augment: whether they are mirrored and cropped as CIFAR's.
    """

    def __init__(self, count: int = 1000, augment: bool = False, **kwargs: Any) -> None:
        transforms = [RandomFlip(), PadCrop(4)] if augment else None
        super().__init__(val_split=0, test_split=0, batch_transforms=transforms, **kwargs)
        self.count = count

    def read(self) -> dict[str, TensorImageDataset]:
        """See `TensorDataModule.read`."""
        self.classes = [str(number) for number in range(10)]
        generator = torch.Generator().manual_seed(0)
        shape = (self.count, 3, self.image_size, self.image_size)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        return {"train": TensorImageDataset(images, torch.arange(self.count) % 10, [str(i) for i in range(self.count)])}


class Nothing(nn.Module):
    """A linear layer: what is left of a step is what every step costs."""

    def __init__(self) -> None:
        super().__init__()
        self.flatten, self.fc = nn.Flatten(), nn.Linear(3 * 8 * 8, 10)

    def forward(self, images: Tensor) -> Tensor:
        """`(N, 3, 8, 8)` to `(N, 10)`."""
        return self.fc(self.flatten(images))


class Evicting(Nothing):
    """A linear layer whose forward pass also drives everything else out of the processor's caches, as large nets do."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = torch.zeros(2**25)

    def forward(self, images: Tensor) -> Tensor:
        """`(N, 3, 8, 8)` to `(N, 10)`."""
        self.memory.add_(1)
        return super().forward(images)


def build(folder: str, *options: str) -> ProjectCLI:
    """`fit` with these options, set up as the command line does and not run: `trainer`, `model` and `datamodule`.

    Its runs go into the folder.
    """
    built: list[ProjectCLI] = []
    subcommand: Any = SimpleNamespace(add_arguments=train.add_arguments, run=built.append)
    parser.run(CommandLine(["fit", *options, "--trainer.default_root_dir", folder]), subcommand)
    return built[0]


class Terminal(io.StringIO):
    """A terminal that nobody looks at, so that the bar is drawn."""

    def isatty(self) -> bool:
        """See io.IOBase."""
        return True


@contextmanager
def unseen_terminal() -> Iterator[None]:
    """Inside the block bars are drawn, and what is printed goes nowhere."""
    with patch.dict(os.environ, TERM="xterm"), redirect_stdout(Terminal()):
        yield


class Stopwatch(Callback):
    """Seconds of the first step, and of so many steps after some that are left out; then a fit that it is in stops.

    Args:
        skip: steps left out, one at least.
        steps: steps timed.
        profile: runs while the time does, between its `enable` and `disable`.
    """

    def __init__(self, skip: int, steps: int, profile: cProfile.Profile | None = None) -> None:
        self.skip, self.steps, self.profile = skip, steps, profile
        self.first = self.seconds = self._start = 0.0
        self._done = 0

    def start(self, device: torch.device) -> None:
        """Before the first step."""
        self._start = now(device)

    def tick(self, device: torch.device) -> bool:
        """After each step; returns whether it was the last."""
        self._done += 1
        if self._done == 1:
            self.first = now(device) - self._start
        if self._done == self.skip:
            self._start = now(device)
            if self.profile is not None:
                self.profile.enable()
        if self._done < self.skip + self.steps:
            return False
        if self.profile is not None:
            self.profile.disable()
        self.seconds = now(device) - self._start
        return True

    @property
    def step(self) -> float:
        """Seconds of a step."""
        return self.seconds / self.steps

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See Lightning's Callback."""
        self.start(pl_module.device)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """See Lightning's Callback."""
        trainer.should_stop = self.tick(pl_module.device)


def now(device: torch.device) -> float:
    """Seconds of a clock, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def fit(built: ProjectCLI, watch: Stopwatch) -> Stopwatch:
    """Trains as the command line does, until the watch stops it."""
    built.trainer.callbacks.append(watch)
    built.trainer.fit(built.model, datamodule=built.datamodule)
    return watch


def ready(built: ProjectCLI) -> None:
    """Prepares net and data as the start of `fit` does, for a loop without a Trainer."""
    built.datamodule.trainer = built.model.trainer = built.trainer
    built.trainer.datamodule = built.datamodule
    built.datamodule.setup("fit")
    built.model.configure_model()
    built.model.to(built.trainer.strategy.root_device)


def bare(
    model: ImageClassifier, data: ImageDataModule, watch: Stopwatch, context: Callable[[], Any] = nullcontext
) -> Stopwatch:
    """The loop that anyone would write, over the same loader and the same net, until the watch has its steps.

    Args:
        model: its forward, loss and optimiser are used, and nothing else.
        data: set up; its loader and batch transforms are used.
        watch: as for `fit`.
        context: what the forward pass runs in.
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
