"""Images with predictions by networks that were not trained on them, which `report` searches for label errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from resnet_pl import run_dir
from resnet_pl.callbacks.access import image_name
from resnet_pl.callbacks.collector import PredictionCollector
from resnet_pl.data import ImageDataModule
from resnet_pl.reports.label_errors import find_folds, read_out_of_fold
from resnet_pl.reports.report_page import PageImage, photo
from resnet_pl.utils import UserError

if TYPE_CHECKING:
    from resnet_pl.cli.parser import ProjectCLI


@dataclass
class UnseenImages:
    """Images that were predicted by a network that was not trained on them.

    Attributes:
        places: split and index of each image; the split is None for data that does not give access to its images.
        labels: `(N,)` int64.
        probabilities: `(N, K)`.
        source: where the predictions are from, as text.
    """

    places: list[tuple[Any, int]]
    labels: np.ndarray
    probabilities: np.ndarray
    source: str

    @property
    def accuracy(self) -> float:
        """Share of the images whose label is predicted."""
        return float((self.probabilities.argmax(1) == self.labels).mean())

    @property
    def files(self) -> list[str]:
        """Name of each image."""
        return [image_name(images, index) for images, index in self.places]

    def photo(self, position: int) -> PageImage | None:
        """Returns an image for the page; None for data that does not give access to its images."""
        return full_photo(*self.places[position])


def full_photo(images: Any, index: int) -> PageImage | None:
    """Returns an uncropped image of a split for the page; None for data that does not give access to its images."""
    if images is None:
        return None
    return photo(images.load_full_image(index).permute(1, 2, 0).numpy(), image_name(images, index))


def choose_folds(cli: ProjectCLI, class_names: Sequence[str]) -> Path | None:
    """Returns the folder of the cross-validation to use: that of `--folds`, else one of the same images, or None.

    Raises:
        UserError: `--folds` has no predictions for this data.
    """
    data, asked = cli.datamodule, cli.config["folds"]
    is_named = isinstance(data, ImageDataModule) and not data.multi_label
    run = cli.command_line.checkpoint and run_dir.run_dir_of(cli.command_line.checkpoint.absolute())
    if asked is None:
        return find_folds(run, class_names, {*_places(data)}) if run and is_named else None
    if not is_named:
        raise UserError("--folds: only images with names and one class are searched for label errors\nremove --folds")
    if not read_out_of_fold(Path(asked), class_names).keys() & _places(data).keys():
        raise UserError(f"--folds: {asked} has predictions for other images\ngive the cross-validation of this data")
    return Path(asked)


def of_folds(data: ImageDataModule, class_names: Sequence[str], folder: Path) -> UnseenImages:
    """Returns the images of a cross-validation, with the labels that they have now."""
    probabilities, places = read_out_of_fold(folder, class_names), _places(data)
    chosen = {name: place for name, place in places.items() if name in probabilities}
    labels = np.array([int(images.labels[index]) for images, index in chosen.values()], np.int64)
    network = f"a network that was not trained on it (cross-validation in the folder {folder.name})"
    source = f"{len(chosen):,} images, each predicted by {network}"
    return UnseenImages([*chosen.values()], labels, np.stack([probabilities[name] for name in chosen]), source)


def of_evaluations(evaluations: Sequence[PredictionCollector], splits: str) -> UnseenImages:
    """Returns the images of evaluations; `splits` names them."""
    places = [(each.images, index) for each in evaluations for index in each.indices.tolist()]
    labels, probabilities = (
        torch.cat([getattr(each, name) for each in evaluations]).numpy() for name in ("labels", "probabilities")
    )
    source = f"the {len(places):,} {splits} images (to search more images, run cross-validate first)"
    return UnseenImages(places, labels, probabilities, source)


def _places(data: Any) -> dict[str, tuple[Any, int]]:
    """Split and index of each image of the data, by name."""
    return {name: (images, index) for images in data.splits.values() for index, name in enumerate(images.names)}
