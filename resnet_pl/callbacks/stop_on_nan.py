"""Aborts a run whose loss or weights are NaN or infinite."""

from __future__ import annotations

import csv
import math
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from resnet_pl.callbacks.access import current_lr, get_image_data, is_logging_step, is_optimizer_step
from resnet_pl.data.batch import Batch
from resnet_pl.utils import DivergenceError

# Maximum number of losses stored between two logging steps.
HISTORY = 1000
# From 65,536 the gradient scaler reaches this scale by 26 halvings, each of which skips a step.
MIN_SCALE = 2.0**-10


class StopOnNaN(Callback):
    """Raises `DivergenceError` at a NaN or infinite loss or weight; that state is never saved as a checkpoint.

    Losses are read at logging steps only, so there is no device synchronization in between. The message names step,
    learning rate and images of the first non-finite batch; bad_batches.csv in the run folder lists all its images.
    In half precision, overflowing gradients are not an error as long as the gradient scaler can lower its scale.
    """

    def __init__(self) -> None:
        # Loss, step, learning rate and batch since the last logging step; the losses stay on the device.
        self.history: deque[tuple[Tensor, int, float, Batch | None]] = deque(maxlen=HISTORY)
        self.folder, self.lr = Path(), math.nan

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gets the run folder: `trainer.log_dir` is a collective operation, so not later when one process fails."""
        self.folder = Path(trainer.log_dir or trainer.default_root_dir)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Stores the learning rate of this step: after the step, the optimizer holds the next one."""
        self.lr = current_lr(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stores the loss, and checks all stored losses at a logging step."""
        step = trainer.global_step - is_optimizer_step(trainer, batch_idx)
        # Without images and labels, which take memory.
        small = batch._replace(images=None, labels=None) if isinstance(batch, Batch) else None
        if isinstance(outputs, dict) and "loss" in outputs:
            self.history.append((outputs["loss"].detach(), step, self.lr, small))
        if is_optimizer_step(trainer, batch_idx) and is_logging_step(trainer):
            self.check(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks the losses since the last logging step."""
        self.check(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Raises `DivergenceError` if a weight, a BatchNorm statistic or the optimizer's state is NaN or infinite."""
        if trainer.training or trainer.validating:
            # Other buffers can be infinite on purpose, such as a mask of an attention.
            statistics = ("running_mean", "running_var")
            others = {name for name, _ in pl_module.named_buffers() if not name.endswith(statistics)}
            weights = [value for name, value in checkpoint["state_dict"].items() if name not in others]
            self.check(trainer, pl_module, saved=[weights, checkpoint.get("optimizer_states")])

    def check(self, trainer: Trainer, pl_module: LightningModule, saved: Any = ()) -> None:
        """Raises `DivergenceError` on all ranks if a loss or a tensor is not finite on one of them.

        Args:
            trainer: the running Trainer.
            pl_module: the module in training.
            saved: nested containers of tensors to check too.
        """
        bad = self._first_bad()
        diverged = bad is not None or not all_finite([*tensors(saved)]) or _scale(trainer) < MIN_SCALE
        flag = torch.tensor(float(diverged), device=trainer.strategy.root_device)
        if trainer.strategy.reduce(flag, reduce_op="sum") == 0:
            self.history.clear()
            return
        raise DivergenceError(self._message(trainer, pl_module, bad))

    def _first_bad(self) -> tuple[Tensor, int, float, Batch | None] | None:
        """Returns the first stored loss that is not finite, with its step, learning rate and batch."""
        finite = torch.stack([loss for loss, *_ in self.history]).isfinite().tolist() if self.history else []
        return None if all(finite) else self.history[finite.index(False)]

    def _message(self, trainer: Trainer, pl_module: LightningModule, bad: Any) -> str:
        fix = "lower --model.optimizer.lr"
        finite_weights = all_finite(list(pl_module.parameters()))
        overflow = trainer.precision == "16-mixed" and finite_weights
        if overflow:
            # The gradient scaler skipped all steps with non-finite gradients, so the weights are intact.
            fix = "use --trainer.precision bf16-mixed"
        if bad is not None:
            loss, step, lr, batch = bad
            images = self._record(trainer, float(loss), step, lr, batch)
            what = f"the training loss is {float(loss):g} at step {step}, learning rate {lr:.3g}{images}"
        else:
            alone = trainer.world_size == 1
            other = "a BatchNorm statistic or the optimizer's state" if alone else "a training loss of another rank"
            what = f"{other} is not finite" if finite_weights else "the weights are not finite"
            what = "the gradients overflow float16 at every step" if overflow else what
            what += f" at step {trainer.global_step}, learning rate {current_lr(trainer):.3g}"
        return f"{what}\n{fix}; {_last_good(trainer)}"

    def _record(self, trainer: Trainer, loss: float, step: int, lr: float, batch: Any) -> str:
        """Writes the image names of a batch to bad_batches.csv; returns the part of the message about them."""
        data = get_image_data(trainer)
        images = data.splits.get("train") if data is not None else None
        if not isinstance(batch, Batch) or images is None:
            return ""
        names = [images.names[index % len(images.names)] for index in batch.indices.tolist()]
        path = self.folder / "bad_batches.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", newline="", encoding="utf-8", errors="surrogateescape") as file:
            table = csv.writer(file)
            if not file.tell():
                table.writerow(["step", "epoch", "batch", "process", "loss", "learning_rate", "images"])
            table.writerow([step, batch.epoch, batch.batch_idx, trainer.global_rank, loss, lr, ";".join(names)])
        return f", images {names[0]} and {len(names) - 1} more (see {path})"


def all_finite(values: list[Tensor]) -> bool:
    """Whether all values are finite; synchronizes once with each device: optimizers keep their steps on the CPU."""
    flags: dict[torch.device, list[Tensor]] = {}
    for value in values:
        flags.setdefault(value.device, []).append(value.detach().isfinite().all())
    return all(bool(torch.stack(each).all()) for each in flags.values())


def tensors(value: Any) -> Iterator[Tensor]:
    """Yields the floating-point tensors in nested lists and mappings."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict | list | tuple):
        children: Iterable[Any] = value.values() if isinstance(value, dict) else value
        for child in children:
            yield from tensors(child)


def _last_good(trainer: Trainer) -> str:
    paths = [Path(path) for callback in trainer.checkpoint_callbacks if (path := getattr(callback, "path", None))]
    saved = max((path for path in paths if path.is_file()), key=lambda path: path.stat().st_mtime, default=None)
    return f"the last finite checkpoint is {saved}" if saved else "no checkpoint was saved"


def _scale(trainer: Trainer) -> float:
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return math.inf if scaler is None else scaler.get_scale()
