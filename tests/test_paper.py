"""Objects that the command line builds from configs/paper/, compared with the paper."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from scipy.stats import chi2
from torch import nn

from resnet_pl import ImageClassifier
from resnet_pl.callbacks import ErrorWarmup
from resnet_pl.cli import main
from resnet_pl.data import CIFAR10
from resnet_pl.data.batch import Batch
from resnet_pl.data.batch_transforms import PCAColor, RandomFlip
from resnet_pl.data.crops import ScaleCrop
from resnet_pl.reports.results import read_results
from tests.conftest import write_photos

PAPER = Path(__file__).parent.parent / "configs" / "paper"
# `get_lr` is called outside the training loop.
pytestmark = pytest.mark.filterwarnings("ignore:To get the last learning rate computed by the scheduler")
# Probability of a false alarm with another seed: one in a million.
ODDS = 1e-6


class Inspect(Callback):
    """Records the objects of a run just before its first step, and stops it there."""

    trainer: ClassVar[Trainer]
    model: ClassVar[ImageClassifier]

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        Inspect.trainer, Inspect.model, trainer.should_stop = trainer, pl_module, True


class Recipe:
    """A run of a recipe just before its first step."""

    def __init__(self, folder: Path, names: list[str], *options: object) -> None:
        files = [word for name in names for word in ("--config", str(PAPER / f"{name}.yaml"))]
        callback = ["--trainer.callbacks+=tests.test_paper.Inspect", "--trainer.default_root_dir", str(folder)]
        assert main.main(["fit", *files, *callback, "--trainer.logger", "false", *map(str, options)]) == 0
        self.trainer, self.model, self.data = Inspect.trainer, Inspect.model, Inspect.trainer.datamodule
        self.schedule = self.trainer.lr_scheduler_configs[0].scheduler

    def lr(self, iteration: int) -> float:
        """Returns the learning rate of an iteration, counted from 0."""
        self.schedule.last_epoch = iteration
        return self.schedule.get_lr()[0]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes a CIFAR-10 of 300 training images, brighter to the right and the bottom: the mean has no symmetry."""
    folder, rng = tmp_path_factory.mktemp("cifar"), np.random.default_rng(0)
    gradient = np.add.outer(np.arange(32), 3 * np.arange(32))[:, :, None]
    arrays = {}
    for part, count in (("train", 300), ("test", 20)):
        arrays[f"x_{part}"] = (gradient + rng.integers(0, 100, (count, 32, 32, 3))).astype(np.uint8)
        arrays[f"y_{part}"] = np.arange(count) % 10
    np.savez(folder / CIFAR10.npz, **arrays)
    return folder


@pytest.fixture(scope="module")
def cifar(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return Recipe(tmp_path_factory.mktemp("runs"), ["cifar10"], "--data.root", images, "--data.val_split", 20)


# ------------------------------------------------------------------------------------ CIFAR-10, §4.2
# Drops at 32k and 48k, and the end at 64k.
LEARNING_RATES = [
    (0, 0.1),
    (1, 0.1),
    (400, 0.1),
    (31_999, 0.1),
    (32_000, 0.01),
    (47_999, 0.01),
    (48_000, 0.001),
    (63_999, 0.001),
]


@pytest.mark.parametrize(("iteration", "lr"), LEARNING_RATES)
def test_learning_rate(iteration: int, lr: float, cifar: Recipe) -> None:
    assert cifar.lr(iteration) == pytest.approx(lr, rel=1e-12)


def test_number_of_training_images(cifar: Recipe) -> None:
    loader = cifar.data.train_dataloader()
    assert {len(batch.indices) for batch in loader} == {128} == {cifar.model.effective_batch_size}
    assert cifar.trainer.estimated_stepping_batches * 128 == 8_192_000


def test_max_steps_scales_the_schedule(images: Path, tmp_path: Path) -> None:
    short = Recipe(tmp_path, ["cifar10"], "--data.root", images, "--data.val_split", 20, "--trainer.max_steps", 16_000)
    lrs = [short.lr(i) for i in (7_999, 8_000, 11_999, 12_000)]
    assert lrs == pytest.approx([0.1, 0.01, 0.01, 0.001])
    assert short.trainer.estimated_stepping_batches == 16_000


def test_optimizer(cifar: Recipe) -> None:
    [group] = cifar.trainer.optimizers[0].param_groups
    assert isinstance(cifar.trainer.optimizers[0], torch.optim.SGD)
    assert (group["momentum"], group["weight_decay"], group["nesterov"], group["dampening"]) == (0.9, 1e-4, False, 0)
    assert len(group["params"]) == len(list(cifar.model.parameters()))
    assert isinstance(cifar.model.criterion, nn.CrossEntropyLoss) and cifar.model.criterion.label_smoothing == 0


def check_initialization(model: nn.Module) -> None:
    """Checks He initialization (fan-out) of convolutions without bias, and weight 1 of every BatchNorm."""
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d):
            expected = math.sqrt(2 / (layer.out_channels * layer.kernel_size[0] * layer.kernel_size[1]))
            weight = layer.weight.detach()
            count = weight.numel()
            # Relative error of the standard deviation of n normal numbers: 1 / √(2n); of their mean: 1 / √n.
            assert float(weight.std()) == pytest.approx(expected, rel=5 / math.sqrt(2 * count)), name
            assert abs(float(weight.mean())) < 5 * expected / math.sqrt(count), name
            assert layer.bias is None
        if isinstance(layer, nn.BatchNorm2d):
            assert (layer.weight == 1).all() and (layer.bias == 0).all(), name


def test_initialization(cifar: Recipe) -> None:
    check_initialization(cifar.model.backbone)
    assert sum(p.numel() for p in cifar.model.parameters()) == 269_722


def test_only_the_mean_image_is_subtracted(cifar: Recipe, images: Path) -> None:
    train = cifar.data.splits["train"].images.float() / 255
    assert torch.allclose(cifar.model.normalize.mean.cpu(), train.mean(0), atol=1e-6)
    assert (cifar.model.normalize.std == 1).all()


@pytest.fixture(scope="module")
def channel(cifar: Recipe) -> torch.Tensor:
    """Returns a channel `(8192, 32, 32)` of normalized crops of an image, white on the left, gray on the right."""
    halves = torch.full((1024, 3, 32, 32), 255, dtype=torch.uint8)
    halves[..., 16:] = 100
    labels = torch.zeros(1024, dtype=torch.int64)
    batches = [Batch(halves, labels, torch.arange(1024), epoch, 0) for epoch in range(8)]
    return torch.cat([cifar.model.normalize(cifar.data.augment(batch).images)[:, 0] for batch in batches])


def offsets(channel: torch.Tensor, axis: int) -> torch.Tensor:
    """Returns the position of each crop in the padded image, 0 … 8: padding is zero after normalization."""
    empty = (channel.abs() < 1e-6).all(dim=3 - axis)
    return 4 - empty[:, :16].sum(1) + empty[:, 16:].sum(1)


def is_uniform(counts: torch.Tensor) -> bool:
    """Whether a chi-squared test does not reject a uniform distribution."""
    expected = float(counts.sum()) / len(counts)
    return float(((counts - expected) ** 2 / expected).sum()) < chi2.isf(ODDS, len(counts) - 1)


def test_crops_are_uniform(channel: torch.Tensor) -> None:
    rows, columns = offsets(channel, 1), offsets(channel, 2)
    assert is_uniform(torch.bincount(rows, minlength=9)) and is_uniform(torch.bincount(columns, minlength=9))
    assert is_uniform(torch.bincount(9 * rows + columns, minlength=81)) and int(rows.max()) == int(columns.max()) == 8


def test_half_of_the_images_are_flipped_before_normalization(channel: torch.Tensor, cifar: Recipe) -> None:
    rows, columns = offsets(channel, 1), offsets(channel, 2)
    # The pixel at (16, 4) of the input is at column `columns` of the flipped image, in its left half.
    pixel = channel[:, 16, 4] + cifar.model.normalize.mean[0, rows + 12, columns]
    white, gray = (torch.isclose(pixel, torch.tensor(value), atol=1e-5) for value in (1.0, 100 / 255))
    assert (white | gray).all()
    assert is_uniform(torch.stack([white.sum(), gray.sum()]))


# ------------------------------------------------------------------------------------ 110 layers
def test_110_layers_warm_up_by_training_error(images: Path, tmp_path: Path) -> None:
    recipe = Recipe(tmp_path, ["cifar10-110"], "--data.root", images, "--data.val_split", 20)
    assert sum(p.numel() for p in recipe.model.parameters()) == 1_727_962
    [warmup] = (callback for callback in recipe.trainer.callbacks if isinstance(callback, ErrorWarmup))
    assert warmup.max_iterations == 4000

    def lr(iteration: int, errors: int) -> float:
        """Returns the learning rate of an iteration with this number of errors in 1000 images."""
        optimizer = recipe.trainer.optimizers[0]
        optimizer.param_groups[0]["lr"] = recipe.lr(iteration)
        warmup.on_before_optimizer_step(recipe.trainer, recipe.model, optimizer)
        labels = (torch.arange(1000) < errors).long()
        batch = Batch(torch.empty(0), labels, torch.arange(1000), 0, 0)
        logits = torch.tensor([1.0, 0.0]).expand(1000, 2)
        warmup.on_train_batch_end(recipe.trainer, recipe.model, {"logits": logits}, batch, 0)
        return optimizer.param_groups[0]["lr"]

    warmup_lrs = [lr(iteration, 900 if iteration < 300 else 799) for iteration in range(400)]
    assert warmup_lrs == pytest.approx([0.01] * 400)
    assert [lr(i, 0) for i, _ in LEARNING_RATES[2:]] == pytest.approx([lr for _, lr in LEARNING_RATES[2:]])


# ------------------------------------------------------------------------------------ all 50k images
def test_without_validation_images_the_last_checkpoint_is_tested(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["--model.backbone.depth", "8", "--trainer.max_steps", "5", "--data.root", str(images)]
    assert main.main(["fit", "--config", str(PAPER / "cifar10.yaml"), *small, "--data.val_split", "0"]) == 0
    out = capsys.readouterr().out
    assert "300 train + 20 test images" in out and "validation" not in out and "last.ckpt" in out
    run = Path("runs/paper-cifar10/version_0")
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["last.ckpt"]
    assert "val/" not in (run / "metrics.csv").read_text()
    assert main.main(["test", "--ckpt_path", "best"]) == 2
    error = capsys.readouterr().err
    assert "best.ckpt" in error and "--ckpt_path last" in error
    assert main.main(["test", "--ckpt_path", "last"]) == 0
    results = read_results(run / "results.json")
    assert (results["images"], results["step"], results["checkpoint"]) == (20, 5, "checkpoints/last.ckpt")


# ------------------------------------------------------------------------------------ ImageNet, §3.4
def test_imagenet(tmp_path: Path) -> None:
    for part, count in (("train", 6), ("val", 3)):
        write_photos(tmp_path / "imagenet" / part, classes=("n01440764", "n01443537"), count=count)
    small = ["--data.root", tmp_path / "imagenet", "--data.image_size", 32, "--data.num_workers", 0]
    recipe = Recipe(tmp_path / "runs", ["imagenet"], *small)
    assert recipe.model.effective_batch_size == 256 and recipe.trainer.estimated_stepping_batches == 600_000
    crop, (flip, color) = recipe.data.splits["train"].crop, recipe.data.batch_transforms
    assert isinstance(crop, ScaleCrop) and (crop.min_side, crop.max_side) == (256, 480)
    assert isinstance(flip, RandomFlip) and flip.probability == 0.5
    assert isinstance(color, PCAColor) and color.sigma == 0.1
    assert recipe.model.normalize.mean.shape == (3, 32, 32) and (recipe.model.normalize.std == 1).all()
    assert (recipe.schedule.shape, recipe.schedule.factor, recipe.lr(0)) == ("plateau", 0.1, 0.1)
    [group] = recipe.trainer.optimizers[0].param_groups
    assert (group["momentum"], group["weight_decay"]) == (0.9, 1e-4)
    assert len(group["params"]) == len(list(recipe.model.parameters()))
    check_initialization(recipe.model.backbone)
    # The paper's bottleneck has its stride in the first convolution, torchvision's in the second.
    assert (recipe.model.backbone.layer2[0].conv1.stride, recipe.model.backbone.layer2[0].conv2.stride) == (
        (2, 2),
        (1, 1),
    )
