"""Logs training loss and top-1 without synchronizing in every step, and the generalization gap of each epoch."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from resnet_pl.callbacks.access import batch_size, is_logging_step, is_optimizer_step
from resnet_pl.data.batch import Batch


class TrainLog(Callback):
    """Logs `train/loss`, `train/top1`, `lr` and `val/generalization_gap`.

    Loss and top-1 are means over the images since the last log row. A row is logged every `log_every_n_steps` optimizer
    steps and at the end of an epoch.

    The generalization gap is the training top-1 of an epoch minus its last validation top-1. It is logged at the end of
    every epoch in which a validation ran. The training top-1 of an epoch is the running mean over all its images: they
    are augmented, the model is in training mode, and its weights change from step to step. The gap can therefore be
    negative, above all early in a run.

    The sums stay on the device between two logging steps and are part of the checkpoint: a resumed run logs the same
    values as an uninterrupted one. With several processes, the training values are those of the images of rank 0.

    Top-1 needs the `logits` in the output of `training_step`; without them only the loss is logged.
    """

    def __init__(self) -> None:
        self.sums: Tensor | None = None  # loss × images, correct images, images: since the last row
        self.epoch_correct, self.epoch_images = 0.0, 0.0  # of the epoch, up to the last row
        self.val_top1: float | None = None  # of the last validation in this epoch
        self.lr = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Returns the sums since the last row and those of the epoch."""
        return {"sums": self.sums, "epoch": [self.epoch_correct, self.epoch_images], "val_top1": self.val_top1}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the sums; checkpoints of version 0.1 hold none for the epoch."""
        self.sums = state_dict["sums"]
        self.epoch_correct, self.epoch_images = state_dict.get("epoch", (0.0, 0.0))
        self.val_top1 = state_dict.get("val_top1")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the sums of an epoch; Lightning does not call this when it resumes within an epoch."""
        self.epoch_correct, self.epoch_images, self.val_top1 = 0.0, 0.0, None

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Stores the learning rate of this step: after the step, the optimizer holds the next one."""
        self.lr = optimizer.param_groups[0]["lr"]

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Adds the batch to the sums, and logs them at a logging step."""
        if not isinstance(outputs, dict) or "loss" not in outputs:
            return  # manual optimization, or a skipped batch
        # Lightning has divided the loss by the number of accumulated batches.
        loss = outputs["loss"].detach().float() * trainer.accumulate_grad_batches
        if "logits" in outputs and (found := Batch.find(batch)):
            labels = found.labels.argmax(1) if found.labels.ndim > 1 else found.labels
            correct, count = (outputs["logits"].argmax(1) == labels).sum(dtype=torch.float32), len(labels)
        else:
            correct, count = loss.new_tensor(math.nan), batch_size(batch)
        size = loss.new_full((), count)
        sums = torch.stack([loss * size, correct, size])
        self.sums = sums if self.sums is None else self.sums.to(sums.device) + sums
        if is_optimizer_step(trainer, batch_idx) and is_logging_step(trainer):
            self._log(trainer, pl_module, on_step=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stores the validation top-1."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking and "val/top1" in trainer.callback_metrics:
            self.val_top1 = float(trainer.callback_metrics["val/top1"])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the remaining steps, so that every epoch has a row, and the generalization gap."""
        if self.sums is not None:
            self._log(trainer, pl_module, on_step=False)
        if self.val_top1 is not None and self.epoch_images and not math.isnan(self.epoch_correct):
            gap = self.epoch_correct / self.epoch_images - self.val_top1
            # The checkpoint holds the sums of rank 0 only: the mean over ranks would differ after a resume.
            pl_module.log("val/generalization_gap", trainer.strategy.broadcast(gap))

    def _log(self, trainer: Trainer, pl_module: LightningModule, on_step: bool) -> None:
        assert self.sums is not None
        loss, correct, images = self.sums.tolist()
        self.sums = None
        self.epoch_correct, self.epoch_images = self.epoch_correct + correct, self.epoch_images + images
        values = {"train/loss": loss / images, "train/top1": correct / images, "lr": self.lr}
        if math.isnan(correct):
            del values["train/top1"]
        # Written now and not by `self.log`: a checkpoint of this step no longer holds the sums, so the row must exist.
        for logger in trainer.loggers:
            logger.log_metrics({"epoch": trainer.current_epoch, **values}, step=trainer.global_step - 1)
        # For the progress bar, EarlyStopping and so on; CPU tensors, so that reading them does not wait for the device.
        metrics = {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
        for name, value in metrics.items():
            bar = name == "train/loss"
            pl_module.log(name, value, bar, logger=False, on_step=on_step, on_epoch=not on_step, batch_size=1)
