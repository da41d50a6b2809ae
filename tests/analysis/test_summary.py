"""`summary` on the command line: its counts, where models come from, and its errors."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import yaml
from torch import Tensor, nn

from resnet_pl.cli.main import main
from tests.tiny import Tiny, classifier, trainer

Rows = list[dict[str, str]]
PROJECT = Path(__file__).parent.parent.parent


class Square(nn.Module):
    """Reads a tensor value, which the meta device does not have, and has no child modules."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.ones_(nn.Linear(3, 2).weight).detach())

    def forward(self, images: Tensor) -> Tensor:
        assert self.weight.sum().item() == 6
        return images.mean((2, 3)) @ self.weight.T


def summary(tmp_path: Path, *options: str) -> Rows:
    """Runs the command; returns the rows of the CSV."""
    assert main(["summary", *options, "--output", str(tmp_path / "summary.csv")]) == 0
    with (tmp_path / "summary.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def totals(rows: Rows) -> dict[str, tuple[int, float]]:
    """Parameters and 10^9 multiply-adds of each model."""
    rows = [row for row in rows if row["layer"] == "total"]
    return {row["model"]: (int(row["parameters"]), round(int(row["multiply_adds"]) / 1e9, 3)) for row in rows}


def two_lines(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert main(["summary", *options]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and len(message.splitlines()) <= 2
    return message


def test_figure_3(tmp_path, capsys):
    rows = summary(tmp_path, "--backbone", "plain34", "--compare", "resnet34", "vgg19", "vgg16")
    assert totals(rows) == {
        "plain34": (21_623_848, 3.644),
        "resnet34": (21_797_672, 3.664),
        "vgg19": (143_667_240, 19.632),
        "vgg16": (138_357_544, 15.470),
    }
    shown = capsys.readouterr().out
    assert "21,623,848" in shown and "3,644.49" in shown and "19,632.06" in shown and "224 × 224" in shown


def test_the_bottleneck_blocks_of_the_paper(tmp_path):
    rows = summary(tmp_path, "--backbone", "resnet50", "--backbone.shortcut", "C", "--backbone.variant", "v1")
    (total,) = totals(rows).items()
    assert total[0] == "resnet50(shortcut=C, variant=v1)" and total[1][0] == 40_128_552
    # Blocks are shown, their children are not.
    assert [row["layer"] for row in rows[:6]] == ["conv1", "bn1", "relu", "maxpool", "layer1.0", "layer1.1"]
    assert rows[4]["type"] == "Bottleneck" and rows[4]["output"] == "256x56x56"
    assert (rows[0]["parameters"], rows[0]["multiply_adds"]) == ("9408", str(9408 * 112 * 112))


def test_rows_add_up_to_the_total_at_any_depth(tmp_path):
    layers = {}
    for depth in ("1", "2", "all"):
        *rows, total = summary(tmp_path, "--backbone", "cifar_resnet", "--depth", depth)
        for column in ("parameters", "multiply_adds", "activation_bytes"):
            assert sum(int(row[column]) for row in rows) == int(total[column])
        layers[depth] = [row["layer"] for row in rows]
    assert layers["1"] == ["conv1", "bn1", "relu", "layer1", "layer2", "layer3", "avgpool", "fc"]
    assert "layer3.2" in layers["2"] and "layer3.2.conv2" in layers["all"]
    assert len(layers["all"]) == 3 + 9 * 5 + 2 + 2, "identities are omitted"


def test_a_model_of_any_depth_fits_on_a_screen(tmp_path):
    *rows, total = summary(tmp_path, "--backbone", "cifar_resnet", "--backbone.depth", "110")
    assert len(rows) <= 40 and total["parameters"] == "1727962" and total["model"] == "cifar_resnet(depth=110)"


def test_activation_checkpointing_reduces_the_activations(tmp_path):
    deep = ["--backbone", "cifar_resnet", "--backbone.depth", "56"]
    saved = int(summary(tmp_path, *deep)[-1]["activation_bytes"])
    checkpointed = summary(tmp_path, *deep, "--backbone.checkpoint_activations", "true")
    assert int(checkpointed[-1]["activation_bytes"]) < saved / 3
    assert totals(checkpointed).popitem()[1] == (853_018, 0.125)


def test_the_model_of_a_configuration(tmp_path):
    config = ["--config", str(PROJECT / "configs/cifar10.yaml")]
    rows = summary(tmp_path, "--backbone.depth", "56", *config, "--num_classes", "7")
    assert totals(rows) == {"cifar_resnet(depth=56)": (853_018 - 3 * 65, 0.125)}
    assert rows[0]["output"] == "16x32x32"


def test_the_default_image_size_of_the_data(tmp_path):
    rows = summary(tmp_path, "--config", str(PROJECT / "configs/digits.yaml"))
    assert rows[0]["output"] == "16x16x16"


@pytest.mark.parametrize("named", [False, True])
def test_both_forms_of_the_model_section(tmp_path, named):
    model = {"backbone": {"class_path": "cifar_resnet", "init_args": {"depth": 8}}, "num_classes": 7}
    if named:
        model = {"class_path": "resnet_pl.ImageClassifier", "init_args": model}
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({"model": model, "data": {"init_args": {"image_size": 12}}}))
    rows = summary(tmp_path, "--config", str(path))
    assert (rows[0]["output"], rows[-1]["output"]) == ("16x12x12", "7")


def test_the_model_of_a_checkpoint(tmp_path):
    fitted = trainer(tmp_path)
    fitted.fit(classifier(), datamodule=Tiny())
    path = tmp_path / "tiny.ckpt"
    fitted.save_checkpoint(path)
    assert totals(summary(tmp_path, "--ckpt_path", str(path))).popitem()[1][0] == 75_290 - 6 * 65


def test_the_image_size_and_classes_of_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = {"class_path": "Digits", "init_args": {"image_size": 12}}
    backbone = {"class_path": "cifar_resnet", "init_args": {"depth": 8, "num_classes": 3}}
    Path("own.yaml").write_text(yaml.safe_dump({"model": {"backbone": backbone}, "data": data}))
    short = ["--trainer.max_steps", "1", "--trainer.limit_val_batches", "1"]
    assert main(["fit", "--config", "own.yaml", "--name", "own", *short]) == 0
    for run in ("last", "runs/own/version_0", "runs/own/version_0/checkpoints/last.ckpt"):
        rows = summary(tmp_path, "--ckpt_path", run)
        assert (rows[0]["output"], rows[-1]["output"]) == ("16x12x12", "10"), (
            "the number of classes is that of the data"
        )
    rows = summary(tmp_path, "--config=runs/own/version_0/config.yaml", "--image_size", "20")
    assert rows[0]["output"] == "16x20x20"


def test_a_model_that_reads_values_runs_on_the_cpu(tmp_path):
    (line, total) = summary(tmp_path, "--backbone", f"{__name__}.Square", "--image_size", "5")
    assert (line["layer"], line["parameters"], line["multiply_adds"], line["output"]) == ("", "6", "6", "2")
    assert total["type"] == "Square"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], ["no model", "--backbone resnet50"]),
        (["--backbone.depth", "110"], ["no model", "--backbone resnet50"]),
        (["--backbone", "resnet51"], ["resnet51", "did you mean resnet50"]),
        (["--backbone", "resnet50", "--backbone.shotcut", "C"], ["shotcut", "did you mean shortcut"]),
        (["--backbone", "cifar_resnet", "--backbone.depth", "21"], ["depth=21", "20 and 26"]),
        (["--backbone", "resnet18", "--compare", "vgg99"], ["vgg99", "did you mean vgg19"]),
        (["--backbone", "resnet18", "--depht", "1"], ["--depht"]),
        (["--backbone", "torchvision.models.alexnet", "--image_size", "32"], ["alexnet", "32 pixels", "--image_size"]),
        (["--backbone", "torchvision.models.vit_b_32", "--image_size", "64"], ["Expected 224", "--image_size"]),
        (["--config", "gone.yaml"], ["gone.yaml"]),
        (["--ckpt_path", "gone"], ["checkpoint not found: gone"]),
    ],
)
def test_errors_name_the_problem_and_the_fix(capsys, options, words):
    message = two_lines(capsys, *options)
    assert [word for word in words if word not in message] == []


def test_help_is_a_page(capsys):
    assert main(["summary", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--compare" in shown and "multiply-adds" in shown and len(shown.splitlines()) < 60
