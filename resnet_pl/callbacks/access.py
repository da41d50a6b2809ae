"""Typed access to attributes that `Trainer` and `LightningModule` do not declare, and facts of a running training."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

from lightning.pytorch import LightningModule, Trainer
from torch.optim.lr_scheduler import LRScheduler

from resnet_pl.data.base import ImageDataModule

if TYPE_CHECKING:
    from resnet_pl.classifier import ImageClassifier


def get_datamodule(trainer: Trainer) -> ImageDataModule:
    """Returns the data module of a running Trainer."""
    return trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]  # assigned by Lightning's data connector


def as_classifier(pl_module: LightningModule) -> ImageClassifier:
    """Returns the module with the type that these callbacks are written for; nothing is checked or converted."""
    return cast("ImageClassifier", pl_module)


def is_optimizer_step(trainer: Trainer, batch_idx: int) -> bool:
    """Whether the optimizer has stepped after this training batch; False while gradients are being accumulated."""
    return trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches == 0


def is_logging_step(trainer: Trainer) -> bool:
    """Whether `log_every_n_steps` divides the number of optimizer steps so far."""
    every = trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]  # assigned by the logger connector
    return trainer.global_step % every == 0


def base_lr(trainer: Trainer) -> float:
    """Returns the learning rate that the schedule multiplies."""
    for config in trainer.lr_scheduler_configs:
        if isinstance(config.scheduler, LRScheduler):
            return float(config.scheduler.base_lrs[0])
    return trainer.optimizers[0].param_groups[0]["lr"]


def total_steps(trainer: Trainer) -> int | None:
    """Returns the number of optimizer steps at which the run ends; None if it is not limited or not known."""
    total = trainer.estimated_stepping_batches
    return int(total) if 0 < total < math.inf else None
