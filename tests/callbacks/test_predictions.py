"""The files that `predict` writes: a row and a thumbnail for each image, in order."""

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from resnet_pl.callbacks import PredictionWriter
from resnet_pl.data.tensors import TensorImageDataset
from resnet_pl.utils import UserError
from tests.tiny import Tiny, classifier, trainer

NAMES = ["ant", "bee", "cat"]


def read(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write(writer: PredictionWriter, batches: list[list[int]], known: int = 0, **module: Any) -> None:
    """Passes batches of image indices to a writer: the prediction of image i is class i % 3, its label `known`.

    Images from 6 on have no label.
    """
    images = TensorImageDataset(
        torch.zeros(9, 3, 8, 8, dtype=torch.uint8), torch.zeros(9), [f"{i}.png" for i in range(9)]
    )
    run = SimpleNamespace(world_size=1, is_global_zero=True, datamodule=SimpleNamespace(predict_images=images))
    module = SimpleNamespace(**{"class_names": NAMES} | module)
    writer.on_predict_start(run, module)
    for batch in batches:
        indices = torch.tensor(batch)
        probabilities = 0.1 + 0.7 * torch.nn.functional.one_hot(indices % 3, 3)
        labels = torch.where(indices < 6, known, -1)
        outputs = {"probabilities": probabilities, "labels": labels, "indices": indices}
        writer.on_predict_batch_end(run, module, outputs, None, 0)
    writer.on_predict_end(run, module)


def test_rows_are_in_the_order_of_the_images(tmp_path):
    write(PredictionWriter(tmp_path), [[7, 1], [4, 0, 8]])
    rows = [(row["path"], row["truth"], row["prediction"]) for row in read(tmp_path)]
    assert rows == [
        ("0.png", "ant", "ant"), ("1.png", "ant", "bee"), ("4.png", "ant", "bee"), ("7.png", "", "bee"),
        ("8.png", "", "cat"),
    ]  # fmt: skip


def test_a_label_of_a_module_without_class_names(tmp_path):
    write(PredictionWriter(tmp_path, top_k=1), [[0, 1]], known=2, class_names=())
    assert [row["truth"] for row in read(tmp_path)] == ["2", "2"]


def test_top_k_is_limited_by_the_number_of_classes(tmp_path):
    write(PredictionWriter(tmp_path / "two", top_k=2), [[0]])
    write(PredictionWriter(tmp_path / "all", top_k=9), [[0]])
    assert {key for key in read(tmp_path / "two")[0] if "class" in key} == {"class_2"}
    assert {key for key in read(tmp_path / "all")[0] if "class" in key} == {"class_2", "class_3"}
    assert float(read(tmp_path / "two")[0]["probability"]) == pytest.approx(0.8)


def test_the_contact_sheet_has_a_limited_number_of_images(tmp_path):
    write(PredictionWriter(tmp_path / "four", sheet=4), [[0, 1, 2, 3, 4]])
    write(PredictionWriter(tmp_path / "one", sheet=1), [[0, 1, 2, 3, 4]])
    four, one = (Image.open(tmp_path / name / "contact_sheet.png") for name in ("four", "one"))
    assert four.width > 1.5 * one.width
    assert four.height > 1.5 * one.height


def test_no_images_and_no_contact_sheet(tmp_path):
    write(PredictionWriter(tmp_path / "none"), [])
    write(PredictionWriter(tmp_path / "no sheet", sheet=0), [[1]])
    assert read(tmp_path / "none") == []
    assert not (tmp_path / "none" / "contact_sheet.png").exists()
    assert not (tmp_path / "no sheet" / "contact_sheet.png").exists()


def test_a_folder_that_cannot_be_created(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        write(PredictionWriter(tmp_path / "file" / "sub"), [[1]])


def test_predict_with_a_trainer(tmp_path):
    module, data = classifier(), Tiny()
    trainer(limit_train_batches=1).fit(module, datamodule=data)
    writer = PredictionWriter(tmp_path, top_k=2)
    run = trainer(callbacks=[writer])
    batches = run.predict(module, datamodule=data)
    rows, test = read(tmp_path), data.splits["test"]
    assert [row["path"] for row in rows] == test.names
    assert [row["truth"] for row in rows] == [f"class {label}" for label in test.labels]
    probabilities, classes = torch.cat([batch["probabilities"] for batch in batches]).topk(2)
    assert [row["prediction"] for row in rows] == [f"class {label}" for label in classes[:, 0]]
    assert [float(row["probability_2"]) for row in rows] == pytest.approx(probabilities[:, 1].tolist(), abs=1e-5)
    assert [row["path"] for row in writer.rows] == test.names
    run.predict(module, datamodule=data)
    assert len(read(tmp_path)) == 20
