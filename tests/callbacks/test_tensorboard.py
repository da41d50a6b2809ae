"""The tags that TensorBoard shows, read back from the event files."""

import time
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback

from resnet_pl.callbacks import Dashboard, TensorBoardCurves, Throughput
from tests.callbacks.test_dashboard import events, scalars
from tests.tiny import Tiny, classifier, trainer


def fit(run: Path, *callbacks: Callback, data: Any = None, **kwargs: Any) -> dict[str, float]:
    """Trains, and returns the last value of each metric."""
    settings = {"logger": TensorBoardCurves(run), "callbacks": list(callbacks), "log_every_n_steps": 2}
    trained = trainer(**settings | kwargs)
    trained.fit(classifier(), datamodule=data or Tiny())
    return {name: float(value) for name, value in trained.callback_metrics.items()}


def test_the_tags(tmp_path):
    metrics = fit(tmp_path / "a/b", Throughput(), Dashboard(graph=False), max_epochs=2)
    train, val = events(tmp_path / "a/b"), events(tmp_path / "a/b/val")
    curves = ["loss", "lr", "top1", "top1_generalization_gap", "train_images_per_second"]
    scores = ["adaptive_calibration_error", "auroc", "balanced_accuracy", "calibration_error"]
    scores += ["f1_macro", "precision_macro", "recall_macro"]
    others = ["train/epoch_seconds", *(f"val/{name}" for name in scores), "val_best/loss", "val_best/top1"]
    # TensorBoard shows them in this order and expands the first two groups: no other group comes before the curves.
    assert sorted(train.Tags()["scalars"]) == [*(f"curves/{name}" for name in curves), *others]
    assert sorted(val.Tags()["scalars"]) == ["curves/loss", "curves/top1"]
    assert all(tag > "curves/" for tag in train.Tags()["images"])
    expected = {
        "train/loss": (train, "curves/loss"), "train/top1": (train, "curves/top1"), "lr": (train, "curves/lr"),
        "val/loss": (val, "curves/loss"), "val/top1": (val, "curves/top1"),
        "val/generalization_gap": (train, "curves/top1_generalization_gap"),
        "throughput/images_per_second": (train, "curves/train_images_per_second"),
    }  # fmt: skip
    for key, (found, tag) in expected.items():
        assert scalars(found, tag)[-1] == (7, pytest.approx(metrics[key])), key


def test_no_files_but_events(tmp_path):
    fit(tmp_path / "a/b")
    names = sorted(path.name.split(".")[0] for path in (tmp_path / "a/b").rglob("*"))
    assert names == ["events", "events", "val"]


def test_without_validation_there_is_one_run(tmp_path):
    fit(tmp_path / "a/b", data=Tiny(val_split=0))
    assert not (tmp_path / "a/b/val").exists()
    assert sorted(events(tmp_path / "a/b").Tags()["scalars"]) == ["curves/loss", "curves/lr", "curves/top1"]


def test_metrics_of_a_user_keep_their_keys(tmp_path):
    class Own(Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            pl_module.log("own/metric", 3.0)

    fit(tmp_path / "a/b", Own())
    assert scalars(events(tmp_path / "a/b"), "own/metric") == [(3, 3.0)]


def test_a_resumed_run_hides_the_steps_that_it_repeats(tmp_path):
    for start, value in ((0, 1.0), (20, 2.0)):
        time.sleep(start and 1)  # event files are ordered by the second of their creation
        logger = TensorBoardCurves(tmp_path / "a/b", start)
        for step in (9, 19, 29) if start == 0 else (24, 29):
            logger.log_metrics({"epoch": 0, "train/loss": value, "val/loss": value + 0.5}, step)
        logger.finalize("success")
    expected = [(9, 1.0), (19, 1.0), (24, 2.0), (29, 2.0)]
    assert scalars(events(tmp_path / "a/b"), "curves/loss") == expected
    assert scalars(events(tmp_path / "a/b/val"), "curves/loss") == [(step, value + 0.5) for step, value in expected]
