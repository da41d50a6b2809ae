"""Every callback of a run can be removed: fit, resume and test then work without its feature."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from resnet_pl import callbacks
from resnet_pl.classifier import ImageClassifier
from resnet_pl.cli import main, parser

DIGITS = str(Path(__file__).parent.parent.parent / "configs/digits.yaml")
SMALL = ["--model.backbone.depth", "8", "--data.image_size", "8", "--trainer.limit_train_batches", "2"]
SMALL += ["--dashboard.graph", "false", "--dashboard.images", "0"]  # half of the time of such a run
# Callbacks, and a file of the run folder that only they write. Without `SaveConfig` a checkpoint has no configuration.
RUN = {
    "BestCheckpoint": "checkpoints/best.ckpt",
    "LastCheckpoint": "checkpoints/last.ckpt",
    "GracefulStop": None,
    "RunSummary": "sessions.json",
    "Throughput": None,
    "EpochSummary": None,
    "MetricsCSV": "metrics.csv",
    "Dashboard": None,
}


class Without(parser.ProjectCLI):
    """The command line without one callback or logger."""

    removed = ""

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        trainer = super().instantiate_trainer(**kwargs)
        removed = getattr(callbacks, self.removed)
        trainer.callbacks = [each for each in trainer.callbacks if not isinstance(each, removed)]
        trainer.loggers = [each for each in trainer.loggers if not isinstance(each, removed)]
        return trainer


# Those that write what every other command reads.
OFTEN = ("BestCheckpoint", "LastCheckpoint")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in OFTEN else [pytest.mark.slow]) for name in RUN]
)
def test_a_callback_of_the_command_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(parser, "ProjectCLI", Without)
    monkeypatch.setattr(Without, "removed", name)
    run = tmp_path / "runs/digits/version_0"
    assert main.main(["fit", "--config", DIGITS, *SMALL, "--trainer.max_epochs", "1"]) == 0
    which = "best" if name == "LastCheckpoint" else "last"
    checkpoint = str(run / f"checkpoints/{which}.ckpt")
    written = RUN[name]
    assert written is None or not (run / written).exists()
    assert main.main(["fit", "--ckpt_path", checkpoint, "--trainer.max_epochs", "2"]) == 0
    assert main.main(["test", "--ckpt_path", checkpoint]) == 0
    assert (run / "results.json").is_file()


@pytest.mark.parametrize("name", ["TrainLog", "StopOnNaN"])
def test_a_callback_of_the_module(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    original = ImageClassifier.configure_callbacks

    def without(self: ImageClassifier) -> list[Any]:
        return [each for each in original(self) if type(each).__name__ != name]

    monkeypatch.setattr(ImageClassifier, "configure_callbacks", without)
    assert main.main(["fit", "--config", DIGITS, *SMALL, "--trainer.max_epochs", "1"]) == 0
    assert main.main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "2"]) == 0
    assert main.main(["test", "--ckpt_path", "last"]) == 0
    metrics = (tmp_path / "runs/digits/version_0/metrics.csv").read_text()
    assert ("train/loss" in metrics) == (name != "TrainLog")
