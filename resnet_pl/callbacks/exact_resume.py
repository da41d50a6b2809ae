"""Going on exactly where a run stopped, wherever that was."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

KEY = "exact_resume"
# What a batch changes in a net before its gradients do: the running statistics of normalisation layers.
RUNNING = ("running_mean", "running_var", "num_batches_tracked")


class ExactResume(Callback):
    """Makes a run that goes on bitwise equal to one that was never stopped, also after an error.

    Lightning restores weights, optimiser, schedule and progress, the loaders their place. This adds torch's generators
    of every process, which dropout draws from, and the sums that are logged. Of a batch that an error broke off it
    undoes what had been done: it was taken from the loader and had moved generators, sums and running statistics. A
    validation that was due or broken off is made anew.

    It cannot undo a broken step of the optimiser, nor keep the gradients of accumulated batches. Where a single one of
    several processes fails, generators are stored for the first alone.
    """

    def __init__(self) -> None:
        self._alone = self._validated = False
        # What the last batch that began started from, and which batch that was.
        self._before: dict[str, Any] = {}
        self._batch = 0
        self._running: dict[str, Tensor] = {}
        self._kept: dict[str, Tensor] = {}
        self._pairs: list[tuple[list[Tensor], list[Tensor]]] = []
        self._restored: dict[str, Any] = {}

    # ------------------------------------------------------------------------------------ while it trains
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts a restored state back, and finds the running statistics, where a broken batch leaves its mark."""
        if self._restored:
            _restore(pl_module, self._restored)
        self._running = {n: b for n, b in pl_module.named_buffers() if n.rsplit(".", 1)[-1] in RUNNING}
        self._kept = {name: buffer.clone() for name, buffer in self._running.items()}
        # Statistics apart from counts: tensors of one type are copied by one kernel on a GPU.
        types = [
            [n for n, buffer in self._running.items() if buffer.is_floating_point() is kind] for kind in (True, False)
        ]
        self._pairs = [([self._kept[n] for n in names], [self._running[n] for n in names]) for names in types if names]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keeps what the batch starts from."""
        loop = trainer.fit_loop.epoch_loop
        # Lightning counts a step after it saves, and when it goes on not alike from wherever it saved.
        loop._batches_that_stepped = trainer.global_step
        self._batch, self._before = loop.batch_progress.total.ready, _state(pl_module)
        for kept, running in self._pairs:
            torch._foreach_copy_(kept, running)

    def forget_batch(self) -> None:
        """Puts the running statistics back to what the batch started from."""
        with torch.no_grad():
            for name, buffer in self._running.items():
                buffer.copy_(self._kept[name])

    def on_train_batch_end(self, *args: Any) -> None:
        """A validation after this batch has not been made yet."""
        self._validated = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See Lightning's Callback."""
        self._validated = True

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Other processes stop with this one where they are told to, and know nothing of an error in it."""
        self._alone = not isinstance(exception, SIGTERMException)

    # ------------------------------------------------------------------------------------ checkpoints
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds the state after the last whole batch."""
        progress, loops = trainer.fit_loop.epoch_loop.batch_progress, checkpoint["loops"]["fit_loop"]
        broken = progress.current.ready > progress.current.processed and self._batch == progress.total.ready
        states = [self._before if broken else _state(pl_module)]
        if trainer.world_size > 1 and not self._alone:
            mine, states = {name: _on_cpu(value) for name, value in states[0].items()}, [{}] * trainer.world_size
            torch.distributed.all_gather_object(states, mine)
        checkpoint[KEY] = states
        if broken:
            # Averaged weights, where there are any, have pushed the net's own aside.
            weights = checkpoint.get("current_model_state", checkpoint["state_dict"])
            weights |= self._kept
        for loader in loops["state_dict"].get("combined_loader", []):
            loader["done"] = min(loader["done"], progress.current.processed)
        if not trainer.fit_loop.epoch_loop._num_ready_batches_reached():
            # Lightning counts an epoch that the run ended in as a whole one, and would go on with the next one's order.
            for counts in loops["epoch_progress"].values():
                counts["processed"] = counts["completed"]
        _mark_validation(loops, owed=not broken and self._owes_validation(trainer))

    def _owes_validation(self, trainer: Trainer) -> bool:
        loop = trainer.fit_loop.epoch_loop
        if trainer.validating:
            return not self._validated
        at_batch_end = loop.batch_progress.current.completed < loop.batch_progress.current.processed
        return at_batch_end and loop._should_check_val_fx(trainer.fit_loop._data_fetcher)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Takes this process's state; a run that goes on with more processes has none for the new ones."""
        states = checkpoint.get(KEY) or []
        self._restored = states[trainer.global_rank] if trainer.global_rank < len(states) else {}


def _mark_validation(loops: dict[str, Any], owed: bool) -> None:
    """Makes Lightning begin with the validation, or not: it goes by whether one of its batches was left undone."""
    total = loops["epoch_loop.val_loop.batch_progress"]["total"]
    total |= {"ready": int(owed), "started": int(owed), "processed": 0, "completed": 0}
    if owed:
        loops["epoch_loop.val_loop.batch_progress"]["current"] |= dict.fromkeys(total, 0)
        for counts in (loops["epoch_loop.batch_progress"][which] for which in ("total", "current")):
            counts["completed"] = counts["processed"]


def _state(pl_module: LightningModule) -> dict[str, Any]:
    state = {"torch": torch.get_rng_state(), "seen": pl_module._seen}
    if pl_module.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(pl_module.device)
    return state


def _restore(pl_module: LightningModule, state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if "cuda" in state and pl_module.device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], pl_module.device)
    pl_module._seen = None if state["seen"] is None else state["seen"].to(pl_module.device)


def _on_cpu(value: Any) -> Any:
    return value.cpu() if isinstance(value, Tensor) else value
