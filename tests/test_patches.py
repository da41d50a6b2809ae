"""Help that is short and names what is ours; threads that need no traceback."""

from __future__ import annotations

import threading

import pytest

from resnet_pl.cli import main
from resnet_pl.patches import NETS, quieten
from tests.test_cli import refused


def helped(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What a call of help prints."""
    with pytest.raises(SystemExit) as end:
        main.main(argv)
    assert end.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_help_is_short_and_names_what_is_ours(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    text = helped(capsys, "fit", "--help")
    assert len(text) < 30_000 and "torch.nn" not in text and ":paramref:" not in text
    for net in NETS:
        assert net in text.split("--model.backbone BACKBONE")[1].split("--model.weights")[0]
    assert "Digits, " in text and "ImageFolder, Flowers, ImageNet" in text and "Freeze" in text and "AdamW" in text
    ckpt_path = text.split("--ckpt_path CKPT_PATH")[1].split("(type:")[0]
    assert "best or last" in ckpt_path and "run folder" in ckpt_path and "registry" not in ckpt_path
    assert text.startswith("usage: python cli.py fit [--config FILE ...]")


@pytest.mark.parametrize(
    ("name", "options", "title"),
    [
        ("cifar_resnet", ["depth", "shortcut"], "resnet_pl.models.cifar_nets.cifar_resnet"),
        ("resnet50", ["num_classes", "variant"], "resnet_pl.models.resnet.resnet50"),
        ("torchvision.models.resnet18", ["weights", "zero_init_residual"], "torchvision.models.resnet.resnet18"),
        ("resnet_pl.models.ResNet", ["block", "layers"], "resnet_pl.models.ResNet"),
    ],
)
def test_help_of_nets(name: str, options: list[str], title: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = helped(capsys, "fit", "--model.backbone.help", name)
    assert f"--model.backbone.help={title} " in text
    assert all(f"--model.backbone.{option} " in text for option in options)


def test_help_of_no_net(capsys: pytest.CaptureFixture[str]) -> None:
    assert "cifar_resnet, plain18" in refused(capsys, "fit", "--model.backbone.help")
    assert "resnet19" in refused(capsys, "fit", "--model.backbone.help", "resnet19")


def test_crops_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert "ScaleCrop, RandomResizedCrop, CentreCrop" in helped(capsys, "fit", "--data.help", "ImageFolder")


@pytest.mark.parametrize(("name", "told"), [("_AsyncWriterThread", False), ("Thread", True)])
def test_an_error_of_tensorboards_thread_is_told_once(
    name: str, told: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    quieten()
    thread = type(name, (threading.Thread,), {})(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    assert ("ZeroDivisionError" in capsys.readouterr().err) == told
