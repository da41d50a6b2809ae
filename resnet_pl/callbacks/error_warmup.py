"""Learning-rate warm-up of the paper's 110-layer network, which lasts until the training error has dropped (§4.2)."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from resnet_pl.callbacks.access import is_optimizer_step
from resnet_pl.data.batch import Batch
from resnet_pl.types import PositiveFloat, PositiveInt, UnitInterval
from resnet_pl.utils import UserError, counted

# Iterations over which the training error is averaged: a single batch may be below the threshold by chance.
ERROR_WINDOW = 100


class ErrorWarmup(Callback):
    """Multiplies the learning rate by `factor` until the training error over 100 iterations is below `error`.

    The milestones of the schedule do not change. Images have one class each.

    Args:
        error: training error, 0 to 1, below which the warm-up ends.
        factor: factor of the learning rate during the warm-up.
        max_iterations: number of iterations after which the run is aborted if the error is still not below `error`.

    Attributes:
        errors: training errors of the last iterations; None after the warm-up.

    Raises:
        UserError: the module has an `lr_scheduler`, its training step returns no logits, or the warm-up does not end.
    """

    def __init__(
        self, error: UnitInterval = 0.8, factor: PositiveFloat = 0.1, max_iterations: PositiveInt = 4000
    ) -> None:
        self.error, self.factor, self.max_iterations = error, factor, max_iterations
        self.errors: list[float] | None = []
        self._counts: Tensor | None = None  # incorrect images and images since the last step

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Starts the warm-up of a new run: the object can be from an earlier `fit`."""
        if stage != "fit":
            return
        # These schedulers compute a rate from the one before, so that the factor would act again in every step.
        if getattr(pl_module, "lr_scheduler", None) is not None:
            raise UserError(
                "ErrorWarmup does not work with model.lr_scheduler\nuse model.schedule, or remove the callback"
            )
        self.errors, self._counts = [], None

    def state_dict(self) -> dict[str, Any]:
        """Returns the errors so far; None after the warm-up."""
        return {"errors": self.errors}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the errors."""
        self.errors = state_dict["errors"]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Aborts the run if the warm-up does not end."""
        if self.errors and trainer.global_step >= self.max_iterations:
            mean = sum(self.errors) / len(self.errors)
            raise UserError(
                f"ErrorWarmup: the training error is {mean:.2%} after {counted(trainer.global_step, 'iteration')}, "
                f"not below {self.error:.2%}\nlower `factor` or raise `max_iterations` of the callback"
            )

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Lowers the learning rate of this step; the schedule sets that of the next one."""
        for group in optimizer.param_groups if self.errors is not None else ():
            group["lr"] *= self.factor

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Adds the training error of the step over all processes, and ends the warm-up if the mean is low enough."""
        if self.errors is None:
            return
        if not isinstance(outputs, dict) or "logits" not in outputs:
            raise UserError(
                "ErrorWarmup: needs one class per image, and `logits` in the output of training_step\n"
                "remove the callback"
            )
        labels = Batch.of(batch).labels
        labels = labels.argmax(1) if labels.ndim > 1 else labels
        incorrect = (outputs["logits"].argmax(1) != labels).sum(dtype=torch.float32)
        counts = torch.stack([incorrect, incorrect.new_full((), len(labels))])
        self._counts = counts if self._counts is None else self._counts + counts
        if is_optimizer_step(trainer, batch_idx):
            incorrect_images, images = trainer.strategy.reduce(self._counts, reduce_op="sum").tolist()
            self._counts = None
            self.errors = [*self.errors, incorrect_images / images][-ERROR_WINDOW:]
            if len(self.errors) == ERROR_WINDOW and sum(self.errors) / ERROR_WINDOW < self.error:
                self.errors = None
