"""What is answered before torch is imported, and how errors are said."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from resnet_pl import __version__
from resnet_pl.cli import main
from resnet_pl.request import Request
from resnet_pl.utils import UserError

PROJECT = Path(__file__).parent.parent


def told(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Runs a command line that is wrong; returns what it says, and checks that it is said shortly."""
    assert main.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and "Traceback" not in err
    assert len(err.strip().splitlines()) <= 2
    return err


def test_bare_call_and_help_list_the_subcommands(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in ([], ["--help"], ["-h"]):
        assert main.main(argv) == 0
        out = capsys.readouterr().out
        assert all(name in out for name in ("fit", "validate", "test", "predict"))


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


def test_unknown_subcommand(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean validate?" in told(capsys, "valdate")
    assert "one of fit, validate" in told(capsys, "xyz")
    assert "comes first" in told(capsys, "--config", "configs/digits.yaml", "fit")


def test_missing_config(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    assert "did you mean configs/digits.yaml?" in told(capsys, "fit", "--config", "configs/digit.yaml")
    assert "no configuration file" in told(capsys, "fit", "--config=nowhere.yaml")


def test_config_that_is_no_yaml(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("model:\n  backbone: [resnet18\n")
    message = told(capsys, "fit", "--config", str(path))
    assert str(path) in message and "line 3" in message
    path.write_text("model:\n  depth: 1\n  depth: 2\n")
    assert "line 3, column 3: depth is there twice" in told(capsys, "fit", "--config", str(path))
    path.write_text("a: b\0")
    assert str(path) in told(capsys, "fit", "--config", str(path))
    path.write_text("just words")
    assert "keys and values" in told(capsys, "fit", "--config", str(path))
    path.write_bytes(b"\xff\xfe\x00")
    assert str(path) in told(capsys, "fit", "--config", str(path))


def test_missing_checkpoint(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "nowhere.ckpt" in told(capsys, "test", "--ckpt_path", "nowhere.ckpt")
    assert "test needs a checkpoint" in told(capsys, "test")
    assert "runs/NAME/version_N/checkpoints/best.ckpt" in told(capsys, "test", "--ckpt_path", "best")
    assert "runs/flowers/version_N/checkpoints/last.ckpt" in told(
        capsys, "fit", "--name", "flowers", "--ckpt_path=last"
    )
    assert "aaa/checkpoints/best.ckpt: File name too long" in told(capsys, "test", "--ckpt_path", "a" * 300)


def test_missing_root(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = tmp_path / "folder.yaml"
    config.write_text("data: {class_path: ImageFolder, init_args: {root: nowhere/photos}}\n")
    assert "nowhere/photos" in told(capsys, "fit", "--config", str(config))
    assert "elsewhere" in told(capsys, "fit", "--config", str(config), "--data.root", "elsewhere")
    assert "there is no folder data/imagenet" in told(capsys, "fit", "--data", "ImageNet")


def test_later_configs_and_the_line_win(tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("name: one\ndata: {class_path: ImageFolder, init_args: {root: nowhere}}\n")
    second.write_text(f"data: {{init_args: {{root: {tmp_path}}}}}\n")
    request = Request(["fit", "--config", str(first), "--config", str(second)])
    assert request.files == [str(first), str(second)]
    with pytest.raises(UserError, match="nowhere"):
        Request(["fit", "--config", str(second), "--config", str(first)])


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(UserError, match="no subcommand"):
        main.main(["valdate", "--debug"])


@pytest.mark.process
@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["valdate"],
        ["fit", "--config", "no.yaml"],
        ["test", "--ckpt_path", "no.ckpt"],
        ["fit", "--data=ImageFolder"],
    ],
)
def test_needs_no_torch(argv: list[str], tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); from resnet_pl.cli.main import main; main();"
        "sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'lightning', 'jsonargparse')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(PROJECT), *argv], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_an_unforeseen_error_is_told_in_two_lines(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    net = ["--model.backbone=torch.nn.Linear", "--model.backbone.in_features=3", "--model.backbone.out_features=10"]
    argv = ["fit", "--config", str(PROJECT / "configs/digits.yaml"), *net, "--trainer.default_root_dir", str(tmp_path)]
    argv += ["--dashboard.graph", "false"]
    assert main.main(argv) == 1
    said = capsys.readouterr().err.strip().splitlines()[-2:]
    assert "RuntimeError: mat1 and mat2" in said[0] and "--debug" in said[1]
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        main.main([*argv, "--debug"])


def test_an_unforeseen_error_of_a_worker_is_told_in_its_own_words() -> None:
    wrapped = (
        'Caught KeyError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File "a"\n'
    )
    try:
        raise RuntimeError(f"{wrapped}KeyError: 7\n")
    except RuntimeError as error:
        assert main.unexpected(error).startswith("error: RuntimeError: KeyError: 7 (test_main.py")
