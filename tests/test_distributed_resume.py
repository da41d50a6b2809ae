"""Two processes agree on the end of a warm-up by training error, and go on exactly, dropout included."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from tests.test_distributed import PROJECT, run

# A net with dropout, and what each process sees of its own batches.
CODE = """
import json
from lightning.pytorch import Callback
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(),
                         nn.Linear(392, 10))

class Watch(Callback):
    def __init__(self):
        self.rows = []
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.rows.append([trainer.optimizers[0].param_groups[0]["lr"], 0, len(batch.labels)])
    def on_before_backward(self, trainer, module, loss):
        self.rows[-1][1] = module._wrong.tolist()[0] if module._wrong is not None else -1
    def on_train_batch_end(self, trainer, module, *args):
        if trainer.global_step == 75:
            trainer.save_checkpoint("middle.ckpt")
    def on_train_end(self, trainer, module):
        with open(f"rank{trainer.global_rank}.json", "w") as file:
            json.dump(self.rows, file)
"""


@pytest.mark.process
def test_two_processes_warm_up_and_go_on(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(CODE)
    config = {
        "model": {"backbone": "own.Net", "optimizer": {"lr": 0.05}, "base_batch_size": None, "label_smoothing": 0},
        "data": {"init_args": {"batch_size": 10}},
        "trainer": {"callbacks": ["own.Watch"], "devices": 2, "limit_train_batches": 60, "limit_val_batches": 1},
    }
    config["model"]["schedule"] = {"shape": "constant", "warmup": 0, "warmup_error": 0.5}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(config | {"dashboard": {"images": 0, "graph": False}}))
    argv = ["fit", "--config", str(PROJECT / "configs/digits.yaml"), "--config", "small.yaml"]
    run(tmp_path, *argv, "--trainer.max_epochs", "3")
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    rates = [[rate for rate, _, _ in rows] for rows in ranks]
    end = rates[0].index(0.05)
    assert rates[0] == rates[1] == pytest.approx([0.005] * end + [0.05] * (180 - end))
    # The end is where the error of both processes' images together says, which is not each one's own.
    errors = [(a[1] + b[1]) / (a[2] + b[2]) for a, b in zip(*ranks, strict=True)]
    means = {step: sum(errors[step - 100 : step]) / 100 for step in range(100, end + 1)}
    assert end > 100 and next(step for step, mean in means.items() if mean < 0.5) == end

    # From the middle of an epoch and of the warm-up, in a folder of its own.
    run(tmp_path, "fit", "--ckpt_path", "middle.ckpt")
    whole, parted = (
        torch.load(tmp_path / f"runs/digits/version_{version}/checkpoints/last.ckpt", weights_only=True)
        for version in (0, 1)
    )
    assert parted["global_step"] == whole["global_step"] == 180
    assert all(torch.equal(value, parted["state_dict"][name]) for name, value in whole["state_dict"].items())
