"""Writes the results of `predict`: predictions.csv and a contact sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from resnet_pl.callbacks.access import (
    class_names,
    display_path,
    gather_rows,
    get_datamodule,
    image_indices,
    join_classes,
)
from resnet_pl.callbacks.heatmap_files import MAX_FILES, HeatmapWriter
from resnet_pl.data.decode import thumbnail
from resnet_pl.evaluation.classify import is_unknown
from resnet_pl.reports.image_selection import mark_of, select_images
from resnet_pl.reports.plots import Mark, contact_sheet, save_png
from resnet_pl.reports.tables import write_predictions
from resnet_pl.run_dir import UNKNOWN
from resnet_pl.utils import UserError, atomic_write


class PredictionWriter(Callback):
    """Writes the most probable classes of every image, from all processes, in the order of the images.

    Args:
        folder: folder of predictions.csv and contact_sheet.png.
        top_k: number of classes per image.
        sheet: maximum number of images on the contact sheet: those of `select_images`.
        heatmaps: writes heat maps, of up to `MAX_FILES` images, which the contact sheet then shows too; None for none.

    Attributes:
        rows: one dictionary per image: `path`, `truth` (None if it is not known), `classes` and `probabilities`; with
            several classes per image also `found`, all that reach their threshold; with a confidence threshold `found`
            is the most probable class or `unknown`, and `is_unknown` says which.
        order: which images the contact sheet shows and in which order, as text; empty without one.
        explained: which images have heat maps, as text; empty if all have one, or none.
        outputs: what `predict_step` of another kind of module returned for each batch of this process.
    """

    def __init__(self, folder: Path, top_k: int = 5, sheet: int = 64, heatmaps: HeatmapWriter | None = None) -> None:
        self.folder, self.top_k, self.sheet, self.heatmaps = folder, top_k, sheet, heatmaps
        self.rows: list[dict[str, Any]] = []
        self.outputs: list[Any] = []
        self.order = self.explained = ""
        self._own: list[tuple[Any, ...]] = []

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._own, self.outputs = [], []
        if self.heatmaps is not None:
            self.heatmaps.check(trainer, pl_module)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collects the top classes of the batch."""
        if not isinstance(outputs, dict) or "probabilities" not in outputs:
            # A module of another kind: what it returns is saved unchanged.
            if trainer.world_size > 1:
                raise UserError(
                    "predict: outputs without `probabilities` cannot be collected from several processes\n"
                    "use --trainer.devices 1, or return a dictionary with `probabilities` (N, K)"
                )
            self.outputs.append(move_data_to_device(outputs, torch.device("cpu")))
            return
        k = min(self.top_k, outputs["probabilities"].shape[1])
        probabilities, classes = outputs["probabilities"].topk(k, dim=1)
        size = len(probabilities)
        indices = image_indices(trainer, outputs, _images(trainer), len(self._own), size)
        labels = outputs.get("labels", torch.full((size,), -1))
        columns = indices, labels, classes, probabilities
        rows = zip(*(column.tolist() for column in columns), strict=True)
        found = [None] * size
        if (thresholds := getattr(pl_module, "thresholds", None)) is not None:
            found = (outputs["probabilities"] >= thresholds).tolist()
        self._own += [(*row, each) for row, each in zip(rows, found, strict=True)]

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gathers the predictions of all processes and writes the files."""
        gathered = sorted(gather_rows(trainer, self._own))
        if not trainer.is_global_zero:
            return
        if self.outputs:
            with atomic_write(self.folder / "predictions.pt") as partial:
                torch.save(self.outputs, partial)
        labels = [label for _, label, *_ in gathered if isinstance(label, int)]
        number = max([*labels, *(index for row in gathered for index in row[2])], default=0) + 1
        images, names = _images(trainer), class_names(pl_module, number)
        self.rows = [
            {
                "path": display_path(images, index),
                "truth": _truth(label, names),
                "classes": [names[i] for i in classes],
                "probabilities": probabilities,
                **({} if found is None else {"found": join_classes(found, names)}),
            }
            for index, label, classes, probabilities, found in gathered
        ]
        _apply_threshold(self.rows, getattr(pl_module, "confidence_threshold", None))
        if self.rows or not self.outputs:
            write_predictions(self.rows, self.folder / "predictions.csv")
        if images is not None:
            self._draw(trainer, pl_module, images, [(row[0], row[2][0]) for row in gathered])

    def _draw(
        self, trainer: Trainer, pl_module: LightningModule, images: Any, predicted: Sequence[tuple[int, int]]
    ) -> None:
        """Writes the heat maps and the contact sheet.

        Args:
            trainer: the Trainer.
            pl_module: the model.
            images: the images that are classified.
            predicted: index and predicted class of the image of each row.
        """
        chosen, self.order = select_images(self.rows, self.sheet)
        indices, explained, title = [predicted[position][0] for position in chosen], {}, self.order
        if self.heatmaps is not None:
            most, text = select_images(self.rows, MAX_FILES)
            self.explained = text if len(most) < len(self.rows) else ""
            maps = self.heatmaps.write(trainer, pl_module, dict(predicted[position] for position in most))
            explained = {index: image for index, image in maps if index in indices}
            title += "; heat maps of the predicted class"
        if chosen:
            thumbnails = [
                explained[index] if index in explained else thumbnail(images.load_full_image(index))
                for index in indices
            ]
            rows = [self.rows[position] for position in chosen]
            marks: list[Mark] = [mark_of(row) for row in rows]
            sheet = contact_sheet(thumbnails, [_caption(row) for row in rows], marks, title)
            save_png(sheet, self.folder / "contact_sheet.png")


def _apply_threshold(rows: list[dict[str, Any]], threshold: float | None) -> None:
    """Adds `found` and `is_unknown` to the rows, if there is a confidence threshold."""
    for row in rows if threshold is not None else ():
        row["is_unknown"] = is_unknown(row["probabilities"][0], threshold)
        row["found"] = UNKNOWN if row["is_unknown"] else row["classes"][0]


def _truth(label: int | list[float], names: list[str]) -> str | None:
    """The true class, or several joined; None if it is not known."""
    if isinstance(label, list):
        return join_classes(label, names)
    return names[label] if 0 <= label < len(names) else None


def _images(trainer: Trainer) -> Any:
    """Returns the images that are classified; None for data that does not give access to them."""
    return getattr(get_datamodule(trainer), "predict_images", None)


def _caption(row: Mapping[str, Any]) -> str:
    first = f"{row['classes'][0]} {row['probabilities'][0]:.0%}"
    if "is_unknown" in row:
        prediction = f"{row['found']} ({first})" if row["is_unknown"] else first
    else:
        prediction = (row["found"] or "no class") if "found" in row else first
    return f"pred: {prediction}\ntrue: {row['truth']}" if mark_of(row) == "wrong" else prediction
