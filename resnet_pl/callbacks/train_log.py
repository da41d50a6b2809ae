"""Training loss and top-1, averaged over the images since they were last logged."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer


class TrainLog(Callback):
    """Logs `train/loss`, `train/top1` and `lr` every `log_every_n_steps` optimizer steps and at the end of an epoch.

    The sums stay on the device, so nothing is synchronized between two logging steps. They are part of the
    checkpoint: a resumed run logs what an uninterrupted one would have logged.
    """

    def __init__(self) -> None:
        self.sums: Tensor | None = None  # loss × images, correct images, images
        self.lr = 0.0

    def state_dict(self) -> dict[str, Any]:
        """The sums; plain types."""
        return {"sums": self.sums}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the sums."""
        self.sums = state_dict["sums"]

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Notes the learning rate of this step: afterwards the group holds the next one's."""
        self.lr = optimizer.param_groups[0]["lr"]

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Adds the batch to the sums, and logs them at a logging step."""
        labels = batch.labels.argmax(1) if batch.labels.ndim > 1 else batch.labels
        correct = (outputs["logits"].argmax(1) == labels).sum(dtype=torch.float32)
        size = correct.new_full((), len(labels))
        # Lightning has divided the loss by the number of accumulated batches.
        loss = outputs["loss"].float() * trainer.accumulate_grad_batches
        sums = torch.stack([loss * size, correct, size])
        self.sums = sums if self.sums is None else self.sums.to(sums.device) + sums
        if stepped(trainer, batch_idx) and trainer.global_step % trainer.log_every_n_steps == 0:
            self._log(trainer, pl_module, on_step=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs what came after the last logging step, so that every epoch has a row."""
        if self.sums is not None:
            self._log(trainer, pl_module, on_step=False)

    def _log(self, trainer: Trainer, pl_module: LightningModule, on_step: bool) -> None:
        assert self.sums is not None
        loss, correct, images = self.sums.tolist()
        self.sums = None
        values = {"train/loss": loss / images, "train/top1": correct / images, "lr": self.lr}
        # Now and not by `self.log`: a checkpoint of this step, which no longer holds the sums, comes after the row.
        for logger in trainer.loggers:
            logger.log_metrics({"epoch": trainer.current_epoch, **values}, step=trainer.global_step - 1)
        # For the progress bar, EarlyStopping and so on; on the CPU, so that reading them does not wait for the device.
        metrics = {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
        for name, value in metrics.items():
            bar = name == "train/loss"
            pl_module.log(name, value, bar, logger=False, on_step=on_step, on_epoch=not on_step, batch_size=1)


def stepped(trainer: Trainer, batch_idx: int) -> bool:
    """Whether the optimizer has made a step with this batch: not while gradients are still accumulated."""
    return trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches == 0
