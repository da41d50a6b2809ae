"""Going on exactly where a run stopped, wherever that was."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

KEY = "exact_resume"
# What a batch changes in a net before its gradients do: the running statistics of normalisation layers.
RUNNING = ("running_mean", "running_var", "num_batches_tracked")


class ExactResume(Callback):
    """Makes a run that goes on bitwise equal to one that was never stopped, also after an error.

    Lightning restores weights, optimiser, schedule and progress, the loaders their place; what is drawn at random is a
    function of the batch. This adds the sums that are logged, and goes back to the last step of the optimiser: what an
    error or a stop left undone was taken from the loader and had moved sums and running statistics. A validation that
    was due or broken off is made anew.

    What was broken off within a step of the optimiser cannot be undone, and is not written.

    Attributes:
        stepping: whether weights, schedule and average may be neither those before a step nor those after it.
    """

    def __init__(self) -> None:
        self.stepping = self._interrupted = self._validated = self._averaged = False
        # What the last batch that began started from.
        self._running: dict[str, Tensor] = {}
        self._kept: dict[str, Tensor] = {}
        self._pairs: list[tuple[list[Tensor], list[Tensor]]] = []
        # What the last step that began started from: how many steps and batches were done, running statistics and sums.
        self._step, self._done = -1, 0
        self._first: dict[str, Tensor] = {}
        self._seen: Tensor | None = None
        self._restored: Tensor | None = None

    # ------------------------------------------------------------------------------------ while it trains
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts restored sums back, and finds the running statistics, where a broken batch leaves its mark."""
        self._interrupted = self.stepping = False
        if self._restored is not None:
            pl_module._seen = self._restored.to(pl_module.device)
        self._running = {n: b for n, b in pl_module.named_buffers() if n.rsplit(".", 1)[-1] in RUNNING}
        self._kept = {name: buffer.clone() for name, buffer in self._running.items()}
        # Statistics apart from counts: tensors of one type are copied by one kernel on a GPU.
        types = [
            [n for n, buffer in self._running.items() if buffer.is_floating_point() is kind] for kind in (True, False)
        ]
        self._pairs = [([self._kept[n] for n in names], [self._running[n] for n in names]) for names in types if names]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keeps what the batch, and the step that it is the first of, start from."""
        loop = trainer.fit_loop.epoch_loop
        # Lightning counts a step after it saves, and when it goes on not alike from wherever it saved.
        loop._batches_that_stepped = trainer.global_step
        # It mends what was left of a broken batch in one of the two counts alone.
        total = loop.batch_progress.total
        total.started = total.processed = total.completed
        total.ready = total.completed + 1
        for kept, running in self._pairs:
            torch._foreach_copy_(kept, running)
        done, several = loop.batch_progress.current.ready - 1, trainer.accumulate_grad_batches
        if done % several == 0:
            self._step, self._done, self._seen = trainer.global_step, done, pl_module._seen
            self._first = self._kept if several == 1 else {name: kept.clone() for name, kept in self._kept.items()}

    def forget_batch(self) -> None:
        """Puts the running statistics back to what the batch started from."""
        with torch.no_grad():
            for name, buffer in self._running.items():
                buffer.copy_(self._kept[name])

    def on_before_optimizer_step(self, *args: Any) -> None:
        """From here on weights are changed, then the schedule, then an average of the weights."""
        self.stepping = True

    def on_train_batch_end(self, *args: Any) -> None:
        """All is changed; a validation after this batch has not been made yet."""
        self.stepping = self._validated = False

    def on_validation_epoch_start(self, *args: Any) -> None:
        """From here on averaged weights, where there are any, are in the net's place."""
        self._averaged = True

    def on_validation_epoch_end(self, *args: Any) -> None:
        """See Lightning's Callback."""
        self._averaged = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See Lightning's Callback."""
        self._validated = True

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Writes what was logged in a step whose end an error broke off; of a validation, puts the net back."""
        averages = [callback for callback in trainer.callbacks if isinstance(callback, WeightAveraging)]
        for average in averages if self._averaged else []:
            average.on_validation_epoch_end(trainer, pl_module)
        self._averaged = False
        self._interrupted, progress = True, trainer.fit_loop.epoch_loop.batch_progress.total
        if progress.completed < progress.processed == progress.ready:
            # Whatever a logger says, the checkpoint comes after it.
            with suppress(Exception):
                trainer._logger_connector.update_train_step_metrics()

    # ------------------------------------------------------------------------------------ checkpoints
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds the sums; where a step was begun and not ended, makes it the state before that step."""
        progress, loops = trainer.fit_loop.epoch_loop.batch_progress.current, checkpoint["loops"]["fit_loop"]
        undone = progress.ready - self._done if trainer.global_step == self._step else 0
        if trainer.validating and not self._interrupted:
            undone = 0  # the best net is kept as it was measured
        checkpoint[KEY] = self._seen if undone else pl_module._seen
        if undone:
            # Averaged weights, where there are any, have pushed the net's own aside.
            weights = checkpoint.get("current_model_state", checkpoint["state_dict"])
            weights |= self._first
            for counts in (loops["epoch_loop.batch_progress"][which] for which in ("total", "current")):
                counts |= dict.fromkeys(("started", "processed", "completed"), counts["ready"] - undone)
        for loader in loops["state_dict"].get("combined_loader", []):
            loader["done"] = min(loader["done"], self._done if undone else progress.processed)
        if not trainer.fit_loop.epoch_loop._num_ready_batches_reached():
            # Lightning counts an epoch that the run ended in as a whole one, and would go on with the next one's order.
            for counts in loops["epoch_progress"].values():
                counts["processed"] = counts["completed"]
        _mark_validation(loops, owed=not undone and self._owes_validation(trainer))

    def _owes_validation(self, trainer: Trainer) -> bool:
        loop = trainer.fit_loop.epoch_loop
        if trainer.validating:
            return not self._validated
        at_batch_end = loop.batch_progress.current.completed < loop.batch_progress.current.processed
        return at_batch_end and loop._should_check_val_fx(trainer.fit_loop._data_fetcher)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Takes the sums; all processes those of the first, whose are logged."""
        seen = checkpoint.get(KEY)
        # Older versions stored more.
        self._restored = seen if isinstance(seen, Tensor) else None


def _mark_validation(loops: dict[str, Any], owed: bool) -> None:
    """Makes Lightning begin with the validation, or not: it goes by whether one of its batches was left undone."""
    total = loops["epoch_loop.val_loop.batch_progress"]["total"]
    total |= {"ready": int(owed), "started": int(owed), "processed": 0, "completed": 0}
    if owed:
        loops["epoch_loop.val_loop.batch_progress"]["current"] |= dict.fromkeys(total, 0)
        for counts in (loops["epoch_loop.batch_progress"][which] for which in ("total", "current")):
            counts["completed"] = counts["processed"]
