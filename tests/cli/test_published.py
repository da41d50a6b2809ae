"""Published weights without training: their own classes, found in the data by name or WordNet ID, or a refusal."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from torch import Tensor

from resnet_pl import resnet18
from resnet_pl.models import cifar_resnet
from resnet_pl.models.class_rows import imagenet_categories, match_classes, wordnet_ids
from resnet_pl.reports.results import read_results
from tests.cli.commands import PROJECT, refused, run
from tests.conftest import write_photos

SMALL = ["--data.image_size", 32, "--data.num_workers", 0, "--output", "out"]
NET = ["--model.backbone", "cifar_resnet", "--model.backbone.depth", 8]


def always(output: int, outputs: int = 1000) -> dict[str, Tensor]:
    """Weights of a network that predicts the same class for every image."""
    net = cifar_resnet(8, num_classes=outputs)
    torch.nn.init.zeros_(net.fc.weight)
    torch.nn.init.zeros_(net.fc.bias).data[output] = 5
    return net.state_dict()


def write_split(*classes: str) -> list[object]:
    """Writes training and test images; the last class has twice as many as each of the others."""
    for split in ("train", "test"):
        write_photos(Path("photos", split), classes, count=2, first=0 if split == "train" else 50)
        write_photos(Path("photos", split), classes[-1:], count=2, first=10 if split == "train" else 60)
    return ["--data.root", "photos", "--data.val_split", 2]


@pytest.mark.parametrize(
    "names",
    [("n01440764", "n01443537"), pytest.param(("great_white_shark", "Goldfish"), marks=pytest.mark.slow)],
)
def test_a_part_of_imagenet_is_tested_with_the_head_of_the_file(
    place: Path, names: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(always(output=1), "net.pth")  # goldfish, n01443537
    run("test", *NET, "--model.weights", "net.pth", *write_split(*names), *SMALL)
    results = read_results(Path("out/results.json"))
    assert results["top1"] == pytest.approx(4 / 6) and results["top5"] > results["top1"]
    assert results["per_class"][names[1]].items() >= {"images": 4, "correct": 4, "top1": 1.0}.items()
    assert "those of ImageNet are assumed" in capsys.readouterr().out


def test_a_class_that_the_weights_lack_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(always(1), "net.pth")
    words = ["test", *NET, "--model.weights", "net.pth", *SMALL]
    said = refused(capsys, *words, *write_split("tench", "unicorn"))
    assert "unicorn" in said and "1,000" in said and "WordNet" in said
    torch.save(always(1, outputs=7), "net.pth")
    assert "7 outputs without names" in refused(capsys, *words, *write_split("tench", "unicorn"))
    state = {key: value for key, value in always(1).items() if not key.startswith("fc.")}
    torch.save(state, "net.pth")
    assert "no classifier head" in refused(capsys, *words, *write_split("tench", "unicorn"))


def test_a_checkpoint_is_not_evaluated_as_weights(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = copy / "checkpoints/best.ckpt"
    other = ["--config", PROJECT / "configs/digits.yaml", "--data.split_seed", 7]
    # The network of the last one is not that of the checkpoint.
    for command, depth in (("test", 8), ("validate", 8), ("predict", 8), ("test", 14)):
        said = refused(
            capsys, command, *other, "--model.backbone.depth", depth, "--model.weights", best, "--output", "out"
        )
        assert f"model.weights: {best} is a checkpoint" in said and f"--ckpt_path {best}" in said
    assert not list(Path("out").glob("*"))


def test_predict_needs_the_weights_and_an_image(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    net = resnet18()
    torch.nn.init.zeros_(net.fc.bias).data[281] = 100
    torch.save(net.state_dict(), place / "resnet18.pth")
    monkeypatch.setattr("resnet_pl.classifier.fetch_weights", lambda url: place / "resnet18.pth")
    write_photos(place, ["new"], count=1)
    run("predict", "--model.weights", "IMAGENET1K_V1", "--model.backbone", "resnet18", "--images", "new")
    with Path("predictions.csv").open(newline="") as file:
        assert [row["prediction"] for row in csv.DictReader(file)] == ["tabby"]
    said = refused(capsys, "predict", "--model.weights", "IMAGENET1K_V1", "--images", "new")
    assert "model.backbone" in said and "--model.backbone resnet50" in said


def test_the_classes_of_imagenet() -> None:
    names, ids = imagenet_categories(), wordnet_ids()
    assert len(ids) == len(names) == 1000 and list(ids) == sorted(set(ids))
    assert (names[ids.index("n02123045")], names[ids.index("n07753592")]) == ("tabby", "banana")
    assert match_classes([["n02123045"], ["Tabby"], ["siamese-cat"], ["cat"]], names) == [281, 281, 284, None]
    assert match_classes([["b"], ["A"], ["c"]], ["a", "b", "c", "c"]) == [1, 0, None]
