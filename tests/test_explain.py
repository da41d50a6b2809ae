"""What is said of a wrong configuration: a user's own classes, and the line of the file that is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from resnet_pl.cli.explain import arguments_of
from tests.test_cli import SMALL, refused, run

MINE = """
from lightning.pytorch import Callback
from torch import nn

number = 3

def unannotated(num_classes: int = 10):
    return nn.Linear(3, num_classes)

def returns_int() -> int:
    return 3

class Plain:
    pass

class Net(nn.Module):
    pass

class Needy(Callback):
    def __init__(self, often: int) -> None:
        pass

class Lazy(Callback):
    def __init__(self, often: int = None) -> None:
        assert often is None
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with modules of a user's."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "explain_mine.py").write_text(MINE)
    (tmp_path / "explain_failing.py").write_text("\nimport nowhere_at_all\n")
    (tmp_path / "explain_syntax.py").write_text("\n\ndef (:\n")
    return tmp_path


@pytest.mark.parametrize(
    ("key", "name", "words"),
    [
        (
            "model.backbone",
            "explain_nowhere.Net",
            ["model.backbone: there is no module explain_nowhere", "looked for in"],
        ),
        (
            "model.backbone",
            "explain_mine.Nett",
            ["model.backbone: there is no Nett in explain_mine, did you mean Net?"],
        ),
        (
            "model.backbone",
            "explain_failing.Net",
            ["model.backbone: explain_failing cannot be imported", "nowhere_at_all", "explain_failing.py, line 2"],
        ),
        ("model.backbone", "explain_syntax.Net", ["explain_syntax.py, line 3: SyntaxError", "code of your own"]),
        (
            "model.backbone",
            "explain_mine.unannotated",
            ["model.backbone: the function explain_mine.unannotated", "write def unannotated(…) -> nn.Module:"],
        ),
        ("model.backbone", "explain_mine.returns_int", ["explain_mine.returns_int returns int, not Module"]),
        ("model.backbone", "explain_mine.number", ["model.backbone: explain_mine.number is no class that derives"]),
        ("model.backbone.class_path", "explain_mine.Nett", ["model.backbone: there is no Nett in explain_mine"]),
        ("model.loss", "explain_mine.Plain", ["model.loss: explain_mine.Plain is no class that derives from Module"]),
        ("model.optimizer", "explain_mine.Net", ["model.optimizer: explain_mine.Net", "from Optimizer"]),
        ("model.optimizer", "explain_nowhere.SGD", ["model.optimizer: there is no module explain_nowhere"]),
        ("data", "explain_mine.Net", ["data: explain_mine.Net is no class that derives from ImageDataModule"]),
        ("data", "explain_failing.Data", ["data: explain_failing cannot be imported"]),
        ("data.batch_transforms+", "explain_mine.Nett", ["data.batch_transforms: there is no Nett in explain_mine"]),
        ("trainer.callbacks+", "explain_mine.Net", ["trainer.callbacks: explain_mine.Net", "from Callback"]),
        ("trainer.callbacks+", "explain_mine.Needy", ["trainer.callbacks.often: it must be given"]),
        ("data.batch_size", "explain_mine.Net", ["data.batch_size: explain_mine.Net is not a whole number"]),
        ("data.num_workers", "-1", ["data.num_workers: -1 is out of range, it must be at least 0"]),
    ],
)
def test_classes_of_the_user(
    key: str, name: str, words: list[str], own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A depth would be taken for an argument of the user's net.
    small = [*SMALL[:2], *SMALL[4:]]
    said = refused(capsys, "fit", *small, "--trainer.default_root_dir", own / "runs", f"--{key}={name}")
    assert all(word in said for word in words), said


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (
            "data:\n  class_path: Digits\n  init_args:\n    image_size: 16\nmodel:\n  image_size: 3\n",
            "model.image_size ({}, line 6)",
        ),
        ("model:\n  schedule: {shape: cosine, patience: many}\n", "model.schedule.patience ({}, line 2)"),
        (
            "trainer:\n  callbacks:\n  - class_path: EarlyStopping\n    init_args:\n      monitor: val/loss\n"
            "      patience: many\nmodel:\n  schedule:\n    patience: 3\n",
            "trainer.callbacks",
        ),
        (
            "trainer:\n  max_epochs: 3\n  callbacks+:\n  - Freez\nmodel:\n  weights: null\n",
            "trainer.callbacks ({}, line 3)",
        ),
        ("model: {backbone: {class_path: explain_mine.Nett}}\n", "model.backbone ({}, line 1)"),
        (
            "trainer:\n  callbacks:\n  - class_path: Freeze\n    init_args: {up_too: layer1}\n"
            "  - class_path: Freeze\n    init_args: {up_too: layer2}\n",
            "trainer.callbacks.up_too ({}, line 4 or 6)",
        ),
    ],
)
def test_the_line_of_the_file(text: str, place: str, own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = own / "mine.yaml"
    path.write_text(text)
    said = refused(capsys, "fit", *SMALL[:2], "--config", path, "--trainer.default_root_dir", own / "runs")
    assert said.startswith(f"error: {place.format(path)}"), said


def test_what_the_line_says_is_not_looked_for_in_files(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = own / "mine.yaml"
    path.write_text("model:\n  backbone: cifar_resnet\n")
    argv = ["fit", *SMALL[:2], "--config", path, "--model.backbone.class_path", "explain_mine.Nett"]
    assert refused(capsys, *argv).startswith("error: model.backbone: there is no Nett")


def test_a_constructor_is_told_without_its_wrapping(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.mode", "maximum"]
    said = refused(capsys, "fit", *SMALL, "--trainer.default_root_dir", own / "runs", *argv)
    assert said == "error: `mode` can be min, max but got maximum"


def test_what_is_no_class_has_no_arguments() -> None:
    assert arguments_of("nowhere.None") == [] and "depth" in arguments_of("resnet_pl.models.cifar_resnet")


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("data.batch_size", "data: {class_path: Digits, init_args: {batch_size: null}}"),
        ("data.mean", "data: {class_path: Digits, init_args: {mean: null}}"),
        ("model.optimizer.lr", "model: {optimizer: {class_path: SGD, init_args: {lr: null}}}"),
        ("model.schedule.warmup", "model: {schedule: {warmup: null}}"),
    ],
)
def test_null_is_no_value(key: str, text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "null.yaml").write_text(text)
    assert f"error: {key}: null is no" in refused(capsys, "fit", *SMALL, f"--{key}", "null")
    said = refused(capsys, "fit", *SMALL, "--config", tmp_path / "null.yaml")
    assert f"{key} ({tmp_path / 'null.yaml'}, line 1): null is no" in said


def test_null_where_it_is_the_default(own: Path, tmp_path: Path) -> None:
    line = ["--trainer.max_steps", 1, "--trainer.default_root_dir", tmp_path, "--data.num_workers", "null"]
    run("fit", *SMALL, *line, "--trainer.callbacks+", "explain_mine.Lazy", "--trainer.callbacks.often", "null")


@pytest.mark.parametrize("group", ["trainer: [1]", "trainer: null", "model: 3", "model: {schedule: []}"])
def test_a_group_that_is_none_is_not_lost_among_the_options(
    group: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "bare.yaml").write_text(group)
    said = refused(capsys, "fit", *SMALL, "--config", tmp_path / "bare.yaml")
    assert re.match(rf"error: {tmp_path}/bare.yaml: (trainer|model|model.schedule) must hold keys and values\n", said)
