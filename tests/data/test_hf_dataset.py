"""Datasets of Hugging Face: a small local one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from resnet_pl.data import HFDataset
from resnet_pl.data.decode import read_image
from resnet_pl.utils import UserError


def hf_data(folder: Path, **kwargs: Any) -> HFDataset:
    return HFDataset(str(folder), image_size=16, batch_size=4, num_workers=0, **kwargs)


@pytest.fixture
def saved(tmp_path: Path, photo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a dataset with the splits train and validation, and a column of patients."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    paths = sorted(photo_folder.glob("*/*"))
    features = datasets.Features(
        image=datasets.Image(), animal=datasets.ClassLabel(names=["cat", "bee", "ant"]), patient=datasets.Value("int64")
    )
    columns = {
        "image": [{"bytes": path.read_bytes(), "path": None} for path in paths],
        "animal": [path.parent.name for path in paths],
        "patient": [number // 2 for number in range(28)] + [None, None],
    }
    columns["animal"][0] = None
    images = datasets.Dataset.from_dict(columns, features=features)
    splits = {"train": images.select(range(0, 30, 2)), "validation": images.select(range(1, 30, 2))}
    datasets.DatasetDict(splits | {"extra": images}).save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


def test_splits_labels_and_images(
    saved: Path, tmp_path: Path, photo_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = hf_data(saved, label_column="animal", group_column="patient")
    data.prepare_data()
    data.setup("fit")
    assert data.classes == ["ant", "bee", "cat"] and data.root.is_relative_to(tmp_path / "cache")
    assert {split: len(images) for split, images in data.splits.items()} == {"train": 14, "val": 15, "test": 15}
    paths = sorted(photo_folder.glob("*/*"))
    for index, name in enumerate(data.splits["val"].names):
        path = paths[2 * index + 1]
        assert torch.equal(read_image(data.root / name), read_image(path))
        assert data.classes[data.splits["val"].labels[index]] == path.parent.name
    assert data.split_note and "13 of 14 groups are in several splits" in data.split_note
    assert data.groups(data.splits["val"].names)[-2:] == ["13", ""]
    out = capsys.readouterr().out
    assert "1 train images" in out and "not used: extra" in out
    hf_data(saved, label_column="animal", group_column="patient").prepare_data()
    assert "writing" not in capsys.readouterr().out


def test_the_dataset_is_not_loaded_to_predict_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = hf_data(tmp_path / "nowhere")
    data.set_predict_files([tmp_path / "photo.jpg"])
    data.prepare_data()
    assert not data.root.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "data.label_column: .* has no column label\nits columns are image, animal, patient"),
        ({"image_column": "patient", "label_column": "animal"}, "patient of .* does not contain images"),
    ],
)
def test_wrong_columns_are_named(saved: Path, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        hf_data(saved, **options).prepare_data()


def test_two_splits_of_one_kind_are_refused(saved: Path) -> None:
    datasets = pytest.importorskip("datasets")
    images = datasets.load_from_disk(str(saved))
    folder = saved.with_name("twice")
    datasets.DatasetDict({"train_1": images["train"], "train_2": images["extra"]}).save_to_disk(folder)
    with pytest.raises(UserError, match="two train splits: train_1 and train_2"):
        hf_data(folder, label_column="animal").prepare_data()


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"HFDataset needs the package datasets\npip install "):
        hf_data(tmp_path).prepare_data()
