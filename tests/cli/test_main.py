"""Answers before torch is imported, exit codes, and the format of errors."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from resnet_pl import __version__
from resnet_pl.cli import main as entry
from resnet_pl.cli.main import main
from resnet_pl.data import CIFAR10
from resnet_pl.reports.results import read_results
from resnet_pl.utils import UserError
from tests.cli.commands import BARE, PROJECT, failed, refused


def test_bare_call_and_help_list_the_subcommands(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in ([], ["--help"], ["-h"]):
        assert main(argv) == 0
        out = capsys.readouterr().out
        assert all(name in out for name in ("fit", "validate", "test", "predict", "summary", "paper curves"))


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


def test_unknown_subcommand(capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "valdate")
    assert "valdate" in message and "validate" in message
    assert "fit, validate" in refused(capsys, "xyz")
    assert "paper curves" in refused(capsys, "curves")
    assert "before --config" in refused(capsys, "--config", "configs/digits.yaml", "fit")


@pytest.mark.parametrize(
    ("word", "instead"),
    [("train", "fit"), ("eval", "test"), ("evaluate", "validate"), ("val", "validate"), ("infer", "predict")],
)
def test_subcommands_of_other_scripts(word: str, instead: str, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, word, "--epochs", 3)
    assert word in message and instead in message.splitlines()[1]


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(UserError, match="valdate"):
        main(["valdate", "--debug"])


@pytest.mark.process
@pytest.mark.parametrize(
    "argv", [["--help"], ["--version"], ["train"], ["fit", "--epochs", "3"], ["fit"], ["fit", "--config", "bad.yaml"]]
)
def test_needs_no_torch(argv: list[str], tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("model: [")
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); from resnet_pl.cli.main import main; main();"
        "sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'lightning', 'jsonargparse')))"
    )
    command = [sys.executable, "-c", code, str(PROJECT), *argv]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.process
@pytest.mark.parametrize("argv", [["fit"], ["check-data", "photos"]])
def test_a_python_without_the_packages(argv: list[str]) -> None:
    command = [sys.executable, "-S", str(PROJECT / "cli.py"), *argv, "--config", "configs/digits.yaml"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    first, second = done.stderr.splitlines()
    assert sys.executable in first and "torch" in first and "activate" in second


def test_an_unexpected_error_has_two_lines(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    linear = ["--model.backbone=torch.nn.Linear", "--model.backbone.in_features=3", "--model.backbone.out_features=10"]
    argv = ["fit", *BARE, *linear, "--trainer.default_root_dir", str(tmp_path), "--dashboard.graph", "false"]
    lines = failed(capsys, 1, *argv).splitlines()
    assert "RuntimeError: mat1 and mat2" in lines[0] and "--debug" in lines[1]
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        main([*argv, "--debug"])


def interrupted(*args: object) -> int:
    raise KeyboardInterrupt


def unreadable(*args: object) -> int:
    raise PermissionError(errno.EACCES, "Permission denied", "runs/a/config.yaml")


def missing(*args: object) -> int:
    raise FileNotFoundError(errno.ENOENT, "No such file or directory", "within")


@pytest.mark.parametrize(
    ("ends", "code", "words"),
    [
        (interrupted, 130, "Interrupted"),
        (unreadable, 2, "runs/a/config.yaml: Permission denied"),
        # A missing file of the package is not an error of the user.
        (missing, 1, "--debug"),
        (lambda *_: 0, 0, ""),
    ],
)
def test_the_exit_code_depends_on_the_error(
    ends: Callable[..., int],
    code: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(entry.analysis, "run", ends)
    assert main(["summary"]) == code
    assert words in capsys.readouterr().err


@pytest.mark.process
def test_a_closed_pipe_is_not_an_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, str(PROJECT / "cli.py"), "--help"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert done.returncode == 141 and not done.stderr


def test_a_closed_pipe_loses_no_file(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed, os.fdopen(os.dup(writer), "w") as closed_too:
        monkeypatch.setattr(sys, "stdout", closed)
        monkeypatch.setattr(sys, "stderr", closed_too)
        code = main(["test", "--ckpt_path", str(copy)])
    assert code == 141 and read_results(copy / "results.json")["images"] == 360
    assert (copy / "confusion.png").is_file()


def test_a_failed_start_leaves_no_file_and_no_folder(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(CIFAR10, "urls", ["http://127.0.0.1:9/images.tar.gz"])
    message = refused(capsys, "fit", "--config", PROJECT / "configs/cifar10.yaml", "--name", "a/b")
    assert "cannot download CIFAR10" in message and list(place.iterdir()) == []
    (place / "runs").mkdir()
    refused(capsys, "fit", "--config", PROJECT / "configs/cifar10.yaml", "--name", "a/b")
    assert list(place.rglob("*")) == [place / "runs"]


def test_a_class_in_the_working_folder_is_found(place: Path) -> None:
    (place / "own_model_here.py").write_text(
        "from resnet_pl.models import cifar_resnet\nfrom torch import nn\n\n"
        "def small(num_classes: int = 10) -> nn.Module:\n    return cifar_resnet(8, num_classes)\n"
    )
    path = [entry for entry in sys.path if entry not in ("", str(place))]
    sys.path[:] = path
    try:
        few = ["--trainer.max_epochs", "1", "--trainer.logger", "false", "--model.backbone", "own_model_here.small"]
        assert main(["fit", *BARE, *few]) == 0
    finally:
        sys.path[:] = [entry for entry in sys.path if entry != str(place)]
