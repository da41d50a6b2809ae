"""Learning rate schedulers of torch, of other packages and of the user's own."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Trainer
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ChainedScheduler, CyclicLR, LRScheduler, ReduceLROnPlateau, SequentialLR

from resnet_pl.optim import check_validation, run_steps
from resnet_pl.utils import UserError

LRSchedulerFactory = Callable[[Optimizer], LRScheduler]


class LRSequence(SequentialLR):
    """Learning rate schedulers one after another. In place of torch's SequentialLR, which takes existing schedulers.

    Args:
        optimizer: optimizer whose learning rate is scheduled.
        schedulers: the schedulers, in order.
        milestones: when the second scheduler starts, the third, and so on, in the unit of `lr_scheduler_interval`.
    """

    def __init__(
        self, optimizer: Optimizer, schedulers: list[Callable[[Optimizer], LRScheduler]], milestones: list[int]
    ) -> None:
        super().__init__(optimizer, [create(optimizer) for create in schedulers], milestones)


def configure_lr_scheduler(
    factory: LRSchedulerFactory, optimizer: Optimizer, interval: str | None, trainer: Trainer
) -> dict[str, Any]:
    """Returns a scheduler for the run of a Trainer, as `configure_optimizers` returns it.

    An argument `total_steps` that is None, as that of OneCycleLR, becomes the length of the run.

    Args:
        factory: creates the scheduler.
        optimizer: optimizer whose learning rate is scheduled.
        interval: when the scheduler is updated; by default in every step if it is made for steps (OneCycleLR, CyclicLR
            and others with `total_steps`), else in every epoch.
        trainer: the Trainer.

    Raises:
        UserError: the scheduler rejects its arguments, or the run does not allow this scheduler.
    """
    if ChainedScheduler in getattr(factory, "args", ()):
        raise UserError(
            "model.lr_scheduler: ChainedScheduler takes schedulers, which YAML cannot give\n"
            "write a function that returns it: def chained(optimizer: Optimizer) -> LRScheduler"
        )
    length = _length(factory, interval, trainer)
    try:
        scheduler = factory(optimizer, **length)
    except (TypeError, ValueError) as error:
        raise UserError(f"model.lr_scheduler: {error}") from error
    if not isinstance(scheduler, LRScheduler):
        raise UserError(f"model.lr_scheduler: the function returned {scheduler!r}, not an LRScheduler")
    per_step = bool(length) or hasattr(scheduler, "total_steps") or isinstance(scheduler, CyclicLR)
    config = {"scheduler": scheduler, "interval": interval or ("step" if per_step else "epoch")}
    if isinstance(scheduler, ReduceLROnPlateau):
        check_validation("model.lr_scheduler: ReduceLROnPlateau", trainer)
        # Lightning would update it after last.ckpt is written; `update_plateau` does, after each validation.
        config |= {"monitor": plateau_monitor(scheduler), "interval": "epoch", "frequency": sys.maxsize}
    return config


def _length(factory: LRSchedulerFactory, interval: str | None, trainer: Trainer) -> dict[str, int]:
    """Returns the length of the run as `total_steps`, if the factory has this argument and its value is missing."""
    arguments = {name: parameter.default for name, parameter in inspect.signature(factory).parameters.items()}
    arguments |= getattr(factory, "keywords", {})  # of `functools.partial`, which jsonargparse creates for a class
    if arguments.get("total_steps", 0) is not None or arguments.get("epochs") is not None:
        return {}
    total = (trainer.max_epochs or -1) if interval == "epoch" else run_steps(trainer)
    if total < 0 or math.isinf(total):
        limit = "max_epochs" if interval == "epoch" else "max_epochs or --trainer.max_steps"
        raise UserError(
            f"model.lr_scheduler: total_steps is missing, and the run has no fixed length\nset --trainer.{limit}"
        )
    return {"total_steps": int(total)}


def plateau_monitor(scheduler: ReduceLROnPlateau) -> str:
    """Returns the log key of the metric for ReduceLROnPlateau, by default `val/top1` or `val/loss`, by its `mode`.

    Lightning's subclass has an argument for it: lightning.pytorch.cli.ReduceLROnPlateau.
    """
    return getattr(scheduler, "monitor", "val/top1" if scheduler.mode == "max" else "val/loss")


def update_plateau(scheduler: Any, results: dict[str, Any]) -> None:
    """Updates ReduceLROnPlateau after a validation; does nothing for other schedulers.

    Args:
        scheduler: the scheduler.
        results: metrics of the validation, by their log key without `val/`.

    Raises:
        UserError: there is no such metric.
    """
    if isinstance(scheduler, ReduceLROnPlateau):
        name = plateau_monitor(scheduler).removeprefix("val/")
        if not isinstance(results.get(name), float):
            known = ", ".join(f"val/{key}" for key, value in results.items() if isinstance(value, float))
            raise UserError(f"model.lr_scheduler.monitor: {name} is not a metric of the validation\nuse one of {known}")
        scheduler.step(results[name])
