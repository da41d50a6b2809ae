"""What `predict` leaves behind: predictions.csv and a contact sheet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from resnet_pl.reports.plots import contact_sheet, save_png
from resnet_pl.reports.tables import write_predictions


class PredictionWriter(Callback):
    """Collects the likeliest classes of every image, from all processes, in the order of the images.

    Args:
        folder: where predictions.csv and contact_sheet.png go.
        top_k: classes told for each image.
        sheet: images on the contact sheet at most.
    """

    def __init__(self, folder: Path, top_k: int = 5, sheet: int = 64) -> None:
        self.folder, self.top_k, self.sheet = folder, top_k, sheet
        self.rows: list[dict[str, Any]] = []
        self._own: list[tuple[int, int, list[int], list[float]]] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See Lightning's Callback."""
        self._own = []

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: dict[str, torch.Tensor],
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """See Lightning's Callback."""
        k = min(self.top_k, outputs["probabilities"].shape[1])
        probabilities, classes = outputs["probabilities"].topk(k, dim=1)
        columns = outputs["indices"], outputs["labels"], classes, probabilities
        self._own += zip(*(column.tolist() for column in columns), strict=True)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See Lightning's Callback."""
        found = [self._own]
        if trainer.world_size > 1:
            found = [None] * trainer.world_size
            torch.distributed.all_gather_object(found, self._own)
        if not trainer.is_global_zero:
            return
        images, names = trainer.datamodule.predict_images, pl_module.class_names
        self.rows = [
            {
                "path": _display_path(images, index),
                "truth": names[label] if label >= 0 else None,
                "classes": [names[i] for i in classes],
                "probabilities": probabilities,
            }
            for index, label, classes, probabilities in sorted(row for rows in found for row in rows)
        ]
        write_predictions(self.rows, self.folder / "predictions.csv")
        order = sorted(index for rows in found for index, *_ in rows)[: self.sheet]
        pictures = [_thumbnail(images.load_full_image(index)) for index in order]
        if pictures:
            shown = self.rows[: len(pictures)]
            sheet = contact_sheet(pictures, [_caption(row) for row in shown], [_verdict(row) for row in shown])
            save_png(sheet, self.folder / "contact_sheet.png")


def _thumbnail(image: torch.Tensor) -> np.ndarray:
    """A `(3, H, W)` photo as `(H, W, 3)`, thinned out and copied, so that many large ones fit into memory."""
    step = max(1, min(image.shape[1:]) // 320)
    return image[:, ::step, ::step].permute(1, 2, 0).numpy().copy()


def _display_path(images: Any, index: int) -> str:
    root = getattr(images, "root", None)
    return str(root / images.names[index]) if root is not None else images.names[index]


def _caption(row: dict[str, Any]) -> str:
    told = f"{row['classes'][0]} {row['probabilities'][0]:.0%}"
    return told if _verdict(row) != "wrong" else f"{told}\nis {row['truth']}"


def _verdict(row: dict[str, Any]) -> str:
    if row["truth"] is None:
        return "none"
    return "right" if row["truth"] == row["classes"][0] else "wrong"
