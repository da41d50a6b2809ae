"""The paper's recipes, held to the paper."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from resnet_pl.optim import Schedule, ScheduledLR

PAPER = Path(__file__).parent.parent / "configs" / "paper"


@pytest.mark.parametrize(
    ("iteration", "rate"),
    [(0, 0.1), (1, 0.1), (400, 0.1), (31_999, 0.1), (32_000, 0.01), (47_999, 0.01), (48_000, 0.001), (63_999, 0.001)],
)
def test_cifar10_learning_rate(iteration: int, rate: float) -> None:
    config = yaml.safe_load((PAPER / "cifar10.yaml").read_text())
    optimizer = torch.optim.SGD([torch.zeros(1)], **config["model"]["optimizer"]["init_args"])
    schedule = ScheduledLR(optimizer, Schedule(**config["model"]["schedule"]), config["trainer"]["max_steps"], 351)
    assert rate == pytest.approx(optimizer.param_groups[0]["initial_lr"] * schedule.share(iteration))
    assert config["trainer"]["max_steps"] == 64_000 and config["data"]["init_args"]["batch_size"] == 128


def test_cifar10_decay_and_momentum() -> None:
    config = yaml.safe_load((PAPER / "cifar10.yaml").read_text())
    given = config["model"]["optimizer"]["init_args"]
    assert given == {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}
    # The paper decays everything, and smooths no label.
    assert "decay_norm_and_bias" not in config["model"] and "label_smoothing" not in config["model"]
