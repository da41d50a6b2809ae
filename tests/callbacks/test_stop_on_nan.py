"""A NaN or infinite loss aborts the run, is reported with its images, and is never saved."""

from __future__ import annotations

import csv
import math
import warnings
import weakref
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins import MixedPrecision
from torch.utils.data import DataLoader

from resnet_pl.callbacks import BestCheckpoint, LastCheckpoint
from resnet_pl.classifier import ImageClassifier
from resnet_pl.data.batch import Batch
from resnet_pl.optim import Schedule
from resnet_pl.utils import DivergenceError
from tests.tiny import Tiny, classifier, optimizer, trainer


class NaNBatches(Tiny):
    """The images of the given batches, (epoch, position), are NaN."""

    def __init__(self, nan_batches: Collection[tuple[int, int]] = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.nan_batches = nan_batches

    def augment(self, batch: Batch) -> Batch:
        batch = super().augment(batch)
        bad = (batch.epoch, batch.batch_idx) in self.nan_batches
        return batch._replace(images=batch.images * math.nan) if bad else batch


def train(data: Tiny, *, folder: Path | None = None, **kwargs: Any) -> ImageClassifier:
    # The learning rate of step n is 0.005 × (n + 1).
    schedule = Schedule("constant", "iterations", warmup=9)
    module = classifier(optimizer=optimizer(lr=0.05, momentum=0.9, weight_decay=0.01), schedule=schedule)
    settings = {"max_epochs": 2, "limit_val_batches": 0, "default_root_dir": folder} | kwargs
    trainer(**settings).fit(module, datamodule=data)
    return module


class InfiniteWeights(Callback):
    """Sets weights to infinity after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if trainer.global_step == self.step:
            with torch.no_grad():
                pl_module.backbone.conv1.weight.fill_(math.inf)


def message(folder: Path, data: Tiny, *callbacks: Callback, every: int | None = None, **kwargs: Any) -> str:
    """Trains until the run is aborted; returns the error message."""
    own = [*callbacks, BestCheckpoint(folder), LastCheckpoint(folder, every_n_steps=every)]
    with pytest.raises(DivergenceError) as error:
        settings = {"max_epochs": 3, "folder": folder, "enable_checkpointing": True} | kwargs
        train(data, callbacks=own, **settings)
    return str(error.value)


@pytest.mark.parametrize(("every", "step"), [(None, 4), (1, 6), (2, 6)])
def test_the_last_checkpoint_is_finite(tmp_path: Path, every: int | None, step: int) -> None:
    # There is no logging step before a checkpoint is due.
    text = message(tmp_path, NaNBatches({(1, 2)}), every=every, log_every_n_steps=100)
    assert "loss is nan" in text and f"{tmp_path}/last.ckpt" in text
    assert "learning rate 0.035" in text and len(text.splitlines()) == 2
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == step and all(value.isfinite().all() for value in saved["state_dict"].values())


def test_the_message_names_the_first_step_and_its_images(tmp_path: Path) -> None:
    data = NaNBatches({(0, 1)})
    text = message(tmp_path, data, log_every_n_steps=3)
    batch = next(batch for batch in data.train_dataloader() if batch.batch_idx == 1)
    names = [data.splits["train"].names[i] for i in batch.indices]
    path = tmp_path / "bad_batches.csv"
    assert all(word in text for word in ("step 1,", "learning rate 0.01,", f"{names[0]} and 9 more", str(path)))
    assert "no checkpoint" in text
    with path.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["step"], row["loss"], row["images"].split(";")) == ("1", "nan", names)


def test_infinite_weights_are_not_saved(tmp_path: Path) -> None:
    text = message(tmp_path, Tiny(), InfiniteWeights(4), log_every_n_steps=100, limit_val_batches=0)
    assert "weights are not finite" in text and not (tmp_path / "last.ckpt").exists()


class InfiniteVariance(Callback):
    """Sets a statistic of BatchNorm to infinity after a step."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        pl_module.backbone.bn1.running_var.fill_(math.inf)


def test_a_mask_with_infinite_values_is_saved_but_no_infinite_statistics(tmp_path: Path) -> None:
    module = classifier()
    module.backbone.register_buffer("mask", torch.tensor([0, -math.inf]))
    settings = {"limit_train_batches": 1, "limit_val_batches": 0, "enable_checkpointing": True}
    trainer(callbacks=[LastCheckpoint(tmp_path)], **settings).fit(module, datamodule=Tiny())
    assert (tmp_path / "last.ckpt").exists()
    text = message(tmp_path / "other", Tiny(), InfiniteVariance(), log_every_n_steps=100, limit_val_batches=0)
    assert "BatchNorm statistic" in text and not (tmp_path / "other" / "last.ckpt").exists()


def test_batches_of_other_data_are_not_kept_in_memory() -> None:
    batches: list[weakref.ref[torch.Tensor]] = []
    in_memory: list[int] = []

    def collate(labels: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        images = torch.rand(len(labels), 3, 8, 8)
        batches.append(weakref.ref(images))
        return images, torch.tensor(labels)

    class Count(Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            in_memory.append(sum(batch() is not None for batch in batches))

    loader = DataLoader([0, 1, 2, 3] * 5, batch_size=2, collate_fn=collate)
    trainer(callbacks=[Count()], limit_val_batches=0, log_every_n_steps=100).fit(classifier(), loader)
    assert len(in_memory) == 10 and max(in_memory) < 5


class Overflow(Callback):
    """Infinite gradients at any loss scale."""

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        pl_module.backbone.fc.weight.grad.fill_(math.inf)


@pytest.mark.slow
def test_overflow_in_half_precision_is_an_error_only_if_no_step_is_taken(tmp_path: Path) -> None:
    def half() -> MixedPrecision:
        return MixedPrecision("16-mixed", "cpu")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # The first steps overflow and lower the scale: the run continues.
        plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**40))
        module = train(Tiny(), plugins=[plugin], log_every_n_steps=1, max_epochs=10)
        assert plugin.scaler.get_scale() < 2.0**30 and all(p.isfinite().all() for p in module.parameters())
        text = message(tmp_path, Tiny(), Overflow(), plugins=[half()], log_every_n_steps=1, max_epochs=10)
        assert "gradients overflow" in text and "bf16-mixed" in text
        text = message(tmp_path / "loss", NaNBatches({(0, 0)}), plugins=[half()], log_every_n_steps=1)
    assert "loss is nan at step 0" in text and "--trainer.precision bf16-mixed" in text
