"""Time and memory of a run: an estimate after its first batches, and a batch size that fits if the memory is full."""

from __future__ import annotations

import math
import re
import sys
from datetime import timedelta
from traceback import clear_frames
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from resnet_pl.callbacks.access import get_image_data, optional, total_steps
from resnet_pl.callbacks.timing import MEASURED, SKIPPED, BatchTimer
from resnet_pl.data.batch import Batch
from resnet_pl.utils import rank_zero_print

# Shortest epoch that is estimated, seconds: the line at the end of a shorter one follows soon.
SHORTEST = 10
# Type and message of an error that means that the memory is full.
OUT_OF_MEMORY = r"out of memory|can't allocate memory|MemoryError|bad_alloc|CUBLAS_STATUS_ALLOC_FAILED"


@optional
class Estimate(BatchTimer):
    """Prints the time of an epoch and of the run, and the memory in use, after the first batches of a long epoch.

    It reads clocks and counters only, so that the run stays the same.
    """

    def __init__(self) -> None:
        super().__init__(SKIPPED, MEASURED)

    @override
    def on_measured(self, trainer: Trainer, pl_module: LightningModule, batch_seconds: float) -> None:
        epoch, run = run_seconds(trainer, batch_seconds)
        if SHORTEST <= epoch < math.inf:
            whole = "" if math.isinf(run) else f", {format_time(run)} for the run"
            memory = describe_memory(pl_module)
            rank_zero_print(f"estimate  {format_time(epoch)} per epoch{whole}, without validation; {memory}")


def run_seconds(trainer: Trainer, batch_seconds: float) -> tuple[float, float]:
    """Returns the time of an epoch and of the remaining run, without validations; infinite if it has no end."""
    steps = (total_steps(trainer) or math.inf) - trainer.global_step
    batches, accumulated = trainer.num_training_batches, trainer.accumulate_grad_batches
    # The last step of an epoch can have fewer batches.
    per_step = accumulated if math.isinf(batches) else batches / -(-batches // accumulated)
    return batch_seconds * batches, batch_seconds * steps * per_step


def format_time(seconds: float) -> str:
    """Returns a time such as 1:30:05."""
    return str(timedelta(seconds=round(seconds)))


def peak_memory(device: torch.device) -> float:
    """Returns the largest amount of memory that this process has used so far, bytes; NaN if it is not known."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_reserved(device))
    if sys.platform == "win32":
        return math.nan
    from resource import RUSAGE_SELF, getrusage

    return float(getrusage(RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))


def describe_memory(pl_module: LightningModule) -> str:
    """Returns the largest amount of memory that this process has used so far, as text."""
    used = peak_memory(pl_module.device)
    if math.isnan(used):
        return "memory not measured"
    if pl_module.device.type == "cuda":
        total = torch.cuda.get_device_properties(pl_module.device).total_memory
        return f"{used / 1e9:.1f} of {total / 1e9:.1f} GB of GPU memory"
    return f"{used / 1e9:.1f} GB of memory"


class OutOfMemory(Callback):
    """Adds a message to an out-of-memory error: it names a batch size that fits.

    After such an error in a training step, steps with half of the images, a quarter and so on are tried. They change
    nothing that is saved. With several processes nothing is tried, and the message names half of the batch size.
    """

    def __init__(self) -> None:
        self._batch: Any = None

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._batch = batch

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._batch = None

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Adds the note to an out-of-memory error."""
        batch, self._batch, data = self._batch, None, get_image_data(trainer)
        if data is None or not is_out_of_memory(exception):
            return
        if trainer.validating:
            size = max(1, min(data.batch_size, data.eval_batch_size // 2))
            exception.add_note(
                f"out of memory in the validation, with {data.eval_batch_size} images per batch\n"
                f"use --data.eval_batch_size {size}"
            )
        elif isinstance(batch, Batch):
            clear_frames(exception.__traceback__)  # they hold the activations of the step
            fits = _largest_fit(trainer, pl_module, batch) if trainer.world_size == 1 else None
            exception.add_note(_advice(trainer, data.batch_size, fits))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that the memory is full."""
    return re.search(OUT_OF_MEMORY, f"{type(error).__name__}: {error}") is not None


def _advice(trainer: Trainer, size: int, fits: int | None) -> str:
    """Returns the message for a batch size that does not fit, and one that does: 0 if none does, None if unknown."""
    if fits == 0:
        fix = "one image does not fit: lower --data.image_size, or use a smaller --model.backbone"
    else:
        smaller = fits or max(1, size // 2)
        accumulated = trainer.accumulate_grad_batches * math.ceil(size / smaller)
        fix = f"use --data.batch_size {smaller} --trainer.accumulate_grad_batches {accumulated}"
        fix += ", which fits" if fits else "; halve it again if that does not fit"
    return f"out of memory with --data.batch_size {size}\n{fix}"


def _largest_fit(trainer: Trainer, pl_module: LightningModule, batch: Batch) -> int | None:
    """Returns the largest part of a batch whose training step fits: N / 2, N / 4 …; see `_advice` for 0 and None."""
    size, buffers = len(batch.labels), [buffer.clone() for buffer in pl_module.buffers()]
    try:
        while size := size // 2:
            pl_module.zero_grad()
            torch.cuda.empty_cache()
            if _fits(trainer, pl_module, batch, size):
                return size
        return 0
    except Exception:
        return None  # a module that needs a running Trainer, or BatchNorm with one image
    finally:
        pl_module.zero_grad()
        with torch.no_grad():
            for buffer, before in zip(pl_module.buffers(), buffers, strict=True):
                buffer.copy_(before)


def _fits(trainer: Trainer, pl_module: Any, batch: Batch, size: int) -> bool:
    """Whether a training step with the first images of a batch fits into the memory."""
    assert isinstance(batch.images, Tensor)  # test-time augmentation is not for training
    part = batch._replace(images=batch.images[:size], labels=batch.labels[:size], indices=batch.indices[:size])
    # The optimizer allocates its state in its first step: up to two values for each weight.
    has_state = any(optimizer.state for optimizer in trainer.optimizers)
    state: list[Tensor] = []
    try:
        state += [torch.empty_like(p) for p in pl_module.parameters() for _ in range(0 if has_state else 2)]
        with trainer.precision_plugin.train_step_context():
            outputs = pl_module.training_step(part, part.batch_idx)
        (outputs["loss"] if isinstance(outputs, dict) else outputs).backward()
    except Exception as error:
        # On a CPU, oneDNN does not name the reason.
        if is_out_of_memory(error) or "could not create a primitive" in str(error):
            return False
        raise
    return True
