"""The code in docs/detection.md runs, at small size."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from resnet_pl import ImageClassifier
from resnet_pl.models import ResNet
from tests.tiny import Tiny, trainer

PAGE = Path(__file__).parents[2] / "docs" / "detection.md"


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Returns the variables of the code in the page, which starts from a classifier trained for one step."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    fitted = trainer(max_steps=1)
    fitted.fit(ImageClassifier(ResNet("bottleneck", [1, 1, 1, 1], width=8)), datamodule=Tiny(image_size=32))
    fitted.save_checkpoint("best.ckpt")
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert "min_size=600" in code
    names: dict[str, Any] = {}
    exec(compile(code.replace("min_size=600", "min_size=96, max_size=160"), str(PAGE), "exec"), names)
    return names


def test_the_page_trains_a_detector(page: dict[str, Any]) -> None:
    assert set(page["losses"]) == {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
    assert all(loss.isfinite() and loss > 0 for loss in page["losses"].values())
    backbone = page["backbone"]
    assert all(parameter.grad.any() for parameter in backbone.parameters()), "every layer is trained, down to conv1"
    assert "conv1.weight" in dict(backbone.named_parameters())
    assert [sorted(each) for each in page["detections"]] == [["boxes", "labels", "scores"]] * 2

    # The detector starts from the trained weights, and its BatchNorm statistics do not change in training.
    trained = ImageClassifier.load_from_checkpoint("best.ckpt")
    trained_state, state = trained.backbone.state_dict(), backbone.state_dict()
    assert "bn1.running_mean" in state and trained_state["bn1.running_mean"].any()
    assert all(torch.equal(trained_state[key], value) for key, value in state.items())
    assert not [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    images = torch.randn(1, 3, 64, 96)
    for name, stage in trained.backbone.eval().forward_features(images).items():
        torch.testing.assert_close(backbone.train().forward_features(images)[name], stage, msg=name)

    detector = page["detector"]
    assert torch.tensor(detector.transform.image_mean).equal(trained.normalize.mean.flatten())
    sizes = [tuple(level.shape[2:]) for level in page["pyramid"](images).values()]
    assert sizes == [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
