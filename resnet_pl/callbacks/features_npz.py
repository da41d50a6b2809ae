"""Writes features.npz: what the network extracts from each image, for a classifier or a search of the user's own."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from resnet_pl.callbacks.access import as_classifier, class_names, display_path, gather_rows, get_image_data
from resnet_pl.evaluation.features import collect_features
from resnet_pl.utils import atomic_write


class FeatureWriter(Callback):
    """Writes the inputs of the classifier head for each image, from all processes, in the order of the images.

    The file has the arrays `features`, `(N, C)` float32; `files`, `(N,)`, the paths as in predictions.csv; `labels`,
    `(N,)` int64, -1 if unknown, or `(N, K)` with several classes per image; and `classes`, the K names. It is read with
    `numpy.load` and needs no pickle.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: list[tuple[int, Any, np.ndarray]] = []  # index, label, features
        self._new: list[Tensor] = []  # of the current batch
        self._hook = ExitStack()

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._rows, self._new = [], self._hook.enter_context(collect_features(as_classifier(pl_module)))

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Discards the features of forward passes outside the prediction."""
        self._new.clear()

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collects the features of the batch."""
        features = torch.cat(self._new).numpy()
        indices, labels = outputs["indices"].tolist(), outputs["labels"].tolist()
        self._rows += zip(indices, labels, features, strict=True)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gathers the features of all processes and writes the file."""
        self._hook.close()
        rows = sorted(gather_rows(trainer, self._rows), key=lambda row: row[0])
        data = get_image_data(trainer)
        if not trainer.is_global_zero or not rows or data is None:
            return
        indices, labels, features = zip(*rows, strict=True)
        images = data.predict_images
        with atomic_write(self.path) as partial, partial.open("wb") as file:
            np.savez(
                file,
                features=np.stack(features),
                files=np.array([display_path(images, index) for index in indices]),
                labels=np.array(labels),
                classes=np.array(class_names(pl_module, 0)),
            )
