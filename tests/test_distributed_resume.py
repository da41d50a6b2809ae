"""Two processes end a warm-up by training error in the same step, and resume exactly, dropout included."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from tests.cli.commands import rows
from tests.test_distributed import PROJECT, run

# A network with dropout, and a callback that records learning rate and errors of each process.
CODE = """
import json
from lightning.pytorch.callbacks import Checkpoint
from torch import nn

class SmallCNN(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(),
                         nn.Linear(392, 10))

class Record(Checkpoint):  # Lightning calls checkpoint callbacks last
    def __init__(self):
        self.rows = []
    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.lr = optimizer.param_groups[0]["lr"]
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        errors = (outputs["logits"].argmax(1) != batch.labels).sum().item()
        self.rows.append([self.lr, errors, len(batch.labels)])
        if trainer.global_step == 75:
            trainer.save_checkpoint("middle.ckpt")
    def on_train_end(self, trainer, module):
        with open(f"rank{trainer.global_rank}.json", "w") as file:
            json.dump(self.rows, file)
"""


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.timeout(1200)
def test_two_processes_warm_up_and_resume(tmp_path: Path) -> None:
    (tmp_path / "custom.py").write_text(CODE)
    warmup = {"class_path": "ErrorWarmup", "init_args": {"error": 0.5}}
    config = {
        "model": {
            "backbone": "custom.SmallCNN",
            "optimizer": {"lr": 0.05},
            "base_batch_size": None,
            "label_smoothing": 0,
        },
        "data": {"init_args": {"batch_size": 10}},
        "trainer": {"devices": 2, "limit_train_batches": 60, "limit_val_batches": 1, "log_every_n_steps": 1},
        "dashboard": {"images": 0, "graph": False},
    }
    config["model"]["schedule"] = {"shape": "constant", "warmup": 0}
    config["trainer"]["callbacks"] = [warmup, "custom.Record"]
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(config))
    argv = ["fit", "--config", str(PROJECT / "configs/digits.yaml"), "--config", "small.yaml"]
    run(tmp_path, *argv, "--trainer.max_epochs", "3")
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    lrs = [[lr for lr, _, _ in records] for records in ranks]
    end = lrs[0].index(0.05)
    assert lrs[0] == lrs[1] == pytest.approx([0.005] * end + [0.05] * (180 - end))
    # The error is averaged over the images of both processes.
    errors = [(a[1] + b[1]) / (a[2] + b[2]) for a, b in zip(*ranks, strict=True)]
    means = {step: sum(errors[step - 100 : step]) / 100 for step in range(100, end + 1)}
    assert end > 100 and next(step for step, mean in means.items() if mean < 0.5) == end

    # In the middle of an epoch and of the warm-up, in a new run folder.
    run(tmp_path, "fit", "--ckpt_path", "middle.ckpt")
    uninterrupted, resumed = (tmp_path / f"runs/digits/version_{version}" for version in (0, 1))
    saved = [torch.load(folder / "checkpoints/last.ckpt", weights_only=True) for folder in (uninterrupted, resumed)]
    assert [checkpoint["global_step"] for checkpoint in saved] == [180, 180]
    expected, weights = (checkpoint["state_dict"] for checkpoint in saved)
    assert all(torch.equal(value, weights[name]) for name, value in expected.items())
    logged = [
        [without_times(row) for row in rows(folder) if int(row["step"]) >= 75] for folder in (uninterrupted, resumed)
    ]
    assert len(logged[0]) > 105 and logged[0] == logged[1]


def without_times(row: dict[str, str]) -> dict[str, str]:
    """A row of metrics.csv without the columns of times."""
    return {name: value for name, value in row.items() if "second" not in name}
