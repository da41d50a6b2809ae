"""Imbalanced photos: advice at the start, class weights, a balanced sampler, a loss by name, metrics that choose."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from resnet_pl.reports.results import read_results
from resnet_pl.reports.run_reader import read_run
from tests.cli.commands import refused, rows, run
from tests.conftest import write_photos


@pytest.fixture
def options() -> list[str]:
    """The options of a small training on 21 photos of ants and 6 of bees."""
    write_photos(Path("photos"), ("ant",), count=21)
    write_photos(Path("photos"), ("bee",), count=6)
    small = ["--data.root", "photos", "--data.image_size", "16", "--data.batch_size", "4", "--data.num_workers", "0"]
    small += ["--model.backbone", "cifar_resnet", "--model.backbone.depth", "8", "--trainer.max_epochs", "1"]
    return ["--data", "ImageFolder", *small, "--dashboard", "false", "--trainer.logger", "false", "--name", "rare"]


def test_the_start_report_says_what_to_use(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    run("fit", *options, "--trainer.limit_train_batches", "1")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("balance ")]
    assert "training images: 4 (bee) to 17 (ant)" in line
    chosen = ["--data.sampler", "balanced", "--model.class_weights", "balanced", "--checkpoint.monitor", "val/f1_macro"]
    assert all(" ".join(pair) in line for pair in zip(chosen[::2], chosen[1::2], strict=True))

    run("fit", *options, *chosen, "--model.loss", "FocalLoss", "--model.loss.gamma", "1.5", "--trainer.logger", "true")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("balance ")]
    assert line.split(maxsplit=1)[1] == "balanced sampler, class weights 0.618 (ant) to 2.62 (bee)"
    folder = Path("runs/rare/version_1")
    saved = torch.load(folder / "checkpoints/best.ckpt", weights_only=True)
    # 21 images are in the training split.
    assert saved["state_dict"]["criterion.weight"].tolist() == pytest.approx([21 / 34, 21 / 8])
    logged = {name for row in rows(folder) for name, value in row.items() if value}
    assert logged >= {f"val/{name}" for name in ("precision_macro", "recall_macro", "balanced_accuracy", "auroc")}
    run("test", "--ckpt_path", "best")
    results = read_results(folder / "results.json")
    assert read_run(folder).test_score == results["f1_macro"] and results["auroc"] is not None


def test_weights_for_another_number_of_classes(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "fit", *options, "--model.class_weights", "[1, 2, 3]")
    assert "model.class_weights: 3 weights for 2 classes" in message
    assert "sampler" in refused(capsys, "fit", *options, "--data.sampler", "equal")


def test_advice_for_several_classes_per_image(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"{path.relative_to('photos')},{path.parent.name}" for path in sorted(Path("photos").rglob("*.*"))]
    Path("photos/labels.csv").write_text("\n".join(["path,label", *rows]))
    table = ["--data", "ImageTable", "--data.labels", "photos/labels.csv", "--data.label_separator", "|"]
    run("fit", *table, *options[4:], "--trainer.limit_train_batches", "1")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("balance ")]
    assert line.endswith("try --model.class_weights balanced")
