"""A checkpoint that version 0.1.0 wrote in the middle of a run resumes, is tested and predicts.

`old_checkpoint/` holds the checkpoint of step 30 of 60 of a run on the digits, and the weights and metrics.csv of that
run's end.
"""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch

from resnet_pl.cli.main import main

OLD = Path(__file__).parent / "old_checkpoint"


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in a run folder as it was left."""
    run = tmp_path / "runs/old/version_0"
    (run / "checkpoints").mkdir(parents=True)
    shutil.copy(OLD / "middle.ckpt", run / "checkpoints/last.ckpt")
    (run / "config.yaml").write_text("model: {backbone: resnet18}\n")
    with (OLD / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.reader(file) if row[1] == "step" or int(row[1]) < 35]
    with (run / "metrics.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    monkeypatch.chdir(tmp_path)
    return run / "checkpoints/last.ckpt"


def losses(path: Path) -> dict[int, tuple[float, float]]:
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    return {int(row["step"]): (float(row["train/loss"]), float(row["train/top1"])) for row in rows}


def test_it_resumes_as_if_nothing_had_changed(checkpoint: Path) -> None:
    assert main(["fit", "--ckpt_path", "last"]) == 0
    end = torch.load(checkpoint, weights_only=True)
    assert end["global_step"] == 60 and end["resnet_pl"]["format"] == 3
    found, expected = losses(checkpoint.parents[1] / "metrics.csv"), losses(OLD / "metrics.csv")
    assert found.keys() == expected.keys()
    for step, values in expected.items():
        assert found[step] == pytest.approx(values, rel=1e-4), step
    for name, value in torch.load(OLD / "end.pt", weights_only=True).items():
        torch.testing.assert_close(end["state_dict"][name], value, rtol=1e-3, atol=1e-5)


def test_it_is_tested_and_predicts(checkpoint: Path) -> None:
    assert main(["test", "--ckpt_path", str(checkpoint)]) == 0
    results = json.loads((checkpoint.parents[1] / "results.json").read_text())
    assert results["images"] == 360 and results["top1"] == pytest.approx(38 / 360, abs=1.5 / 360)
    assert main(["predict", "--ckpt_path", str(checkpoint)]) == 0
    with (checkpoint.parents[1] / "predictions.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 360
