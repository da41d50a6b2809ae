"""Images, hyperparameters and the model graph for TensorBoard."""

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

from resnet_pl.callbacks.access import as_classifier, get_datamodule
from resnet_pl.callbacks.tensorboard import hyperparameters
from resnet_pl.data.loader import Batch
from resnet_pl.reports.plots import Mark, confusion_matrix, contact_sheet
from resnet_pl.types import NonNegativeFloat, NonNegativeInt


class Dashboard(Callback):
    """Logs the first training batch, the confusion matrix, the worst mistakes and the model graph to TensorBoard.

    At the first validation the run gets a row in the HPARAMS tab, with hyperparameters and the best validation:
    `val_best/top1` and its loss, `val_best/loss`. Of two equal scores the later counts, as for best.ckpt.

    Args:
        images: images per contact sheet; 0 logs no images, also no confusion matrix.
        min_interval_seconds: minimum time between two logs of images, so that they do not slow down short epochs;
            the last validation is always logged.
        graph: whether the model graph is logged.
    """

    def __init__(
        self, images: NonNegativeInt = 16, min_interval_seconds: NonNegativeFloat = 60, graph: bool = True
    ) -> None:
        self.images, self.min_interval_seconds, self.graph = images, min_interval_seconds, graph
        self._last_draw = -float("inf")
        self._mistakes: list[tuple[float, int, int, int]] = []
        self._drawing = False
        self._has_hyperparameters = False
        self._best: dict[str, float] = {}  # top1 and loss

    def state_dict(self) -> dict[str, Any]:
        """Returns top-1 and loss of the best validation."""
        return {"best": self._best.get("top1", 0.0), "best_loss": self._best.get("loss")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the best validation; checkpoints of version 0.1 hold its top-1 only."""
        if (loss := state_dict.get("best_loss")) is not None:
            self._best = {"top1": state_dict["best"], "loss": loss}
        elif state_dict["best"]:
            self._best = {"top1": state_dict["best"]}

    # ------------------------------------------------------------------------------------ start
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the model graph."""
        self._has_hyperparameters = False
        if self.graph and (logger := _tensorboard(trainer)) is not None:
            _log_graph(logger, pl_module, get_datamodule(trainer).image_size)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Logs the first batch after all augmentation, before normalization."""
        if batch_idx > 0 or not self.images or trainer.global_step > 0 or (logger := _tensorboard(trainer)) is None:
            return
        assert isinstance(batch.images, torch.Tensor), "training batches have one view per image"
        images = batch.images[: self.images].float().clamp(0, 1).mul(255).byte().permute(0, 2, 3, 1).cpu().numpy()
        captions = [_label(label, as_classifier(pl_module).class_names) for label in batch.labels[: self.images].cpu()]
        _log_image(logger, "train/first_batch", contact_sheet(list(images), captions), 0)

    # ------------------------------------------------------------------------------------ validation
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decides whether images of this validation are logged."""
        last = trainer.current_epoch + 1 == trainer.max_epochs or trainer.global_step == trainer.max_steps
        due = last or time.monotonic() - self._last_draw >= self.min_interval_seconds
        fitting = trainer.state.fn == "fit" and not trainer.sanity_checking
        self._drawing = bool(self.images) and due and fitting
        self._mistakes = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collects the worst mistakes so far: (probability of the true class, image index, true class, prediction)."""
        if not self._drawing:
            return
        probabilities = outputs["probabilities"]
        truth, predicted = probabilities.gather(1, batch.labels[:, None]).squeeze(1), probabilities.argmax(1)
        wrong = (predicted != batch.labels).nonzero().squeeze(1)
        worst = wrong[truth[wrong].argsort()[: self.images]]
        columns = truth[worst], batch.indices.to(worst.device)[worst], batch.labels[worst], predicted[worst]
        mistakes = zip(*(column.tolist() for column in columns), strict=True)
        self._mistakes = sorted([*self._mistakes, *mistakes])[: self.images]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the best validation so far, the confusion matrix and the worst mistakes."""
        logger = _tensorboard(trainer)
        if logger is None or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        results, names = as_classifier(pl_module).results, as_classifier(pl_module).class_names
        # The last completed step, as for all metrics: resuming from here hides what has a later step.
        step = max(0, trainer.global_step - 1)
        self._log_best(trainer, pl_module, logger, step)
        if not self._drawing:
            return
        self._last_draw = time.monotonic()
        _log_image(logger, "val/confusion", confusion_matrix(results["confusion"].numpy(), names), step)
        if self._mistakes:
            split = get_datamodule(trainer).splits["val"]
            images = [split.load_full_image(index).permute(1, 2, 0).numpy() for _, index, _, _ in self._mistakes]
            captions = [f"pred: {names[p]}\ntrue: {names[t]} ({share:.0%})" for share, _, t, p in self._mistakes]
            marks: list[Mark] = ["wrong"] * len(images)
            _log_image(logger, "val/worst_mistakes", contact_sheet(images, captions, marks), step)

    def _log_best(self, trainer: Trainer, pl_module: LightningModule, logger: TensorBoardLogger, step: int) -> None:
        results = as_classifier(pl_module).results
        if results["top1"] >= self._best.get("top1", 0.0):
            self._best = {"top1": results["top1"], "loss": results["loss"]}
        metrics = {f"val_best/{name}": value for name, value in self._best.items()}
        if self._has_hyperparameters:
            logger.log_metrics(metrics, step)
        else:
            # TensorBoard has one row per run folder: of a resumed run it keeps the first hyperparameters.
            logger.log_hyperparams(hyperparameters(trainer, pl_module), metrics, step)
            self._has_hyperparameters = True


def _tensorboard(trainer: Trainer) -> TensorBoardLogger | None:
    """Returns the TensorBoard logger; None in processes that do not log."""
    if not trainer.is_global_zero:
        return None
    return next((logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)), None)


def _log_graph(logger: TensorBoardLogger, pl_module: LightningModule, size: int) -> None:
    example = torch.zeros(1, 3, size, size, device=pl_module.device)
    # The writer traces in evaluation mode and then sets training mode on all modules, also on frozen ones.
    modes = [(module, module.training) for module in pl_module.modules()]
    try:
        # The writer prints the tracer's error before raising it.
        with warnings.catch_warnings(), torch.no_grad(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            logger.experiment.add_graph(pl_module, example)
    # Not every model can be traced, and training does not need the graph.
    except Exception as error:
        warnings.warn(f"the model graph is not logged: {str(error).strip().splitlines()[0]}", stacklevel=2)
    finally:
        for module, training in modes:
            module.training = training


def _log_image(logger: TensorBoardLogger, tag: str, image: np.ndarray, step: int) -> None:
    logger.experiment.add_image(tag, image, step, dataformats="HWC")


def _label(label: torch.Tensor, names: list[str]) -> str:
    """Returns the class name, or the two largest fractions of a mixed label."""
    if label.ndim == 0:
        return names[int(label)]
    fractions, classes = label.topk(2)
    pairs = zip(classes.tolist(), fractions.tolist(), strict=True)
    return "\n".join(f"{names[i]} {fraction:.0%}" for i, fraction in pairs if fraction > 0)
