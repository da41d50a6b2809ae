"""What other libraries need of us is still needed: an entry of resnet_pl/_compat.py whose test fails can be removed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from resnet_pl import ImageClassifier
from resnet_pl._compat import INSTANTIATOR
from resnet_pl.models import ResNet
from tests.tiny import Tiny, trainer


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
