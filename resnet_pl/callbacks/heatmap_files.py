"""Writes the heat maps of predictions as PNGs, each next to the image as the network takes it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from resnet_pl.callbacks.access import as_classifier, get_image_data
from resnet_pl.data.decode import to_pixels
from resnet_pl.data.image_files import is_image_name
from resnet_pl.data.samplers import ShardedEpochSampler
from resnet_pl.evaluation.heatmaps import describe_limits, heatmaps, overlay
from resnet_pl.reports.plots import save_png
from resnet_pl.utils import progress, rank_zero_print

MAX_FILES = 1000
LEAST_SIDE = 224  # smaller images are enlarged, pixels


class HeatmapWriter:
    """Writes heat maps of predictions.

    Args:
        folder: folder of the PNGs.
        layer: layer of the feature map, see `heatmaps`; None for the last one.

    Attributes:
        written: number of PNGs that were written.
    """

    def __init__(self, folder: Path, layer: str | None = None) -> None:
        self.folder, self.layer, self.written = folder, layer, 0

    @property
    def older(self) -> int:
        """Number of PNGs in the folder that earlier predictions have written."""
        return sum(1 for _ in self.folder.rglob("*.png")) - self.written

    def check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raises UserError before the prediction if there can be no heat maps, see `heatmaps`; notes their limits."""
        data, model = get_image_data(trainer), as_classifier(pl_module)
        assert data is not None  # the command has checked it
        blank = torch.zeros(1, *data.batch_shape[1:], device=model.device)
        heatmaps(model, blank, torch.zeros(1, dtype=torch.int64, device=model.device), self.layer)
        if limits := describe_limits(model.backbone):
            rank_zero_print(f"note: {limits}")

    def write(
        self, trainer: Trainer, pl_module: LightningModule, classes: Mapping[int, int]
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Writes a PNG for each image; yields the index of the image, and the image under its heat map.

        Args:
            trainer: the Trainer, whose data has the images.
            pl_module: the model.
            classes: the class whose evidence is shown, by the index of the image.
        """
        data, model = get_image_data(trainer), as_classifier(pl_module)
        assert data is not None  # the command has checked it
        images, size = data.predict_images, data.eval_batch_size
        loader, files = data.loader(images, ShardedEpochSampler(len(images)), size), file_names(images.names)
        plan = torch.tensor(list(classes)).split(size)
        with progress("heat maps", len(classes)) as advance:
            for batch, _, indices in loader.read(plan, epoch=0):
                assert isinstance(batch, Tensor)  # there are no views without test-time augmentation
                wanted = torch.tensor([classes[index] for index in indices.tolist()], device=model.device)
                maps = heatmaps(model, batch.to(model.device), wanted, self.layer).cpu().numpy()
                for index, image, each in zip(indices.tolist(), map(to_pixels, batch), maps, strict=True):
                    explained = overlay(image, each)
                    save_png(_side_by_side(image, explained), self.folder / files[index])
                    self.written += 1
                    yield index, explained
                    advance(1)


def _side_by_side(image: np.ndarray, explained: np.ndarray) -> np.ndarray:
    scale = max(1, LEAST_SIDE // max(image.shape))
    return np.concatenate([image, explained], axis=1).repeat(scale, 0).repeat(scale, 1)


def file_names(names: Sequence[str]) -> list[str]:
    """Returns the name of a PNG for each image: its path below the folder that all have in common.

    The suffix is replaced by .png; if two names would be the same, it is appended to all.
    """
    paths = [Path(os.path.abspath(name)) for name in names]  # noqa: PTH100 - Path.absolute keeps `..`
    top = os.path.commonpath([path.parent for path in paths])
    paths = [path.relative_to(top) for path in paths]
    stems = [path.with_suffix("") if is_image_name(path.name) else path for path in paths]
    return [f"{name}.png" for name in (stems if len(set(stems)) == len(stems) else paths)]
