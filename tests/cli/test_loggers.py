"""What every logger gets, in `fit`, after a resume and in `test`; and the configs of configs/loggers."""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from resnet_pl.reports.results import read_results
from resnet_pl.run_dir import class_name
from tests.callbacks.test_dashboard import events, scalars
from tests.cli.commands import PROJECT, SMALL, printed, refused, rows, run

SHORT = ["--trainer.limit_train_batches", "2", "--dashboard.images", "2"]
IMAGES = ["train/first_batch", "val/confusion", "val/reliability", "val/worst_mistakes"]
IMAGES += ["val/worst_mistakes_heatmaps"] if find_spec("captum") else []
CONFIGS = {"wandb": "WandbLogger", "mlflow": "MLFlowLogger", "comet": "CometLogger", "csv": "CSVLogger"}
NUMBERS = count()


class Recorder(Logger):
    """A user's logger for a tracking server. The server is a class attribute: it holds the calls for each run.

    Args:
        version: id of the run; a new one by default.
        lossy: whether the server refuses images.
    """

    server: dict[str, list[tuple[Any, ...]]] = defaultdict(list)
    reachable = True

    def __init__(self, version: str | None = None, lossy: bool = False) -> None:
        super().__init__()
        self._version, self.lossy = version, lossy

    name = "recorder"

    @property
    def version(self) -> str | None:
        return self._version

    @property
    def experiment(self) -> None:
        if not self.reachable:
            raise ConnectionError("the server does not answer")
        self._version = self._version or f"run-{next(NUMBERS)}"

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.server[str(self.version)].append(("hyperparameters", params))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.server[str(self.version)].append(("metrics", dict(metrics), step))

    def log_image(self, key: str, images: list[np.ndarray], step: int) -> None:
        if self.lossy:
            raise ConnectionError("the server does not take images")
        assert all(image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 for image in images)
        self.server[str(self.version)].append(("image", key, step))


@pytest.fixture(autouse=True)
def server(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[list[Any]]]:
    """Empties the server; returns a function that lists the calls of one kind for each run."""
    monkeypatch.setattr(Recorder, "server", defaultdict(list))
    return lambda kind: [[call[1:] for call in calls if call[0] == kind] for calls in Recorder.server.values()]


@pytest.mark.filterwarnings("ignore:Recorder")
def test_loggers_of_a_run_in_fit_test_and_resume(place: Path, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path("loggers.yaml")
    recorder = {"class_path": "tests.cli.test_loggers.Recorder"}
    path.write_text(yaml.safe_dump({"trainer": {"logger+": [recorder, recorder | {"init_args": {"lossy": True}}]}}))
    with pytest.warns(UserWarning, match="does not take images") as warnings:
        run("fit", *SMALL, "--config", path, *SHORT, "--trainer.max_epochs", "1")
    assert len([each for each in warnings if "does not take images" in str(each.message)]) == 1
    folder = place / "runs/digits/version_0"
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert [class_name(each) for each in config["trainer"]["logger"]] == ["TensorBoardCurves", "Recorder", "Recorder"]
    assert scalars(events(folder / "val"), "curves/top1")
    for [given] in server("hyperparameters"):
        assert given[0] == {"run": "digits/version_0", **config}
    assert [[key for key, _ in images] for images in server("image")] == [IMAGES, []]
    assert all("val/top1" in {key for metrics, _ in calls for key in metrics} for calls in server("metrics"))

    # The metrics of a test go to the same runs and to TensorBoard, at the step of the checkpoint.
    before = rows(folder)
    run("test", "--ckpt_path", "best")
    tested, step = read_results(folder / "results.json")["top1"], read_results(folder / "results.json")["step"]
    assert scalars(events(folder / "test"), "test/top1") == [(step, pytest.approx(tested))]
    assert rows(folder) == before
    for calls in server("metrics"):
        metrics, at = calls[-1]
        assert (metrics["test/top1"], at, "step" in metrics) == (pytest.approx(tested), step, False)

    # A result under other conditions would have the same name. A server that does not answer is a warning.
    calls = server("metrics")
    run("test", "--ckpt_path", "best", "--tta", "flip")
    with monkeypatch.context() as patch, pytest.warns(UserWarning, match="does not answer"):
        patch.setattr(Recorder, "reachable", False)
        run("test", "--ckpt_path", "best")
    assert server("metrics") == calls

    # A resumed run continues the same runs, and TensorBoard still shows the test.
    run("fit", "--ckpt_path", "last", "--trainer.max_epochs", "2")
    assert len(Recorder.server) == 2
    assert all(len(now) > len(earlier) for now, earlier in zip(server("metrics"), calls, strict=True))
    resumed = yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["logger"]
    assert resumed == config["trainer"]["logger"]
    assert scalars(events(folder / "test"), "test/top1")[0] == (step, pytest.approx(tested))


def test_the_configs_of_loggers_keep_tensorboard(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [PROJECT / "configs/loggers" / f"{name}.yaml" for name in CONFIGS]
    assert all("Merged on top of " in path.read_text() for path in paths)
    files = [word for path in paths for word in ("--config", path)]
    config = yaml.safe_load(printed(capsys, "fit", *SMALL, *files, "--print_config"))
    names = [class_name(each) for each in config["trainer"]["logger"]]
    assert names == ["TensorBoardCurves", *CONFIGS.values()]


@pytest.mark.skipif(find_spec("wandb") is not None, reason="wandb is installed")
def test_a_missing_package_is_named(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "fit", *SMALL, "--config", PROJECT / "configs/loggers/wandb.yaml")
    assert "pip install 'wandb" in message
    assert not Path("runs/digits").exists()


# ---------------------------------------------------------------------------------------- real services
def command(*argv: object) -> None:
    """Runs a command line in a process of its own: the W&B run of a process ends with it."""
    words = [sys.executable, "-m", "resnet_pl", *map(str, argv)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def fit_test_resume_test(name: str) -> str:
    """Trains, tests, resumes and tests again; returns the version of the logger's run, the same in both sessions."""
    command("fit", *SMALL, *SHORT, "--config", PROJECT / "configs/loggers" / f"{name}.yaml", "--trainer.max_epochs", 1)
    command("test", "--ckpt_path", "best")
    command("fit", "--ckpt_path", "last", "--trainer.max_epochs", "2")
    command("test", "--ckpt_path", "best")
    sessions = yaml.safe_load(Path("runs/digits/version_0/sessions.json").read_text())
    [(_, first)], [(_, second)] = (session["loggers"] for session in sessions)
    assert first == second
    return first


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.skipif(not (find_spec("mlflow") and find_spec("sqlalchemy")), reason="needs mlflow (180 MB)")
def test_mlflow_with_a_local_store(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    version = fit_test_resume_test("mlflow")
    from mlflow import MlflowClient  # pyright: ignore[reportMissingImports] - an optional package

    client = MlflowClient("sqlite:///runs/mlflow.db")
    experiment = client.get_experiment_by_name("resnet_pl")
    [tracked] = client.search_runs([experiment.experiment_id])
    assert (tracked.info.run_id, tracked.info.status) == (version, "FINISHED")
    assert tracked.data.params["model/init_args/backbone/init_args/depth"] == "8"
    for key, steps in {"val/top1": [1, 3], "train/loss": [1, 3]}.items():
        assert [metric.step for metric in client.get_metric_history(version, key)] == steps
    result = read_results(Path("runs/digits/version_0/results.json"))
    tests = client.get_metric_history(version, "test/top1")
    assert (tests[-1].step, tests[-1].value) == (result["step"], pytest.approx(result["top1"]))
    images = [file.path.partition("+")[0] for file in client.list_artifacts(version, "images")]
    assert {f"images/{name.replace('/', '~')}" for name in IMAGES} == set(images)


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.skipif(not find_spec("wandb"), reason="needs wandb (62 MB)")
def test_wandb_offline(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    monkeypatch.setenv("WANDB_MODE", "offline")
    version = fit_test_resume_test("wandb")
    files = sorted(Path("runs/wandb").glob(f"offline-run-*/run-{version}.wandb"))
    assert len(files) == 4  # one for each command; `wandb sync` merges them by their id
    assert len(list(Path("runs/wandb").glob("offline-run-*/"))) == 4
    contents = [file.read_bytes() for file in files]
    for fitted, tested in ((contents[0], contents[1]), (contents[2], contents[3])):
        assert b"cifar_resnet" in fitted and b"val/top1" in fitted and b"val/confusion" in fitted
        assert b"test/top1" in tested and b"test/top1" not in fitted
    media = {
        path.name.rpartition("_")[0].rpartition("_")[0] for path in Path("runs/wandb").rglob("media/images/*/*.png")
    }
    assert media == {name.partition("/")[2] for name in IMAGES}
