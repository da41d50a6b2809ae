"""Transfer learning: where weights come from, and that a checkpoint needs none of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
import yaml
from PIL import Image

from resnet_pl.models import resnet18
from resnet_pl.reports.results import read_results
from tests.cli.commands import PROJECT, printed, refused, run
from tests.conftest import FileServer

STILL = ["--model.optimizer.lr", "1e-9", "--model.optimizer.weight_decay", "0"]
SMALL = [
    *["--config", str(PROJECT / "configs/folder.yaml"), "--data.image_size", "32", "--data.batch_size", "4"],
    *["--data.num_workers", "0", "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1"],
    *["--dashboard.graph", "false", "--dashboard.images", "0"],
]
# With few channels, where no weights of torchvision are loaded.
NARROW = [*SMALL, "--model.backbone.width", "8"]


@pytest.fixture(autouse=True)
def photos(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Photos of two classes, an empty cache of torch's, and no way to the network but loopback."""
    monkeypatch.setenv("TORCH_HOME", str(place / "torch"))
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setattr("resnet_pl.data.download.PAUSE", 0.0)
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (place / "data/photos" / name).mkdir(parents=True)
        for i in range(8):
            pixels = rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / "data/photos" / name / f"{i}.png")
    return place / "data/photos"


def backbone(name: str) -> dict[str, torch.Tensor]:
    """The backbone's weights in a run's last checkpoint."""
    state = torch.load(f"runs/{name}/version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    return {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}


def test_weights_from_a_server_are_fetched_once(
    place: Path, serve: Callable[[Path], FileServer], capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)  # the first digits of the checksum have a letter
    net = torchvision.models.resnet18()
    (place / "served").mkdir()
    served = serve(place / "served")
    torch.save(net.state_dict(), place / "served/net.pth")
    digits = hashlib.sha256((place / "served/net.pth").read_bytes()).hexdigest()[:8]
    (place / "served/net.pth").rename(place / f"served/resnet18-{digits}.pth")
    url = f"{served.address}/resnet18-{digits}.pth"
    for _ in range(2):
        run("fit", *SMALL, *STILL, "--model.weights", url)
    out = capsys.readouterr().out
    assert "new head for 2 classes (the file has 1000)" in out
    assert served.requests == [f"/resnet18-{digits}.pth"]
    assert (place / f"torch/hub/checkpoints/resnet18-{digits}.pth").is_file()
    trained, start = backbone("folder"), net.state_dict()
    assert trained["fc.weight"].shape == (2, 512)
    assert torch.allclose(trained["layer4.1.conv2.weight"], start["layer4.1.conv2.weight"], atol=1e-6)


def test_torchvision_weights_saved_locally(place: Path) -> None:
    net = torchvision.models.resnet18()
    torch.save(net.state_dict(), "mine.pth")
    run("fit", *SMALL, *STILL, "--model.weights", "mine.pth")
    assert torch.allclose(backbone("folder")["conv1.weight"], net.state_dict()["conv1.weight"], atol=1e-6)


def test_our_own_checkpoint_as_weights(place: Path) -> None:
    run("fit", *NARROW, "--model.weights", "null", "--name", "first")
    first = "runs/first/version_0/checkpoints/last.ckpt"
    run("fit", *NARROW, *STILL, "--model.weights", first, "--name", "second")
    assert torch.allclose(backbone("second")["fc.weight"], backbone("first")["fc.weight"], atol=1e-6)


def test_offline_says_what_to_do(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "fit", *SMALL)
    assert "resnet18-f37072fd.pth" in said
    assert str(place / "torch/hub/checkpoints") in said
    assert not Path("runs/folder/version_0").exists()
    # The advice of the configs is the same, and its options are right.
    advice = said.partition("from scratch: ")[2]
    for file in ("flowers.yaml", "folder.yaml"):
        assert advice in (PROJECT / "configs" / file).read_text(), file
    config = yaml.safe_load(printed(capsys, "fit", *SMALL, *advice.split(), "--print_config"))
    optimizer = config["model"]["init_args"]["optimizer"]
    assert optimizer["class_path"].endswith("AdamW") and optimizer["init_args"]["lr"] == 0.001
    assert config["model"]["init_args"]["weights"] is None and config["trainer"]["max_epochs"] == 60


def test_a_checkpoint_needs_no_pretrained_weights(place: Path) -> None:
    torch.save(resnet18(width=8).state_dict(), "mine.pth")
    run("fit", *NARROW, "--model.weights", "mine.pth")
    Path("mine.pth").unlink()
    run("test", "--ckpt_path", "best")
    run("predict", "--ckpt_path", "best", "--images", "data/photos/cat")
    run("fit", "--ckpt_path", "last", "--trainer.max_epochs", "2")
    assert read_results(Path("runs/folder/version_0/results.json"))["images"] >= 1


def test_a_backbone_with_weights_of_its_own(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = place / "torch/hub/checkpoints"
    cache.mkdir(parents=True)
    torch.save(torchvision.models.resnet18().state_dict(), cache / "resnet18-f37072fd.pth")
    own = ["--model.backbone", "torchvision.models.resnet18", "--model.backbone.weights", "IMAGENET1K_V1"]
    run("fit", *SMALL, *own, "--model.weights", "null")
    (cache / "resnet18-f37072fd.pth").unlink()
    run("test", "--ckpt_path", "best")
    run("fit", "--ckpt_path", "last", "--trainer.max_epochs", "2")
    config = yaml.safe_load(Path("runs/folder/version_0/config.yaml").read_text())
    # The same command starts another run from the weights.
    assert config["model"]["init_args"]["backbone"]["init_args"]["weights"] == "IMAGENET1K_V1"


def test_predict_needs_no_training_data(place: Path) -> None:
    run("fit", *NARROW, "--model.weights", "null")
    (place / "data").rename(place / "elsewhere")
    run("predict", "--ckpt_path", "best", "--images", "elsewhere/photos/dog/1.png")
    run("test", "--ckpt_path", "best", "--data.root", "elsewhere/photos")


def test_data_that_is_gone_is_named(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("fit", *NARROW, "--model.weights", "null")
    (place / "data").rename(place / "elsewhere")
    assert "data/photos" in refused(capsys, "test", "--ckpt_path", "best")


def test_renamed_classes_are_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("fit", *NARROW, "--model.weights", "null")
    (place / "other/cat").mkdir(parents=True)
    (place / "other/wolf").mkdir()
    for path in (place / "data/photos/dog").iterdir():
        path.rename(place / "other/wolf" / path.name)
    (place / "data/photos/cat/1.png").rename(place / "other/cat/1.png")
    assert "wolf" in refused(capsys, "test", "--ckpt_path", "best", "--data.root", "other")
