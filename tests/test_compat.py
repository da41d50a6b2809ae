"""Each workaround in resnet_pl/_compat.py is still needed; one whose test fails can be removed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from resnet_pl import ImageClassifier
from resnet_pl._compat import INSTANTIATOR, begin_next_epoch, trains_in_copies
from resnet_pl.models import ResNet
from tests.tiny import Tiny, classifier, trainer


def loads(path: Path) -> bool:
    """Whether `load_from_checkpoint` returns a working model."""
    try:
        model = ImageClassifier.load_from_checkpoint(path, map_location="cpu").eval()
        return model(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)).shape == (1, 4)
    except Exception:
        return False


def test_load_from_checkpoint_needs_the_instantiator(tmp_path: Path) -> None:
    fitted = trainer(max_steps=1)
    fitted.fit(ImageClassifier(ResNet("basic", [1, 1, 1, 1], width=8)), datamodule=Tiny())
    fitted.save_checkpoint(tmp_path / "with.ckpt")
    assert loads(tmp_path / "with.ckpt")
    checkpoint = torch.load(tmp_path / "with.ckpt", weights_only=True)
    assert INSTANTIATOR.items() <= checkpoint["hyper_parameters"].items()
    for key in INSTANTIATOR:
        del checkpoint["hyper_parameters"][key]
    torch.save(checkpoint, tmp_path / "without.ckpt")
    assert not loads(tmp_path / "without.ckpt"), "load_from_checkpoint works without INSTANTIATOR: remove it"


@pytest.mark.parametrize("entry", INSTANTIATOR.values())
def test_the_instantiator_exists(entry: str) -> None:
    module, _, name = entry.rpartition(".")
    assert callable(getattr(__import__(module, fromlist=[name]), name))


class BatchRecorder(Callback):
    """Records the training batches; saves a checkpoint at the end of the first epoch."""

    def __init__(self, path: Path, with_workaround: bool) -> None:
        self.path, self.with_workaround, self.batches = path, with_workaround, list[tuple[int, int]]()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if self.with_workaround:
            begin_next_epoch(trainer)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append((batch.epoch, batch.batch_idx))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.global_step == 4:
            trainer.save_checkpoint(self.path)


def test_lightning_does_not_begin_the_next_epoch_without_the_workaround(tmp_path: Path) -> None:
    resumes_exactly = {}
    for with_workaround in (False, True):
        path, steps = (
            tmp_path / f"{with_workaround}.ckpt",
            {"max_steps": 8, "max_epochs": -1, "enable_checkpointing": False},
        )
        uninterrupted, resumed = BatchRecorder(path, with_workaround), BatchRecorder(path, with_workaround)
        trainer(callbacks=[uninterrupted], **steps).fit(classifier(), datamodule=Tiny())
        trainer(callbacks=[resumed], **steps).fit(classifier(), datamodule=Tiny(), ckpt_path=path, weights_only=True)
        resumes_exactly[with_workaround] = uninterrupted.batches[4:] == resumed.batches
    assert resumes_exactly[True]
    assert not resumes_exactly[False], "Lightning resumes at the end of an epoch: remove begin_next_epoch"


@pytest.mark.parametrize(
    ("strategy", "copies"), [("ddp_fork", True), ("ddp_notebook", True), ("ddp_spawn", True), ("ddp", False)]
)
def test_strategies_do_not_show_in_public_whether_they_train_in_copies(strategy: str, copies: bool) -> None:
    made = trainer(strategy=strategy, devices=2)
    assert trains_in_copies(made) == copies
    public = {name for name in vars(type(made.strategy)) if not name.startswith("_")}
    assert not [name for name in public if "start_method" in name], "use it in trains_in_copies"
