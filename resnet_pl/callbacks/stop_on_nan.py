"""Stops a run whose loss or weights are no longer finite."""

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

from resnet_pl.callbacks.train_log import stepped
from resnet_pl.data.loader import Batch
from resnet_pl.utils import DivergenceError

# Losses that are kept until the next logging step.
HISTORY = 1000
# A loss scale this small has been halved at each of the last 26 steps: none of them was applied.
MIN_SCALE = 2.0**-10


class StopOnNaN(Callback):
    """Ends training with `DivergenceError` at a NaN or infinite loss or weight; no checkpoint of that state is saved.

    Losses are read at logging steps only, so nothing is synchronized in between. The message names the step, the
    learning rate and the images of the first bad batch; all of them are listed in bad_batches.csv of the run folder.
    Overflowing gradients in half precision are not an error as long as the gradient scaler can lower its scale.
    """

    def __init__(self) -> None:
        # Loss, step, learning rate and batch; the losses stay on the device.
        self.history: deque[tuple[Tensor, int, float, Batch]] = deque(maxlen=HISTORY)
        self.folder = Path()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finds the run folder; all processes have to ask for it together."""
        self.folder = Path(trainer.log_dir or trainer.default_root_dir)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keeps the loss, and looks at all kept losses at a logging step."""
        step = trainer.global_step - stepped(trainer, batch_idx)
        small = batch._replace(images=None, labels=None) if isinstance(batch, Batch) else batch
        self.history.append((outputs["loss"].detach(), step, _lr(trainer), small))
        if stepped(trainer, batch_idx) and trainer.global_step % trainer.log_every_n_steps == 0:
            self.check(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at the losses since the last logging step."""
        self.check(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuses to save a state that is not finite."""
        if trainer.training or trainer.validating:
            self.check(trainer, pl_module, saved=[checkpoint["state_dict"], checkpoint.get("optimizer_states")])

    def check(self, trainer: Trainer, pl_module: LightningModule, saved: Any = ()) -> None:
        """Raises `DivergenceError` on all ranks if a loss or a value is not finite on one of them.

        Args:
            trainer: the running trainer.
            pl_module: the module that is trained.
            saved: nested containers of tensors to look at as well.
        """
        bad = self._first_bad()
        wrong = bad is not None or not all_finite([*tensors(saved)]) or _scale(trainer) < MIN_SCALE
        flag = torch.tensor(float(wrong), device=trainer.strategy.root_device)
        if trainer.strategy.reduce(flag, reduce_op="sum") == 0:
            self.history.clear()
            return
        raise DivergenceError(self._message(trainer, pl_module, bad))

    def _first_bad(self) -> tuple[Tensor, int, float, Batch] | None:
        """The first kept loss that is not finite, with its step, learning rate and batch."""
        finite = torch.stack([loss for loss, *_ in self.history]).isfinite().tolist() if self.history else []
        return None if all(finite) else self.history[finite.index(False)]

    def _message(self, trainer: Trainer, pl_module: LightningModule, bad: Any) -> str:
        fix = "lower --model.optimizer.lr"
        finite_weights = all_finite(list(pl_module.parameters()))
        overflow = trainer.precision == "16-mixed" and finite_weights
        if overflow:
            # The gradient scaler has skipped every step that could have damaged the weights.
            fix = "use --trainer.precision bf16-mixed"
        if bad is not None:
            loss, step, lr, batch = bad
            images = self._record(trainer, float(loss), step, lr, batch)
            what = f"the training loss is {float(loss):g} at step {step}, learning rate {lr:.3g}{images}"
        else:
            what = "a loss of another process is not finite" if finite_weights else "the weights are not finite"
            what = "gradients overflow half precision at every step" if overflow else what
            what += f" at step {trainer.global_step}, learning rate {_lr(trainer):.3g}"
        return f"{what}\n{fix}; {_last_good(trainer)}"

    def _record(self, trainer: Trainer, loss: float, step: int, lr: float, batch: Any) -> str:
        """Writes the names of a batch's images to bad_batches.csv; returns a few words about them."""
        images = trainer.datamodule.splits.get("train") if hasattr(trainer.datamodule, "splits") else None
        if not isinstance(batch, Batch) or images is None:
            return ""
        names = [images.names[index] for index in batch.indices.tolist()]
        path = self.folder / "bad_batches.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", newline="", encoding="utf-8", errors="surrogateescape") as file:
            table = csv.writer(file)
            if not file.tell():
                table.writerow(["step", "epoch", "batch", "process", "loss", "learning_rate", "images"])
            table.writerow([step, batch.epoch, batch.batch_idx, trainer.global_rank, loss, lr, ";".join(names)])
        return f", images {names[0]} and {len(names) - 1} more, see {path}"


def all_finite(values: list[Tensor]) -> bool:
    """Whether no value is NaN or infinite; the device is asked once."""
    return not values or bool(torch.stack([value.detach().isfinite().all() for value in values]).all())


def tensors(value: Any) -> Iterator[Tensor]:
    """The floating-point tensors in nested lists and mappings."""
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
    return f"the last good checkpoint is {saved}" if saved else "there is no checkpoint yet"


def _lr(trainer: Trainer) -> float:
    return trainer.optimizers[0].param_groups[0]["lr"]


def _scale(trainer: Trainer) -> float:
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return math.inf if scaler is None else scaler.get_scale()
