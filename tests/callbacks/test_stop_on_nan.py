"""A loss that is not finite stops the run, names its images, and is in no checkpoint."""

from __future__ import annotations

import csv
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins import MixedPrecision

from resnet_pl.callbacks import BestCheckpoint, LastCheckpoint
from resnet_pl.classifier import ImageClassifier
from resnet_pl.data.loader import Batch
from resnet_pl.optim import Schedule
from resnet_pl.utils import DivergenceError
from tests.tiny import Tiny, classifier, optimizer, trainer


class Poisoned(Tiny):
    """Batches, by epoch and number, whose images are NaN."""

    def __init__(self, poisoned: set[tuple[int, int]] = frozenset(), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.poisoned = poisoned

    def augment(self, batch: Batch) -> Batch:
        batch = super().augment(batch)
        bad = (batch.epoch, batch.batch_idx) in self.poisoned
        return batch._replace(images=batch.images * math.nan) if bad else batch


def fitted(data: Tiny, *, folder: Path | None = None, **kwargs: Any) -> ImageClassifier:
    own = {"optimizer": optimizer(lr=0.05, momentum=0.9, weight_decay=0.01), "schedule": Schedule("constant")}
    module = classifier(**own)
    settings = {"max_epochs": 2, "limit_val_batches": 0, "default_root_dir": folder} | kwargs
    trainer(**settings).fit(module, datamodule=data)
    return module


class Spoil(Callback):
    """Makes the weights infinite after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if trainer.global_step == self.step:
            with torch.no_grad():
                pl_module.backbone.conv1.weight.fill_(math.inf)


def kept(folder: Path, data: Tiny, *callbacks: Callback, every: int | None = None, **kwargs: Any) -> str:
    """Trains until it stops itself; returns what it says."""
    own = [*callbacks, BestCheckpoint(folder), LastCheckpoint(folder, every_n_steps=every)]
    with pytest.raises(DivergenceError) as error:
        settings = {"max_epochs": 3, "folder": folder, "enable_checkpointing": True} | kwargs
        fitted(data, callbacks=own, **settings)
    return str(error.value)


@pytest.mark.parametrize(("every", "step"), [(None, 4), (1, 6), (2, 6)])
def test_the_last_checkpoint_is_from_before_it_went_wrong(tmp_path: Path, every: int | None, step: int) -> None:
    # Logging steps come too late here to notice anything.
    said = kept(tmp_path, Poisoned({(1, 2)}), every=every, log_every_n_steps=100)
    assert "the training loss is nan at step" in said and f"the last good checkpoint is {tmp_path}/last.ckpt" in said
    assert "learning rate 0.05" in said and len(said.splitlines()) == 2
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == step and all(value.isfinite().all() for value in saved["state_dict"].values())


def test_the_first_step_and_its_images_are_told(tmp_path: Path) -> None:
    data = Poisoned({(0, 1)})
    said = kept(tmp_path, data, log_every_n_steps=3)
    batch = next(batch for batch in data.train_dataloader() if batch.batch_idx == 1)
    names = [data.splits["train"].names[i] for i in batch.indices]
    path = tmp_path / "bad_batches.csv"
    assert f"loss is nan at step 1, learning rate 0.05, images {names[0]} and 9 more, see {path}\n" in said
    assert "there is no checkpoint yet" in said
    with path.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["step"], row["loss"], row["images"].split(";")) == ("1", "nan", names)


def test_no_checkpoint_is_kept_of_weights_that_are_not_finite(tmp_path: Path) -> None:
    said = kept(tmp_path, Tiny(), Spoil(4), log_every_n_steps=100, limit_val_batches=0)
    assert "the weights are not finite" in said and not (tmp_path / "last.ckpt").exists()


class Overflow(Callback):
    """Gradients that no loss scale is small enough for."""

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        pl_module.backbone.fc.weight.grad.fill_(math.inf)


def test_half_precisions_overflow_is_the_scalers_until_no_step_is_taken(tmp_path: Path) -> None:
    def half() -> MixedPrecision:
        return MixedPrecision("16-mixed", "cpu")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # The first steps overflow, the scale falls, and nothing stops or is left out.
        plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**40))
        module = fitted(Tiny(), plugins=[plugin], log_every_n_steps=1, max_epochs=10)
        assert plugin.scaler.get_scale() < 2.0**30 and all(p.isfinite().all() for p in module.parameters())
        said = kept(tmp_path, Tiny(), Overflow(), plugins=[half()], log_every_n_steps=1, max_epochs=10)
        assert "gradients overflow half precision at every step" in said and "bf16-mixed" in said
        said = kept(tmp_path / "loss", Poisoned({(0, 0)}), plugins=[half()], log_every_n_steps=1)
    assert "the training loss is nan at step 0" in said and "--trainer.precision bf16-mixed" in said
