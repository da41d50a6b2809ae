"""Testing protocols through the command line: views, ensembles, precise BN, published weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from resnet_pl.cli import main
from resnet_pl.cli.parser import Restored
from resnet_pl.evaluation.tta import average_scores
from resnet_pl.models import cifar_resnet
from resnet_pl.models.pretrained import read_state_dict
from resnet_pl.reports.results import read_results
from tests.test_cli import SMALL, refused, run


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The run folders of two nets that differ in depth, size of the input, seed and normalisation."""
    root = tmp_path_factory.mktemp("pair")
    run("fit", *SMALL, "--trainer.default_root_dir", root, "--name", "a")
    other = ["--model.backbone.depth", "14", "--seed_everything", "1", "--data.std", "channel", "--name", "b"]
    run("fit", *SMALL, "--trainer.default_root_dir", root, *other)
    return [root / "a/version_0", root / "b/version_0"]


@pytest.fixture
def copies(pair: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Copies of both that a test may write into."""
    monkeypatch.chdir(tmp_path)
    return [Path(shutil.copytree(path, tmp_path / path.parent.name / path.name)) for path in pair]


def by_hand(folder: Path, **kwargs: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of a run's best net on its test images, all at once, and the labels."""
    restored = Restored(folder)
    images = restored.datamodule.split("test")
    with torch.no_grad():
        return average_scores(restored.model, images.images, len(images), **kwargs), images.labels


def top1(scores: torch.Tensor, labels: torch.Tensor) -> float:
    return (scores.argmax(1) == labels).double().mean().item()


def test_each_protocol_has_a_key_of_its_own(copies: list[Path]) -> None:
    for views in ("single", "flip", "10-crop", "multi-scale"):
        run("test", "--ckpt_path", copies[0], "--views", views)
    results = read_results(copies[0] / "results.json")
    assert results["protocol"] == "single view" and results["top1"] == top1(*by_hand(copies[0]))
    flipped = results["view and mirror image"]
    scores, labels = by_hand(copies[0], mirror=True)
    assert flipped["top1"] == top1(scores, labels)
    loss = -scores.gather(1, labels[:, None]).log().mean().item()
    assert flipped["loss"] == pytest.approx(loss, rel=1e-5)
    assert {"10-crop", "multi-scale 16 18 27 34 46"} < results.keys()
    losses = {results["loss"]} | {
        value["loss"] for value in results.values() if isinstance(value, dict) and "loss" in value
    }
    assert len(losses) == 4


def test_an_ensemble_averages_the_probabilities_of_its_members(copies: list[Path]) -> None:
    run("test", "--ensemble", *copies)
    results = read_results(copies[0] / "results.json")
    one, labels = by_hand(copies[0])
    two, _ = by_hand(copies[1])
    together = (one + two) / 2
    assert results["top1"] == top1(together, labels)
    assert results["loss"] == pytest.approx(-together.gather(1, labels[:, None]).log().mean().item(), rel=1e-5)
    assert results["protocol"].startswith("single view, ensemble with") and str(copies[1]) in results["protocol"]


def test_a_leak_between_members_is_refused(
    copies: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("fit", *SMALL, "--trainer.default_root_dir", tmp_path, "--name", "c", "--data.split_seed", "5")
    message = refused(capsys, "test", "--ensemble", copies[0], tmp_path / "c/version_0")
    assert "are training images of" in message and "split_seed" in message


def test_precise_statistics_are_for_this_test_unless_they_are_kept(copies: list[Path], tmp_path: Path) -> None:
    before = (copies[0] / "checkpoints/best.ckpt").read_bytes()
    run("test", "--ckpt_path", copies[0], "--precise_bn", "all", "--save_to", "precise.ckpt")
    assert (copies[0] / "checkpoints/best.ckpt").read_bytes() == before
    results = read_results(copies[0] / "results.json")
    assert results["protocol"] == "single view, precise BN over all images"
    run("test", "--ckpt_path", "precise.ckpt", "--output", "kept")
    run("test", "--ckpt_path", copies[0], "--output", "plain")
    kept, plain = read_results(tmp_path / "kept/results.json"), read_results(tmp_path / "plain/results.json")
    assert kept["loss"] == pytest.approx(results["loss"], rel=1e-6) and kept["loss"] != pytest.approx(plain["loss"])


def test_weights_alone_are_kept_with_what_they_need(copies: list[Path]) -> None:
    safetensors = pytest.importorskip("safetensors")
    run("test", "--ckpt_path", copies[0], "--save_to", "net.safetensors")
    with safetensors.safe_open("net.safetensors", "pt") as file:
        words = {name: json.loads(each) for name, each in file.metadata().items()}
    saved = torch.load(copies[0] / "checkpoints/best.ckpt", weights_only=True)["state_dict"]
    assert words["classes"] == [str(digit) for digit in range(10)]
    assert words["mean"] == pytest.approx(saved["normalize.mean"].flatten().tolist())
    assert words["std"] == pytest.approx(saved["normalize.std"].flatten().tolist())
    net = cifar_resnet(8)
    net.load_state_dict(read_state_dict(Path("net.safetensors")))
    assert all(torch.equal(value, saved[f"backbone.{name}"]) for name, value in net.state_dict().items())


def test_published_weights_are_tested_without_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(3)
    net = cifar_resnet(8).eval()
    torch.save({f"module.{key}": value for key, value in net.state_dict().items()}, "published.pth")
    weights = ["--model.weights", "published.pth", "--data.mean", "[0.2, 0.3, 0.4]", "--data.std", "[0.5, 0.5, 0.5]"]
    run("test", *SMALL[:4], *weights)
    results = read_results(tmp_path / "results.json")
    assert results["checkpoint"] == "weights published.pth" and results["images"] == 360
    from resnet_pl.data import Digits

    data = Digits()
    data.setup("test")
    images = data.split("test")
    normalised = (images.images / 255 - torch.tensor([0.2, 0.3, 0.4])[:, None, None]) / 0.5
    with torch.no_grad():
        assert results["top1"] == pytest.approx(top1(net(normalised), images.labels))


def test_what_does_not_fit_together_is_refused(copies: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    test = ["test", "--ckpt_path", copies[0]]
    assert "smaller than the 16 pixels" in refused(capsys, *test, "--views", "multi-scale", "--scales", "16", "12")
    assert "multi-scale" in refused(capsys, *test, "--scales", "16", "32")
    assert "--precise_bn" in refused(capsys, *test, "--save_to", "x.ckpt")
    assert "no --ensemble" in refused(capsys, *test, "--save_to", "x.safetensors", "--ensemble", "x.ckpt")
    assert main.main([*map(str, test), "--views", "11-crop"]) == 2
    message = refused(capsys, *test, "--data.mean", "pixel")
    assert "data.mean" in message and "recorded the mean channel, not pixel" in message
    run(*test, "--data.mean", "channel")
    assert "there is no checkpoint" in refused(capsys, "test", "--ensemble", copies[0], "nowhere.ckpt")
