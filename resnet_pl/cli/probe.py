"""The subcommand `probe`: how well the features of a pretrained network separate the classes, before any training."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningArgumentParser

from resnet_pl.callbacks import GracefulStop
from resnet_pl.callbacks.features_npz import FeatureWriter
from resnet_pl.classifier import ImageClassifier
from resnet_pl.cli.evaluate import checkpoint_label
from resnet_pl.data import ImageFolder
from resnet_pl.data.restored_splits import RestoredSplits
from resnet_pl.evaluation.frozen_features import advice, cross_validated
from resnet_pl.reports.tables import numbers_table, print_report
from resnet_pl.run_dir import get_init_args
from resnet_pl.utils import UserError, rank_zero_print, run_on_rank_zero

if TYPE_CHECKING:
    from resnet_pl.cli.parser import ProjectCLI


def add_arguments(parser: LightningArgumentParser) -> None:
    """Adds no options: those of the model and the data are enough."""


def callbacks(cli: ProjectCLI) -> list[Callback]:
    """Returns the callback that handles signals."""
    return [GracefulStop(cli.output)]


def run(cli: ProjectCLI) -> None:
    """Computes the features of the images, and prints the accuracy of simple classifiers."""
    _check(cli)
    labels = _labeled_images(cli)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.npz"
        cli.callbacks.append(FeatureWriter(path))
        cli.trainer.predict(cli.model, datamodule=cli.datamodule, return_predictions=False, weights_only=True)
        run_on_rank_zero(_report, path, labels)


def _check(cli: ProjectCLI) -> None:
    """Raises UserError without image files of one class each, or without pretrained weights."""
    model, data = cli.model, cli.datamodule
    if not isinstance(model, ImageClassifier) or not isinstance(data, ImageFolder):
        raise UserError("probe needs an ImageClassifier and image files with labels\ngive --data.root FOLDER")
    backbone = get_init_args(get_init_args(cli.plain_config["model"]).get("backbone"))
    if cli.checkpoint is None and model.weights is None and not (backbone.get("pretrained") or backbone.get("weights")):
        raise UserError(
            "probe: the network has no pretrained weights\ngive --model.weights, or --ckpt_path; with timm, "
            "--model.backbone.pretrained true"
        )


def _labeled_images(cli: ProjectCLI) -> dict[str, int]:
    """Finds the images that are not for testing, makes the data load them, and returns the label of each file.

    Images that the network was trained on are excluded: its features separate them too well.
    """
    data = cli.datamodule
    restored, data.restored_provenance = data.restored_provenance, None  # other images can have other classes
    if restored is not None and restored.digests is None and restored.root == str(data.root.resolve()):
        raise UserError(
            "probe: the network was trained on images of this folder\n"
            "give other images with --data.root, or evaluate it with test"
        )
    data.prepare_data()
    data.setup("probe")
    if data.multi_label:
        raise UserError("probe: the images have several classes each\nuse images with one class each")
    names = [name for name in ("train", "val") if name in data.splits]
    listing: dict[str, Any] = {
        image: int(label)
        for images in (data.split(name) for name in names)
        for image, label in zip(images.names, images.labels, strict=True)
    }
    if restored is not None:
        finder = RestoredSplits(restored, data.root, data.source, "probe", skip=False)
        listing, _ = finder.without_trained(listing, "train", also_val=True)
    found = {str(data.root / image): label for image, label in listing.items()}
    rank_zero_print(f"probe: {len(found):,} images ({' and '.join(names)}), {data.describe()}; {checkpoint_label(cli)}")
    data.set_predict_files([Path(name) for name in found])
    return found


def _report(path: Path, labels: dict[str, int]) -> None:
    stored = np.load(path)
    scores = cross_validated(stored["features"], np.array([labels[file] for file in stored["files"].tolist()]))
    table = numbers_table("classifier", numbers=["accuracy", "± std over folds"])
    for name, each in scores.items():
        table.add_row(name, f"{each.mean():.2%}", f"{each.std(ddof=1):.2%}")
    print_report(table)
    count, folds = stored["features"].shape[1], max(map(len, scores.values()))
    print(f"{folds}-fold cross-validation on {count:,} features. {advice(scores)}")
