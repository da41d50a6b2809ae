"""`probe`: simple classifiers on the features of a frozen network."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from resnet_pl.evaluation.frozen_features import advice, cross_validated
from resnet_pl.models import cifar_resnet
from resnet_pl.utils import UserError
from tests.cli.commands import PROJECT, printed, refused, run
from tests.conftest import write_photos


def test_the_features_of_published_weights(
    photo_folder: Path, place: Path, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    torch.save(cifar_resnet(8, num_classes=7).state_dict(), "published.pth")
    network = ["--model.backbone", "cifar_resnet", "--model.backbone.depth", 8]
    data = ["--data.root", photo_folder, "--data.image_size", 16, "--data.num_workers", 0]
    out = printed(capsys, "probe", *network, "--model.weights", "published.pth", *data)
    # Three of the 30 photos are for testing. Each class has a hue of its own.
    assert "probe: 27 images (train and val)" in out and "on 64 features" in out
    accuracy = {line.rsplit(maxsplit=2)[0].strip(): line.split()[-2] for line in out.splitlines() if "%  " in line}
    assert float(accuracy["largest class"][:-1]) < 40 and float(accuracy["logistic regression"][:-1]) > 80
    assert "logistic regression" in printed(capsys, "probe", "--ckpt_path", copy, "--data", "ImageFolder", *data)

    assert "no pretrained weights" in refused(capsys, "probe", *network, *data)
    assert "probe needs pretrained weights" in refused(capsys, "probe", *data)
    assert "image files" in refused(capsys, "probe", "--ckpt_path", copy)
    shutil.rmtree(photo_folder / "cat")
    for path in [*(photo_folder / "bee").iterdir()][1:]:
        path.unlink()
    assert "two images each" in refused(capsys, "probe", *network, "--model.weights", "published.pth", *data)


def test_images_of_the_training_are_excluded(photo_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--data.root", photo_folder, "--data.image_size", 16, "--data.num_workers", 0, "--model.weights", "null"]
    small += ["--model.backbone", "cifar_resnet", "--model.backbone.depth", 8, "--dashboard.images", 0]
    run(
        "fit",
        "--config",
        PROJECT / "configs/folder.yaml",
        *small,
        "--dashboard.graph",
        "false",
        "--trainer.max_steps",
        1,
    )
    probe = ["probe", "--ckpt_path", "best", "--name", "folder", "--data.root"]
    assert "all 27 images" in refused(capsys, *probe, photo_folder)
    renamed = write_photos(Path("renamed"), first=50)
    for path in photo_folder.rglob("*.jpg"):
        shutil.copy(path, renamed / path.parent.name / f"new_{path.name}")
    out = printed(capsys, *probe, renamed)
    # 60 photos, of which six are for testing; three of the 30 known ones were for testing then.
    assert re.search(r"note: \d+ of 54 images are excluded, for example .*new_", out)
    kept = int(re.search(r"probe: (\d+) images", out)[1])  # pyright: ignore[reportOptionalSubscript]
    assert 24 <= kept <= 33


def test_the_accuracy_of_known_features() -> None:
    labels = np.arange(90) % 3
    noise = np.random.default_rng(0).normal(size=(90, 8)).astype(np.float32)
    separable = noise + 8 * np.eye(8, dtype=np.float32)[labels]
    scores = cross_validated(separable, labels)
    assert [len(each) for each in scores.values()] == [5, 5, 5] and scores["logistic regression"].mean() == 1
    assert scores["largest class"].mean() == pytest.approx(1 / 3) and "a new head may be enough" in advice(scores)
    assert "hardly separate the classes" in advice(cross_validated(noise, labels))
    part = cross_validated(np.where(np.arange(90)[:, None] < 60, separable, noise), labels)
    assert "Fine-tuning is likely to pay" in advice(part)
    with pytest.raises(UserError, match="two classes"):
        cross_validated(noise, np.zeros(90))
