"""A loss that is not finite: it stops the run, or its batch is left out."""

from __future__ import annotations

import csv
import math
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from resnet_pl.callbacks.exact_resume import ExactResume
from resnet_pl.data.loader import Batch
from resnet_pl.utils import Diverged

# So many batches left out one after another are no accident.
MOST_IN_A_ROW = 20
# So many losses are remembered, for the one to be named that was the first to go wrong.
MOST_RECENT = 1000
# A loss scale as small as this has been halved at each of the last 26 steps: none of them was taken.
LEAST_SCALE = 2.0**-10


class BadLoss(Callback):
    """Keeps a loss of NaN or infinity from spoiling the net, or at least its checkpoints.

    With `stop` nothing is asked of the device between logging steps; no checkpoint is written of a net that has gone
    wrong since, so the last one is good. With `skip` each step waits for its loss: a batch whose loss is not finite, in
    any of the processes, takes no part in the step, in all of them. The weights, the optimiser's state and the running
    statistics stay as if it had not been there; the learning rate goes on.

    Half precision's own overflow, that of scaled gradients, is neither: there the scaler leaves out a step and
    lowers its scale. A scale that only falls is told.
    """

    def __init__(self) -> None:
        self.left_out = self._in_a_row = 0
        self._folder = Path()
        # Loss, step, learning rate and batch since losses were last looked at; they stay on the device.
        self.recent: deque[tuple[Tensor, int, float, Batch]] = deque(maxlen=MOST_RECENT)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finds the run folder, which all processes have to ask for together."""
        self._folder = Path(trainer.log_dir or trainer.default_root_dir)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuses to keep a net that has gone wrong in training."""
        if trainer.training or trainer.validating:
            check(trainer, pl_module, weights=True)

    def leaves_out(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, loss: Tensor) -> bool:
        """Whether the batch takes no part, because its loss is not finite here or in another process.

        Raises:
            Diverged: the weights have gone wrong already, or no batch does well any more.
        """
        loss = loss.detach()
        if not trainer.strategy.reduce((~torch.isfinite(loss)).float(), reduce_op="sum").item():
            self._in_a_row = 0
            return False
        self.left_out, self._in_a_row = self.left_out + 1, self._in_a_row + 1
        hopeless = self._in_a_row >= MOST_IN_A_ROW
        if hopeless or not all_finite(pl_module.parameters()):
            raise diverged(trainer, pl_module, float(loss), f", {MOST_IN_A_ROW} times in a row" if hopeless else "")
        resume = next(callback for callback in trainer.callbacks if isinstance(callback, ExactResume))
        resume.forget_batch()
        told = self._record(trainer, batch, float(loss), trainer.global_step, _rate(trainer))
        if not math.isfinite(loss):
            # Not by `tell`: each process meets other images.
            print(f"left out, {self.left_out} so far: {told}, its loss is {loss:g}", flush=True)
        return True

    def note(self, trainer: Trainer, batch: Batch, loss: Tensor) -> None:
        """Remembers a loss without asking the device for it."""
        self.recent.append(
            (loss.detach(), trainer.global_step, _rate(trainer), batch._replace(images=None, labels=None))
        )

    def first_bad(self, trainer: Trainer, together: bool) -> str | None:
        """The first of the remembered losses that is not finite, in words; its images go into bad_batches.csv.

        Args:
            together: whether all processes ask, and are told of the first of all.
        """
        losses = [loss for loss, *_ in self.recent]
        finite = torch.stack(losses).isfinite().tolist() if losses else []
        at = len(finite) if all(finite) else finite.index(False)
        step = math.inf if at == len(finite) else self.recent[at][1]
        if step == min(_gathered(step, together)) < math.inf:
            loss, _, rate, batch = self.recent[at]
            told = self._record(trainer, batch, float(loss), step, rate)
            words = f"the training loss is {float(loss):g} at {told}, learning rate {rate:.3g}"
        else:
            words = None
        return next((each for each in _gathered(words, together) if each), None)

    def _record(self, trainer: Trainer, batch: Batch, loss: float, step: int, rate: float) -> str:
        """Writes the names of a batch's images; returns which batch it is, in words."""
        every = trainer.datamodule.split("train").names
        names = [every[index] for index in batch.indices.tolist()]
        path = self._folder / "bad_batches.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", newline="", encoding="utf-8", errors="surrogateescape") as file:
            table = csv.writer(file)
            if not file.tell():
                table.writerow(["step", "epoch", "batch", "process", "loss", "learning_rate", "images"])
            where = [step, batch.epoch, batch.number, trainer.global_rank]
            table.writerow([*where, loss, rate, ";".join(names)])
        images = f"{names[0]} and {len(names) - 1} more, see {path}"
        return f"step {step}, batch {batch.number} of epoch {batch.epoch} ({images})"


def check(trainer: Trainer, pl_module: LightningModule, weights: bool = False) -> list[float]:
    """Looks at the losses since they were logged last, and at the weights if asked.

    Returns:
        Their sum over images, how many of these were right, and how many there were.

    Raises:
        Diverged: something is not finite, or half precision takes no step any more.
    """
    seen = [0.0, 0.0, 0.0] if pl_module._seen is None else pl_module._seen.tolist()
    total, _, images = seen
    scale = scaler.get_scale() if (scaler := getattr(trainer.precision_plugin, "scaler", None)) else 1.0
    wrong = not math.isfinite(total) or scale < LEAST_SCALE
    if weights:
        wrong |= not all_finite(pl_module.parameters())
    elif trainer.world_size > 1:
        # A process that stopped alone would leave the others waiting for it.
        wrong = bool(trainer.strategy.reduce(torch.tensor(float(wrong), device=pl_module.device), reduce_op="sum"))
    if wrong:
        steps = math.ceil(images / (trainer.datamodule.batch_size * trainer.accumulate_grad_batches))
        together = trainer.world_size > 1 and not weights
        raise diverged(trainer, pl_module, total, f" or one of the {steps - 1} before" if steps > 1 else "", together)
    return seen


def diverged(trainer: Trainer, pl_module: LightningModule, loss: float, when: str, together: bool = False) -> Diverged:
    """The error that says what went wrong, when, and what there is to go back to."""
    sound, half = all_finite(pl_module.parameters()), str(trainer.precision) == "16-mixed"
    where = f" at step {trainer.global_step}{when}, learning rate {_rate(trainer):.3g}"
    what = pl_module._bad_loss.first_bad(trainer, together) or f"the training loss is {loss:g}{where}"
    way_out = "lower --model.optimizer.lr"
    if half and sound:
        # The scaler has left out every step that could have spoilt the weights.
        way_out = "give --trainer.precision bf16-mixed"
        overflow = f"gradients overflow half precision at every step{where}"
        what = overflow if math.isfinite(loss) else f"{what}: an overflow"
    elif math.isfinite(loss):
        what = "the training loss of another process is not finite" if sound else "the weights are not finite"
        what += where
    good = [Path(c.best_model_path) for c in trainer.checkpoint_callbacks if c.best_model_path]
    newest = max((path for path in good if path.is_file()), key=lambda path: path.stat().st_mtime, default=None)
    kept = f"the last good checkpoint is {newest}" if newest else "there is no checkpoint yet"
    if pl_module.hparams.on_bad_loss == "stop":
        way_out += ", or leave such batches out with --model.on_bad_loss skip"
    return Diverged(f"{what}\n{way_out}; {kept}")


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no value is NaN or infinite; the device is asked once."""
    return bool(torch.stack([tensor.detach().isfinite().all() for tensor in tensors]).all())


def _gathered(mine: Any, together: bool) -> list[Any]:
    """What all processes have, in their order, where all ask; else what this one has."""
    every = [mine] * (torch.distributed.get_world_size() if together else 1)
    if together:
        torch.distributed.all_gather_object(every, mine)
    return every


def _rate(trainer: Trainer) -> float:
    return trainer.optimizers[0].param_groups[0]["lr"]
