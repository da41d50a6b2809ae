"""`doctor`: short measurements of a training that name the bottleneck, suggest options and leave nothing behind."""

from __future__ import annotations

import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.accelerators import CPUAccelerator
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2

from resnet_pl.callbacks.timing import BatchTimer
from resnet_pl.cli import doctor, parser
from resnet_pl.cli.doctor import bottleneck
from resnet_pl.command_line import CommandLine
from resnet_pl.reports.range_plot import suggest_rate
from tests.callbacks.test_resources import Limited
from tests.cli.commands import BARE, SMALL, printed, refused

FAST = ["--seconds", 0.5, "--trainer.accelerator", "cpu"]


class Sleep(v2.Transform):
    """Takes 10 ms per image."""

    def transform(self, inpt: Any, params: Any) -> Any:
        time.sleep(0.01)
        return inpt


class QuickNet(nn.Sequential):
    """A linear network."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(3 * 256, 10))


class SlowNet(QuickNet):
    """Takes 20 ms per batch."""

    def forward(self, images: Tensor) -> Tensor:
        time.sleep(0.02)
        return super().forward(images)


class Quadratic(LightningModule):
    """A convex loss with curvature 10: gradient descent is stable below a learning rate of 2 / 10.

    Args:
        lr: learning rate.
    """

    def __init__(self, lr: float = 0.001) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.weights = nn.Parameter(torch.full((3, 8, 8), 2.0))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return 5 * (self.weights - batch[0]).square().sum((1, 2, 3)).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.hparams["lr"])


class TrainingOnly(LightningDataModule):
    """Images for the training alone."""

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(torch.rand(60, 3, 8, 8)), batch_size=10)


def rows(text: str) -> dict[str, str]:
    """The rows of the page by name, each with the lines that belong to it."""
    found: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        name, rest = line[:10].strip() or name, line[10:]
        found[name] = f"{found[name]}\n{rest}" if name in found else rest
    return found


def test_a_page_and_a_plot_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    page = rows(printed(capsys, "doctor", *SMALL, *FAST))
    assert {"model", "data", "training", "device", "speed", "run", "memory", "lr"} <= page.keys()
    assert re.search(r"data loading alone [\d,]+ images/s, network alone [\d,.]+ images/s, together", page["speed"])
    assert "The network limits the training" in page["speed"]  # the data is in memory
    assert re.fullmatch(
        r"\d:\d\d:\d\d = \S+ training \+ \S+ validation \+ \S+ checkpoints and logs \+ \S+ start", page["run"]
    )
    assert "GB of memory at its peak; checkpoints 1 MB" in page["memory"]
    assert "largest batch size: it needs a GPU" in page["skipped"]
    assert "0.1 is configured; the range test suggests" in page["lr"] and "--seconds 180" in page["skipped"]
    assert "--model.channels_last false" in page["suggest"] + page.get("tried", "")
    with Image.open("doctor/learning_rate.png") as image:
        assert image.width > 500
    assert [path.name for path in Path().rglob("*")] == ["doctor", "learning_rate.png"]


def test_slow_data_is_named_and_workers_are_suggested(capsys: pytest.CaptureFixture[str]) -> None:
    words = [*BARE, "--model.backbone", f"{__name__}.QuickNet", "--data.transforms", f"[{__name__}.Sleep]"]
    page = rows(printed(capsys, "doctor", *words, "--data.batch_size", 8, "--data.num_workers", 0, *FAST))
    assert "Data loading limits the training: the network alone is" in page["speed"]
    assert "--data.num_workers 2: " in page["suggest"] and "more images/s" in page["suggest"]


@pytest.mark.slow
def test_a_slow_network_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    page = rows(printed(capsys, "doctor", *BARE, "--model.backbone", f"{__name__}.SlowNet", *FAST))
    assert "The network limits the training" in page["speed"]


def test_the_suggested_rate_of_a_convex_problem_is_stable(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", f"{__name__}.Quadratic", "--data", "tests.own.PlainData", "--trainer.max_epochs", 3]
    page = rows(printed(capsys, "doctor", *words, *FAST))
    option, rate = page["suggest"].splitlines()[0].split()
    assert option == "--model.lr" and 0.005 <= float(rate) < 0.2
    too_large = rows(printed(capsys, "doctor", *words, "--model.lr", 1, *FAST))["suggest"]
    # The number of steps of a range test depends on the speed of the machine, and the rate a little on it.
    lower = re.search(r"--model\.lr (\S+), or a longer", too_large)
    assert lower and 0.005 <= float(lower[1]) < 0.2


@pytest.mark.parametrize(
    "words",
    [
        ["--config", "missing.yaml"],
        [*SMALL, "--data.batchsize", 3],
        [*SMALL, "--model.backbone.depth", 9],
        [*SMALL, "--checkpoint.monitor", "val/nothing"],
        [*SMALL, "--trainer.callbacks", "BackboneFinetuning"],
        ["--data", "ImageFolder", "--data.root", "nowhere", "--model.backbone", "resnet18"],
    ],
    ids=lambda words: str(words[-2:]),
)
def test_an_error_has_the_message_of_fit(words: list[object], capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "doctor", *words) == refused(capsys, "fit", *words)
    assert not any(path.is_dir() for path in Path().iterdir())


def test_a_duration_between_validations_is_for_one_process(capsys: pytest.CaptureFixture[str]) -> None:
    words = [*SMALL, "--trainer.val_check_interval", "00:00:10:00", "--trainer.accelerator", "cpu"]
    assert "clocks" in refused(capsys, "fit", *words, "--trainer.devices", 2)


def test_one_of_several_devices_is_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CPUAccelerator, "auto_device_count", staticmethod(lambda: 2))
    assert "one of 2 devices" in printed(capsys, "doctor", *SMALL, *FAST)


def test_what_doctor_does_not_measure(capsys: pytest.CaptureFixture[str]) -> None:
    devices = ["--trainer.accelerator", "cpu", "--trainer.devices", 2]
    assert "--trainer.devices 1" in refused(capsys, "doctor", *SMALL, *devices)
    Path("x.ckpt").touch()
    assert "--model.weights" in refused(capsys, "doctor", *SMALL, "--ckpt_path", "x.ckpt")
    assert "doctor needs a configuration" in refused(capsys, "doctor")


def test_the_largest_batch_that_fits(capsys: pytest.CaptureFixture[str]) -> None:
    words = [*BARE, "--model.backbone", f"{Limited.__module__}.Limited", "--model.backbone.limit", 200]
    command_line = CommandLine([str(word) for word in ["doctor", *words, *FAST]])
    found = doctor.Doctor(parser.ProjectCLI(command_line, doctor))
    found.trials.fit(BatchTimer(1, 1, stops=True))
    before = {name: value.clone() for name, value in found.cli.model.state_dict().items()}
    _, batch = found.trials.loader_speed(0)
    gpu: Any = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cuda")))
    found.print_batch_size(gpu, batch)
    page = rows(capsys.readouterr().out)
    assert "128 images in a batch" in page["fits"] and "--model.base_batch_size 64" in page["fits"]
    assert found.trials.largest_batch(batch, 65) == 128
    after = found.cli.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items()), "a trial changes the weights"


@pytest.mark.parametrize(
    ("loader", "step", "both", "words"),
    [
        (100, 50, 48, "The network limits"),
        (20, 50, 19, "Data loading limits the training: the network alone is 2.6 × as fast"),
        (60, 50, 30, "share the CPU cores"),
    ],
)
def test_the_bottleneck(loader: float, step: float, both: float, words: str) -> None:
    assert words in bottleneck(loader, step, both)[1]


def test_the_rate_that_a_range_test_suggests() -> None:
    rates = np.geomspace(1e-5, 10, 100)
    noise = 0.01 * np.random.default_rng(0).normal(size=100)
    # The loss decreases up to a rate of 0.4 and then grows.
    losses = 2.3 - np.clip(np.log10(rates / 1e-3), 0, np.log10(400)) / 3 + 5 * np.clip(rates - 0.4, 0, None) + noise
    assert suggest_rate(rates, losses) == pytest.approx((0.09, 0.4), rel=0.3)
    assert suggest_rate(rates, [*losses[:70], *[np.nan] * 30]) is not None
    assert suggest_rate(rates, 2.3 + noise) is None and suggest_rate(rates[:3], [2.3, 2.2, 2.1]) is None


def test_data_without_validation(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", f"{__name__}.Quadratic", "--data", f"{__name__}.TrainingOnly", "--trainer.max_epochs", 3]
    assert "run" in rows(printed(capsys, "doctor", *words, *FAST))
