"""Data modules and streams that yield (images, labels) work with ImageClassifier."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from resnet_pl import load_run
from resnet_pl.cli.main import main
from resnet_pl.data.batch import Batch
from resnet_pl.models import cifar_resnet
from resnet_pl.utils import UserError
from tests.tiny import classifier

MODEL = ["--model.backbone", "cifar_resnet", "--model.backbone.depth", "8", "--model.optimizer", "SGD"]
MODEL += ["--model.optimizer.lr", "0.01"]


def results() -> dict[str, object]:
    return json.loads(Path("runs/resnet/version_0/results.json").read_text())


def test_plain_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--data", "tests.own.PlainData", *MODEL, "--trainer.max_epochs", "1"]) == 0
    assert main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "2"]) == 0
    assert main(["test", "--ckpt_path", "best"]) == 0
    assert [*results()["per_class"]] == ["dark", "gray", "bright"]  # pyright: ignore[reportGeneralTypeIssues]
    assert results()["images"] == 60
    assert main(["predict", "--ckpt_path", "best"]) == 0
    rows = Path("runs/resnet/version_0/predictions.csv").read_text().splitlines()
    assert len(rows) == 61 and rows[1].startswith("0,")
    capsys.readouterr()
    # Images can only be prepared by an ImageDataModule.
    assert main(["predict", "--ckpt_path", "best", "--images", "a.jpg"]) == 2
    assert "--images" in capsys.readouterr().err
    assert main(["test", "--ckpt_path", "best", "--tta", "flip"]) == 2
    assert "--tta" in capsys.readouterr().err


@pytest.mark.filterwarnings("error:.*is off for the rest")
def test_a_stream_without_a_length() -> None:
    length = ["--trainer.max_epochs", "-1", "--trainer.val_check_interval", "4"]
    assert main(["fit", "--data", "tests.own.Stream", *MODEL, *length, "--trainer.max_steps", "8"]) == 0
    checkpoint = torch.load("runs/resnet/version_0/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 8
    assert main(["test", "--ckpt_path", "best"]) == 0
    assert results()["images"] == 60


def test_data_that_is_split_at_random() -> None:
    assert main(["fit", "--data", "tests.own.Unseeded", *MODEL, "--trainer.max_epochs", "1"]) == 0
    assert main(["test", "--ckpt_path", "last"]) == 0
    labels = torch.cat([labels for _, labels in load_run("runs/resnet/version_0")[1].test_dataloader()])
    per_class = [row["images"] for row in results()["per_class"].values()]  # pyright: ignore[reportAttributeAccessIssue]
    assert labels.bincount(minlength=3).tolist() == per_class
    # A test on other images is another result.
    assert main(["test", "--ckpt_path", "last", "--data.count", "30"]) == 0
    assert results()["images"] == 20
    assert results()["single view, count 30"]["images"] == 30  # pyright: ignore[reportIndexIssue]


def test_batches_of_another_form(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--data", "tests.own.Dictionaries", *MODEL, "--trainer.max_epochs", "1"]) == 2
    assert "a batch is (dict), not two tensors (images, labels)" in capsys.readouterr().err


def test_a_batch_of_any_data() -> None:
    images, labels = torch.zeros(4, 3, 2, 2), torch.tensor([0, 1, 2, 0])
    batch = Batch.of([images, labels], batch_idx=2)
    assert batch.images is images and batch.labels is labels
    assert batch.indices.tolist() == [8, 9, 10, 11]
    assert Batch.of(batch, 5) is batch


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([1, 2, 3, 1]), "there is a label 3"),
        (torch.tensor([[0], [1], [2], [0]]), "labels have the shape (4, 1)"),
        (torch.tensor([0.0, 1.0, 2.0, 0.0]), "float32"),
        (torch.eye(4)[:, :2], "2 columns"),
    ],
)
def test_labels_that_do_not_fit(labels: torch.Tensor, message: str) -> None:
    module = classifier(backbone=cifar_resnet(8, num_classes=3))
    module.configure_model()
    images = torch.zeros(4, 3, 8, 8)
    with pytest.raises(UserError, match=re.escape(message)):
        module.training_step([images, labels], 0)
    with pytest.raises(UserError, match="N, C, H, W"):
        module.training_step([images.permute(0, 2, 3, 1), torch.zeros(4).long()], 0)
    module.training_step([images, torch.zeros(4, dtype=torch.int32)], 0)
