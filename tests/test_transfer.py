"""Transfer learning: where weights come from, and that a checkpoint needs none of them."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from resnet_pl.cli import main
from resnet_pl.models import resnet18
from resnet_pl.reports.results import read_results

PROJECT = Path(__file__).parent.parent
STILL = ["--model.optimizer.lr", "1e-9", "--model.optimizer.weight_decay", "0"]
SMALL = [
    *["--config", str(PROJECT / "configs/folder.yaml"), "--data.image_size", "32", "--data.batch_size", "4"],
    *["--data.num_workers", "0", "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1"],
]


class Served:
    """A folder served on loopback."""

    def __init__(self, folder: Path) -> None:
        self.requests: list[str] = []
        outer = self

        class Handler(SimpleHTTPRequestHandler):
            def log_message(self, *args: object) -> None:
                outer.requests.append(self.path)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Photos of two classes, an empty cache of torch's, and no way to the network but loopback."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setattr("resnet_pl.data.download.PAUSE", 0.0)
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "data/photos" / name).mkdir(parents=True)
        for i in range(8):
            pixels = rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data/photos" / name / f"{i}.png")
    return tmp_path


@pytest.fixture
def served(place: Path) -> Iterator[Served]:
    (place / "served").mkdir()
    served = Served(place / "served")
    yield served
    served.server.shutdown()
    served.server.server_close()


def backbone(run: str) -> dict[str, torch.Tensor]:
    """The backbone's weights in a run's last checkpoint."""
    state = torch.load(f"runs/{run}/version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    return {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}


def test_weights_from_a_server_are_fetched_once(
    place: Path, served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    net = torchvision.models.resnet18()
    torch.save(net.state_dict(), place / "served/net.pth")
    digits = hashlib.sha256((place / "served/net.pth").read_bytes()).hexdigest()[:8]
    (place / "served/net.pth").rename(place / f"served/resnet18-{digits}.pth")
    url = f"{served.url}/resnet18-{digits}.pth"
    for _ in range(2):
        assert main.main(["fit", *SMALL, *STILL, "--model.weights", url]) == 0
    out = capsys.readouterr().out
    assert "new head for 2 classes (the file's has 1000)" in out
    assert served.requests == [f"/resnet18-{digits}.pth"]
    assert (place / f"torch/hub/checkpoints/resnet18-{digits}.pth").is_file()
    trained, start = backbone("folder"), net.state_dict()
    assert trained["fc.weight"].shape == (2, 512)
    assert torch.allclose(trained["layer4.1.conv2.weight"], start["layer4.1.conv2.weight"], atol=1e-6)


def test_torchvision_weights_saved_locally(place: Path) -> None:
    net = torchvision.models.resnet18()
    torch.save(net.state_dict(), "mine.pth")
    assert main.main(["fit", *SMALL, *STILL, "--model.weights", "mine.pth"]) == 0
    assert torch.allclose(backbone("folder")["conv1.weight"], net.state_dict()["conv1.weight"], atol=1e-6)


def test_our_own_checkpoint_as_weights(place: Path) -> None:
    assert main.main(["fit", *SMALL, "--model.weights", "null", "--name", "first"]) == 0
    first = "runs/first/version_0/checkpoints/last.ckpt"
    assert main.main(["fit", *SMALL, *STILL, "--model.weights", first, "--name", "second"]) == 0
    assert torch.allclose(backbone("second")["fc.weight"], backbone("first")["fc.weight"], atol=1e-6)


def test_offline_says_what_to_do(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["fit", *SMALL]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line]
    said = said[next(i for i, line in enumerate(said) if line.startswith("error: ")) :]
    assert len(said) == 2
    assert "resnet18-f37072fd.pth" in said[0]
    assert str(place / "torch/hub/checkpoints") in said[1] and "--model.weights null" in said[1]
    assert not Path("runs/folder/version_0").exists()


def test_a_checkpoint_needs_no_pretrained_weights(place: Path) -> None:
    torch.save(resnet18().state_dict(), "mine.pth")
    assert main.main(["fit", *SMALL, "--model.weights", "mine.pth"]) == 0
    Path("mine.pth").unlink()
    assert main.main(["test", "--ckpt_path", "best"]) == 0
    assert main.main(["predict", "--ckpt_path", "best", "--images", "data/photos/cat"]) == 0
    assert main.main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "2"]) == 0
    assert read_results(Path("runs/folder/version_0/results.json"))["images"] >= 1


def test_a_backbone_with_weights_of_its_own(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = place / "torch/hub/checkpoints"
    cache.mkdir(parents=True)
    torch.save(torchvision.models.resnet18().state_dict(), cache / "resnet18-f37072fd.pth")
    own = ["--model.backbone", "torchvision.models.resnet18", "--model.backbone.weights", "IMAGENET1K_V1"]
    assert main.main(["fit", *SMALL, *own, "--model.weights", "null"]) == 0
    (cache / "resnet18-f37072fd.pth").unlink()
    assert main.main(["test", "--ckpt_path", "best"]) == 0


def test_predict_needs_no_training_data(place: Path) -> None:
    assert main.main(["fit", *SMALL, "--model.weights", "null"]) == 0
    (place / "data").rename(place / "elsewhere")
    assert main.main(["predict", "--ckpt_path", "best", "--images", "elsewhere/photos/dog/1.png"]) == 0
    assert main.main(["test", "--ckpt_path", "best", "--data.root", "elsewhere/photos"]) == 0


def test_data_that_is_gone_is_named(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["fit", *SMALL, "--model.weights", "null"]) == 0
    (place / "data").rename(place / "elsewhere")
    capsys.readouterr()
    assert main.main(["test", "--ckpt_path", "best"]) == 2
    assert "data/photos" in capsys.readouterr().err


def test_renamed_classes_are_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["fit", *SMALL, "--model.weights", "null"]) == 0
    (place / "other/cat").mkdir(parents=True)
    (place / "other/wolf").mkdir()
    for path in (place / "data/photos/dog").iterdir():
        path.rename(place / "other/wolf" / path.name)
    (place / "data/photos/cat/1.png").rename(place / "other/cat/1.png")
    capsys.readouterr()
    assert main.main(["test", "--ckpt_path", "best", "--data.root", "other"]) == 2
    assert "wolf" in capsys.readouterr().err
