"""Whitening initialization of the first convolution."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.nn import functional as F

from resnet_pl.callbacks import WhiteningInit
from resnet_pl.utils import UserError
from tests.tiny import Tiny, classifier, trainer


class FilterRecorder(Callback):
    """Records the filters of the first convolution before the first step."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        stem = next(module for module in pl_module.backbone.modules() if isinstance(module, nn.Conv2d))
        self.filters = stem.weight.detach().clone()


def initial_filters(module: nn.Module, data: Tiny, **kwargs: object) -> Tensor:
    recorder = FilterRecorder()
    trainer(callbacks=[WhiteningInit(60), recorder], max_steps=1).fit(module, datamodule=data, **kwargs)
    return recorder.filters


def test_the_outputs_are_uncorrelated_and_have_unit_variance() -> None:
    module, data = classifier(), Tiny()
    before = module.backbone.conv1.weight.detach().clone()
    filters = initial_filters(module, data)
    assert filters.shape == (16, 3, 3, 3) and not torch.equal(filters, before)
    images = module.normalize(data.splits["train"].images)
    patches = F.unfold(images, 3, stride=3).transpose(0, 1).flatten(1)
    covariance = torch.cov(filters[:8].flatten(1) @ patches, correction=0)
    torch.testing.assert_close(covariance, torch.eye(8), rtol=1e-3, atol=1e-3)
    assert torch.equal(filters[8:], -filters[:8])


def test_remaining_filters_keep_their_initialization() -> None:
    module = classifier(
        backbone=nn.Sequential(nn.Conv2d(3, 9, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(9, 4))
    )
    before = module.backbone[0].weight.detach().clone()
    after = initial_filters(module, Tiny())
    assert torch.equal(after[6:], before[6:]) and not torch.equal(after[:6], before[:6])


def test_a_resumed_run_keeps_its_filters(tmp_path: Path) -> None:
    run = trainer(tmp_path, callbacks=[WhiteningInit(60)], max_steps=2)
    module = classifier()
    run.fit(module, datamodule=Tiny())
    run.save_checkpoint(tmp_path / "a.ckpt", weights_only=False)
    resumed, recorder = classifier(), FilterRecorder()
    again = trainer(callbacks=[WhiteningInit(60), recorder], max_epochs=2)
    again.fit(resumed, datamodule=Tiny(), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert torch.equal(recorder.filters, module.backbone.conv1.weight)


def test_pretrained_weights_are_not_overwritten() -> None:
    module = classifier()
    module.weights = "IMAGENET1K_V1"
    with pytest.raises(UserError, match=r"--model.weights null"):
        WhiteningInit().on_fit_start(trainer(), module)


def test_a_model_without_convolution_is_refused() -> None:
    module = classifier(backbone=nn.Sequential(nn.Flatten(), nn.Linear(192, 4)))
    with pytest.raises(UserError, match="WhiteningInit: the backbone has no first convolution"):
        trainer(callbacks=[WhiteningInit()]).fit(module, datamodule=Tiny())
