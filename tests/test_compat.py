"""What other libraries need of us is still needed: an entry of resnet_pl/_compat.py whose test fails can be removed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from resnet_pl import ImageClassifier
from resnet_pl._compat import INSTANTIATOR, begin_next_epoch
from resnet_pl.models import ResNet
from tests.tiny import Tiny, classifier, trainer


def loads(path: Path) -> bool:
    """Whether a checkpoint becomes a network that classifies."""
    try:
        net = ImageClassifier.load_from_checkpoint(path, map_location="cpu").eval()
        return net(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)).shape == (1, 4)
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
def test_what_is_named_exists(entry: str) -> None:
    module, _, name = entry.rpartition(".")
    assert callable(getattr(__import__(module, fromlist=[name]), name))


class Seen(Callback):
    """Keeps the batches that are trained on; saves a checkpoint at the end of the first epoch."""

    def __init__(self, path: Path, mended: bool) -> None:
        self.path, self.mended, self.batches = path, mended, list[tuple[int, int]]()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if self.mended:
            begin_next_epoch(trainer)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append((batch.epoch, batch.batch_idx))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.global_step == 4:
            trainer.save_checkpoint(self.path)


def test_lightning_does_not_begin_the_next_epoch_by_itself(tmp_path: Path) -> None:
    found = {}
    for mended in (False, True):
        path, steps = tmp_path / f"{mended}.ckpt", {"max_steps": 8, "max_epochs": -1, "enable_checkpointing": False}
        whole, resumed = Seen(path, mended), Seen(path, mended)
        trainer(callbacks=[whole], **steps).fit(classifier(), datamodule=Tiny())
        trainer(callbacks=[resumed], **steps).fit(classifier(), datamodule=Tiny(), ckpt_path=path, weights_only=True)
        found[mended] = whole.batches[4:] == resumed.batches
    assert found[True]
    assert not found[False], "Lightning resumes at the end of an epoch: remove begin_next_epoch"
