"""Metrics of the user's choice are logged, tested, compared and choose best.ckpt."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from resnet_pl import load_run
from resnet_pl.cli.main import main
from resnet_pl.reports.run_reader import read_metrics, read_run
from tests.test_own_module import SMALL

METRICS = {
    "f1": "torchmetrics.classification.MulticlassF1Score",
    "recall": {"class_path": "torchmetrics.classification.MulticlassRecall", "init_args": {"average": "none"}},
}


def test_a_metric_chooses_the_best_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("metrics.yaml").write_text(yaml.safe_dump({"model": {"metrics": METRICS}}))
    options = [*SMALL, "--config", "metrics.yaml", "--checkpoint.monitor", "val/f1", "--checkpoint.mode", "max"]
    assert main(["fit", *options, "--trainer.max_epochs", "4"]) == 0
    run = Path("runs/digits/version_0")
    f1 = read_metrics(run / "metrics.csv")["val/f1"][1]
    best = torch.load(run / "checkpoints/best.ckpt", weights_only=True)
    assert best["epoch"] == len(f1) - 1 - f1[::-1].argmax()
    assert f"Best val/f1: {f1.max():.4f}" in capsys.readouterr().out

    assert main(["test", "--ckpt_path", "best"]) == 0
    metrics = json.loads((run / "results.json").read_text())["metrics"]
    assert len(metrics["recall"]) == 10
    # The value is that of torchmetrics on the same predictions.
    model, data = load_run(run)
    images = data.split("test")
    with torch.no_grad():
        expected = torch.tensor([0.0] * 10)
        predicted = model(images.images).argmax(1)
        for label in range(10):
            hits = ((predicted == label) & (images.labels == label)).sum()
            expected[label] = 2 * hits / ((predicted == label).sum() + (images.labels == label).sum())
    assert metrics["f1"] == pytest.approx(float(expected.mean()), abs=1e-6)

    found = read_run(run)
    assert (found.monitor, found.val_score, found.test_score) == ("val/f1", f1.max(), metrics["f1"])
    capsys.readouterr()
    assert main(["compare", str(run)]) == 0
    assert f"{metrics['f1']:.4f}" in capsys.readouterr().out
    shutil.copytree(run, "copy")
    assert main(["test", "--ensemble", str(run), "copy", "--output", "both"]) == 0
    assert json.loads(Path("both/results.json").read_text())["metrics"]["f1"] == metrics["f1"]


@pytest.mark.slow
def test_a_smaller_loss_is_better(tmp_path: Path) -> None:
    assert main(["fit", *SMALL, "--checkpoint.monitor", "val/loss", "--trainer.max_epochs", "3"]) == 0
    run = Path("runs/digits/version_0")
    loss = read_metrics(run / "metrics.csv")["val/loss"][1]
    best = torch.load(run / "checkpoints/best.ckpt", weights_only=True)
    assert best["epoch"] == loss.argmin() and read_run(run).val_score == loss.min()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--checkpoint.monitor", "val/f2"], "val/f2 is not logged"),
        (["--model.metrics", "{top1: torchmetrics.classification.MulticlassF1Score}"], "model.metrics.top1"),
        (["--model.metrics", "{f1: torchmetrics.F1Score}"], "model.metrics.f1"),
        (["--model.metrics", "{f1: torchmetrics.MulticlassF9Score}"], "MulticlassF9Score"),
    ],
)
def test_mistakes(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *SMALL, *options, "--trainer.max_epochs", "1"]) == 2
    assert message in capsys.readouterr().err
