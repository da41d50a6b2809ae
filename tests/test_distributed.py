"""Two processes train, and measure exactly what one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent


def run(folder: Path, *argv: str) -> str:
    """Runs a real command, for Lightning starts the other process from the same command line."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(PROJECT / "cli.py"), *argv]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.process
def test_two_processes(tmp_path: Path) -> None:
    config = str(PROJECT / "configs/digits.yaml")
    small = ["--model.backbone.depth", "8", "--trainer.max_epochs", "2", "--trainer.limit_train_batches", "5"]
    out = run(tmp_path, "fit", "--config", config, *small, "--trainer.devices", "2")
    assert out.count("128 (64 images × 2 processes)") == 1 and out.count("best validation top-1") == 1
    assert [path.name for path in (tmp_path / "runs/digits").iterdir()] == ["version_0"]
    checkpoint = "runs/digits/version_0/checkpoints/best.ckpt"
    results = []
    for devices in ("1", "2"):
        where = ["--trainer.devices", devices, "--output", f"by{devices}", "--data.eval_batch_size", "50"]
        last = checkpoint.replace("best", "last")
        run(tmp_path, "test", "--ensemble", checkpoint, last, "--views", "flip", *where)
        results.append(json.loads((tmp_path / f"by{devices}" / "results.json").read_text()))
    run(tmp_path, "predict", "--ckpt_path", checkpoint, "--trainer.devices", "2", "--output", "by2")
    predictions = (tmp_path / "by2" / "predictions.csv").read_text().splitlines()[1:]
    names = [line.split(",")[0] for line in predictions]
    assert len(names) == len(set(names)) == 360 and names == sorted(names)
    one, two = results
    assert one["per_class"] == two["per_class"] and one["top1"] == two["top1"] and one["images"] == two["images"] == 360
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)
