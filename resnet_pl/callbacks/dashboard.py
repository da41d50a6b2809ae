"""Images for all loggers; hyperparameters and the model graph for TensorBoard."""

from __future__ import annotations

import io
import math
import time
import warnings
from contextlib import redirect_stdout, suppress
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from resnet_pl.callbacks.access import as_classifier, class_names, get_image_data, optional
from resnet_pl.callbacks.checkpoints import monitored
from resnet_pl.callbacks.loggers import image_loggers, log_image
from resnet_pl.callbacks.metrics_csv import MetricsCSV
from resnet_pl.callbacks.tensorboard import hyperparameters
from resnet_pl.data.batch import Batch
from resnet_pl.data.decode import thumbnail, to_pixels
from resnet_pl.evaluation.heatmaps import heatmaps, overlay
from resnet_pl.evaluation.metrics import reliability_rows
from resnet_pl.reports.plots import Mark, confusion_matrix, contact_sheet
from resnet_pl.reports.reliability import reliability_diagram
from resnet_pl.run_dir import TOP1
from resnet_pl.types import NonNegativeFloat, NonNegativeInt
from resnet_pl.utils import UserError, first_line

# Metrics of the best validation, with the one that chooses best.ckpt.
BEST = (TOP1, "val/loss")


@optional
class Dashboard(Callback):
    """Logs the first training batch, confusion matrix, reliability diagram, worst mistakes, and the model graph.

    The images go to all loggers that take images, the graph to TensorBoard. At the first validation the run gets a row
    in TensorBoard's HPARAMS tab, with hyperparameters and the best validation, which the other loggers also get:
    `val_best/top1` and its loss, `val_best/loss`, and the metric that chooses best.ckpt. Of two equal scores the later
    counts, as for best.ckpt.

    Confusion matrix and reliability diagram need an ImageClassifier; mistakes need the `probabilities` in the output of
    `validation_step`. An error in this callback is a warning and does not end the training.

    Args:
        images: images per contact sheet; 0 logs no images, also no confusion matrix and no reliability diagram.
        min_interval_seconds: minimum time between two logs of images, so that they do not slow down short epochs;
            the last validation is always logged.
        graph: whether the model graph is logged.
        enabled: whether anything is logged; `--dashboard false` is short for false.
    """

    def __init__(
        self,
        images: NonNegativeInt = 16,
        min_interval_seconds: NonNegativeFloat = 60,
        graph: bool = True,
        enabled: bool = True,
    ) -> None:
        self.is_off = not enabled
        self.images, self.min_interval_seconds, self.graph = images, min_interval_seconds, graph
        self._last_draw = -float("inf")
        self._mistakes: list[tuple[float, int, int, int, torch.Tensor]] = []
        self._heatmaps: torch.Tensor | None = None  # of the mistakes, (M, H, W)
        self._drawing = False
        self._has_hyperparameters = False
        self._best: dict[str, float] = {}  # metrics of the best validation

    def state_dict(self) -> dict[str, Any]:
        """Returns the metrics of the best validation."""
        return {"best_validation": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the metrics of the best validation; earlier versions saved only its top-1, or top-1 and loss."""
        if (best := state_dict.get("best_validation")) is None:
            best = {"top1": state_dict["best"], "loss": state_dict.get("best_loss")} if state_dict["best"] else {}
        self._best = {name: value for name, value in best.items() if value is not None}

    # ------------------------------------------------------------------------------------ start
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the model graph."""
        self._has_hyperparameters = False
        data = get_image_data(trainer)
        if self.graph and data is not None and (logger := _tensorboard(trainer)) is not None:
            _log_graph(logger, pl_module, (1, *data.batch_shape[1:]))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Logs the first batch after all augmentation, before normalization."""
        if batch_idx > 0 or not self.images or trainer.global_step > 0 or not image_loggers(trainer):
            return
        with suppress(UserError):  # batches of another kind
            batch = Batch.of(batch)
            images, labels = batch.images[: self.images], batch.labels[: self.images].cpu()
            names = class_names(pl_module, int(labels.max()) + 1)
            captions = [_label(label, names) for label in labels]
            log_image(trainer, "train/first_batch", contact_sheet([to_pixels(image) for image in images], captions), 0)

    # ------------------------------------------------------------------------------------ validation
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decides whether images of this validation are logged."""
        last = trainer.current_epoch + 1 == trainer.max_epochs or trainer.global_step == trainer.max_steps
        due = last or time.monotonic() - self._last_draw >= self.min_interval_seconds
        fitting = trainer.state.fn == "fit" and not trainer.sanity_checking
        self._drawing = bool(self.images) and due and fitting and bool(image_loggers(trainer))
        self._mistakes, self._heatmaps = [], None

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collects the worst mistakes so far.

        Each is (probability of the true class, index of the image, true class, prediction, network input).
        """
        if not self._drawing or not isinstance(outputs, dict) or "probabilities" not in outputs:
            return
        batch, probabilities = Batch.find(batch, batch_idx), outputs["probabilities"]
        if batch is None or batch.labels.ndim == 2:  # several classes per image
            return
        truth, predicted = probabilities.gather(1, batch.labels[:, None]).squeeze(1), probabilities.argmax(1)
        wrong = (predicted != batch.labels).nonzero().squeeze(1)
        worst = wrong[truth[wrong].argsort()[: self.images]]
        columns = truth[worst], batch.indices.to(worst.device)[worst], batch.labels[worst], predicted[worst]
        mistakes = zip(*(column.tolist() for column in columns), batch.images[worst.cpu()], strict=True)
        self._mistakes = sorted([*self._mistakes, *mistakes], key=lambda mistake: mistake[:4])[: self.images]
        if batch_idx + 1 == trainer.num_val_batches[dataloader_idx] and self._mistakes:
            self._explain(pl_module)  # now, because EMA removes the averaged weights after the last batch

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the best validation so far, the plots and the worst mistakes."""
        if not trainer.is_global_zero or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        # The last completed step, as for all metrics: resuming from here hides what has a later step.
        step = max(0, trainer.global_step - 1)
        self._log_best(trainer, pl_module, step)
        if not self._drawing:
            return
        self._last_draw = time.monotonic()
        results = getattr(pl_module, "results", {})
        if (confusion := results.get("confusion")) is not None:
            names = class_names(pl_module, len(confusion))
            log_image(trainer, "val/confusion", confusion_matrix(confusion.numpy(), names), step)
        if (bins := results.get("reliability")) is not None:
            diagram = reliability_diagram(reliability_rows(bins), results["calibration_error"])
            log_image(trainer, "val/reliability", diagram, step)
        if self._mistakes:
            names = class_names(pl_module, 1 + max(max(mistake[2:4]) for mistake in self._mistakes))
            images, data = [to_pixels(image) for *_, image in self._mistakes], get_image_data(trainer)
            if data is not None:
                images = [thumbnail(data.splits["val"].load_full_image(index)) for _, index, *_ in self._mistakes]
            captions = [f"pred: {names[p]}\ntrue: {names[t]} ({share:.0%})" for share, _, t, p, _ in self._mistakes]
            marks: list[Mark] = ["wrong"] * len(images)
            log_image(trainer, "val/worst_mistakes", contact_sheet(images, captions, marks), step)
            if self._heatmaps is not None:
                inputs = (to_pixels(image) for *_, image in self._mistakes)
                shown = [overlay(image, each) for image, each in zip(inputs, self._heatmaps.numpy(), strict=True)]
                log_image(trainer, "val/worst_mistakes_heatmaps", contact_sheet(shown, captions, marks), step)

    def _explain(self, pl_module: LightningModule) -> None:
        """Computes the heat maps of the mistakes, for the predicted classes; none if that fails."""
        inputs = torch.stack([image for *_, image in self._mistakes])
        predicted = torch.tensor([mistake[3] for mistake in self._mistakes], device=inputs.device)
        try:
            self._heatmaps = heatmaps(as_classifier(pl_module), inputs, predicted).cpu()
        except UserError:  # captum is not installed, or the network has no feature map
            pass
        except Exception as error:  # a network of the user's own
            warnings.warn(f"heat maps are not logged: {first_line(error)}", stacklevel=2)

    def _log_best(self, trainer: Trainer, pl_module: LightningModule, step: int) -> None:
        key, sign = monitored(trainer)
        values = trainer.callback_metrics
        results = {name.removeprefix("val/"): float(values[name]) for name in (*BEST, key) if name in values}
        name = key.removeprefix("val/")
        if name in results and sign * results[name] >= sign * self._best.get(name, -sign * math.inf):
            self._best = results
        metrics = {f"val_best/{name}": value for name, value in self._best.items()}
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and not self._has_hyperparameters:
                # TensorBoard has one row per run folder: of a resumed run it keeps the first hyperparameters.
                logger.log_hyperparams(hyperparameters(trainer, pl_module), metrics, step)
            elif not isinstance(logger, MetricsCSV):
                logger.log_metrics(metrics, step)
        self._has_hyperparameters = True


def _tensorboard(trainer: Trainer) -> TensorBoardLogger | None:
    """Returns the TensorBoard logger; None in processes that do not log."""
    if not trainer.is_global_zero:
        return None
    return next((logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)), None)


def _log_graph(logger: TensorBoardLogger, pl_module: LightningModule, shape: tuple[int, ...]) -> None:
    example = torch.zeros(shape, device=pl_module.device)
    # The writer traces in evaluation mode and then sets training mode on all modules, also on frozen ones.
    modes = [(module, module.training) for module in pl_module.modules()]
    try:
        # The writer prints the tracer's error before raising it.
        with warnings.catch_warnings(), torch.no_grad(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            logger.experiment.add_graph(pl_module, example)
    # Not every model can be traced, and training does not need the graph.
    except Exception as error:
        warnings.warn(f"the model graph is not logged: {first_line(error)}", stacklevel=2)
    finally:
        for module, training in modes:
            module.training = training


def _label(label: torch.Tensor, names: list[str]) -> str:
    """Returns the class name, or the two largest fractions of a mixed label."""
    if label.ndim == 0:
        return names[int(label)]
    fractions, classes = label.topk(2)
    pairs = zip(classes.tolist(), fractions.tolist(), strict=True)
    return "\n".join(f"{names[i]} {fraction:.0%}" for i, fraction in pairs if fraction > 0)
