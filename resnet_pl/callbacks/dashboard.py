"""TensorBoard: what the net sees, its mistakes, its hyper-parameters with the real metric, its graph."""

from __future__ import annotations

import io
import time
import warnings
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from resnet_pl.data.loader import Batch
from resnet_pl.reports.plots import confusion_matrix, contact_sheet
from resnet_pl.types import NonNegativeFloat, NonNegativeInt


class Dashboard(Callback):
    """Draws pictures for TensorBoard.

    Args:
        images: pictures on a sheet; 0 draws none.
        every_seconds: least time between two drawings after validations, so that short epochs are not held up;
            the last validation is always drawn.
        graph: whether the net's graph is drawn.
    """

    def __init__(
        self, images: NonNegativeInt = 16, min_interval_seconds: NonNegativeFloat = 60, graph: bool = True
    ) -> None:
        self.images, self.min_interval_seconds, self.graph = images, min_interval_seconds, graph
        self._drawn_at = -float("inf")
        self._worst: list[tuple[float, int, int, int]] = []
        self._drawing = False
        self._best = 0.0

    def state_dict(self) -> dict[str, Any]:
        """The best validation top-1."""
        return {"best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the best validation top-1."""
        self._best = state_dict["best"]

    # ------------------------------------------------------------------------------------ start
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hyper-parameters with the metric they are judged by, and the graph."""
        logger = _tensorboard(trainer)
        if logger is None:
            return
        best = {"hp/best_val_top1": 0.0} if "val" in trainer.datamodule.splits and not trainer.global_step else {}
        logger.log_hyperparams(_hyperparameters(pl_module.config or {}), best)
        if self.graph:
            _draw_graph(logger, pl_module, trainer.datamodule.image_size)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """The first batch as the net sees it, after all augmentation and before normalisation."""
        if batch_idx > 0 or not self.images or trainer.global_step > 0 or (logger := _tensorboard(trainer)) is None:
            return
        images = batch.images[: self.images].float().clamp(0, 1).mul(255).byte().permute(0, 2, 3, 1).cpu().numpy()
        labels = batch.labels[: self.images].cpu()
        captions = [_label(label, pl_module.class_names) for label in labels]
        _draw(logger, "train/first_batch", contact_sheet(list(images), captions), 0)

    # ------------------------------------------------------------------------------------ validation
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decides whether this validation is drawn."""
        last = trainer.current_epoch + 1 == trainer.max_epochs or trainer.global_step == trainer.max_steps
        due = last or time.monotonic() - self._drawn_at >= self.min_interval_seconds
        self._drawing = due and not trainer.sanity_checking and trainer.state.fn == "fit"
        self._worst = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: dict[str, torch.Tensor],
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the worst mistakes so far: (probability of the truth, image, truth, prediction)."""
        if not self._drawing or not self.images:
            return
        probabilities = outputs["probabilities"]
        truth, predicted = probabilities.gather(1, batch.labels[:, None]).squeeze(1), probabilities.argmax(1)
        wrong = (predicted != batch.labels).nonzero().squeeze(1)
        worst = wrong[truth[wrong].argsort()[: self.images]]
        columns = truth[worst], batch.indices.to(worst.device)[worst], batch.labels[worst], predicted[worst]
        mistakes = zip(*(column.tolist() for column in columns), strict=True)
        self._worst = sorted([*self._worst, *mistakes])[: self.images]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Confusion matrix, worst mistakes and the best score so far."""
        logger = _tensorboard(trainer)
        if logger is None or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self._best = max(self._best, pl_module.results["top1"])
        # The step that was made, as for all scalars: a run that goes on leaves out what has a later one.
        step = max(0, trainer.global_step - 1)
        logger.experiment.add_scalar("hp/best_val_top1", self._best, step)
        if not self._drawing:
            return
        self._drawn_at = time.monotonic()
        names = pl_module.class_names
        _draw(logger, "val/confusion", confusion_matrix(pl_module.results["confusion"].numpy(), names), step)
        if self._worst:
            images = trainer.datamodule.splits["val"]
            pictures = [images.load_full_image(index).permute(1, 2, 0).numpy() for _, index, _, _ in self._worst]
            captions = [f"{names[p]}\nis {names[t]} ({share:.0%})" for share, _, t, p in self._worst]
            _draw(logger, "val/worst_mistakes", contact_sheet(pictures, captions, ["wrong"] * len(pictures)), step)


def _tensorboard(trainer: Trainer) -> TensorBoardLogger | None:
    """The logger that draws, in the process that writes."""
    if not trainer.is_global_zero:
        return None
    return next((logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)), None)


def _draw_graph(logger: TensorBoardLogger, pl_module: LightningModule, size: int) -> None:
    example = torch.zeros(1, 3, size, size, device=pl_module.device)
    # The writer draws in evaluation mode, where BatchNorm learns nothing, and then trains every part, frozen or not.
    modes = [(module, module.training) for module in pl_module.modules()]
    try:
        # TensorBoard's writer prints the tracer's error before it raises it.
        with warnings.catch_warnings(), torch.no_grad(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            logger.experiment.add_graph(pl_module, example)
    # Not every net can be traced, which is no reason not to train it.
    except Exception as error:
        rank_zero_warn(f"the net's graph is not drawn: {str(error).strip().splitlines()[0]}")
    finally:
        for module, training in modes:
            module.training = training


def _draw(logger: TensorBoardLogger, tag: str, picture: np.ndarray, step: int) -> None:
    logger.experiment.add_image(tag, picture, step, dataformats="HWC")


def _label(label: torch.Tensor, names: list[str]) -> str:
    """A class, or the shares of a mixed label."""
    if label.ndim == 0:
        return names[int(label)]
    shares, classes = label.topk(2)
    pairs = zip(classes.tolist(), shares.tolist(), strict=True)
    return "\n".join(f"{names[i]} {share:.0%}" for i, share in pairs if share > 0)


def _hyperparameters(config: dict[str, Any]) -> dict[str, str | int | float | bool]:
    """Seed, net and data of a configuration as one level of plain values, for the table of runs."""
    sections = {"seed": config.get("seed_everything"), **(config.get("model") or {}), "data": config.get("data")}
    return _flat({key: value for key, value in sections.items() if key != "class_names"})


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, str | int | float | bool]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if key == "class_path":
            flat[prefix.removesuffix(".")] = value.rsplit(".", 1)[-1]
        elif isinstance(value, dict):
            flat |= _flat(value, prefix if key == "init_args" else f"{prefix}{key}.")
        elif isinstance(value, str | int | float):
            flat[f"{prefix}{key}"] = value
        elif value:
            flat[f"{prefix}{key}"] = str(value)
    return flat
