"""Parameter groups, and learning rate schedules in epochs or iterations."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Any, Literal

from jsonargparse.typing import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from resnet_pl.errors import UserError


@dataclass
class Schedule:
    """The learning rate over a run, as a share of the optimiser's own `lr`; it changes after every batch.

    Args:
        shape: `cosine` falls to nothing at the end; `step` is multiplied by `factor` at each milestone; `plateau` is
            multiplied by `factor` when validation top-1 has not improved for `patience` validations; or `constant`.
        unit: what `warmup` and `milestones` are counted in.
        warmup: length of the linear rise from nothing at the start.
        milestones: when `step` falls.
        factor: what the rate is multiplied by at each fall of `step` and `plateau`.
        patience: validations without improvement before `plateau` falls.
    """

    shape: Literal["cosine", "step", "plateau", "constant"] = "cosine"
    unit: Literal["epochs", "iterations"] = "epochs"
    warmup: NonNegativeFloat = 0
    milestones: list[NonNegativeFloat] = field(default_factory=list)
    factor: PositiveFloat = 0.1
    patience: PositiveInt = 10


class ScheduledLR(LRScheduler):
    """Follows a `Schedule`, one step a batch.

    Its state says how far it has come and nothing of the schedule itself: a run resumes exactly, and one that goes on
    with more epochs or another learning rate follows these.

    Args:
        optimizer: its groups' `lr` are the rates that the schedule scales.
        schedule: what to follow.
        total_steps: optimiser steps in the whole run; infinite where the run has no set length.
        steps_per_epoch: optimiser steps in an epoch.

    Raises:
        UserError: a cosine without a length, or milestones that are missing or out of order.
    """

    STATE = ("last_epoch", "_step_count", "reductions", "best", "waited")

    def __init__(self, optimizer: Optimizer, schedule: Schedule, total_steps: float, steps_per_epoch: float) -> None:
        scale = steps_per_epoch if schedule.unit == "epochs" else 1
        self.shape, self.factor, self.patience = schedule.shape, schedule.factor, schedule.patience
        self.warmup = schedule.warmup * scale
        self.milestones = [milestone * scale for milestone in schedule.milestones]
        self.total_steps = total_steps
        self.reductions, self.best, self.waited = 0, -math.inf, 0
        if self.shape == "cosine" and not math.isfinite(total_steps):
            raise UserError(
                "model.schedule.shape: cosine needs to know how long the run is\n"
                "set --trainer.max_epochs or --trainer.max_steps, or choose another shape"
            )
        if self.shape == "step" and (not self.milestones or self.milestones != sorted(self.milestones)):
            raise UserError(
                f"model.schedule.milestones: {schedule.milestones} must be one or more numbers in rising order "
                f"({schedule.unit})\nfor example --model.schedule.milestones '[80, 120]'"
            )
        super().__init__(optimizer)

    def share(self, step: int) -> float:
        """What the rate is multiplied by at a step, counted from 0."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        if self.shape == "cosine":
            done = (step - self.warmup) / max(1, self.total_steps - self.warmup)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        if self.shape == "step":
            return self.factor ** bisect_right(self.milestones, step)
        return self.factor**self.reductions

    def get_lr(self) -> list[float]:
        """See torch's LRScheduler."""
        return [base * self.share(self.last_epoch) for base in self.base_lrs]

    def observe(self, top1: float) -> None:
        """Tells the schedule how a validation went; `plateau` falls where it should."""
        if self.shape != "plateau":
            return
        self.best, self.waited = (top1, 0) if top1 > self.best else (self.best, self.waited + 1)
        if self.waited >= self.patience:
            self.reductions, self.waited = self.reductions + 1, 0
            self._set_rates()

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {name: getattr(self, name) for name in self.STATE}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a state, with the optimiser's rates already those of the next step."""
        self.__dict__.update({name: state_dict[name] for name in self.STATE})
        self._set_rates()

    def _set_rates(self) -> None:
        self._last_lr = self.get_lr()
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate


def parameter_groups(model: nn.Module, decay_norm_and_bias: bool) -> list[dict[str, Any]]:
    """Groups a model's parameters for an optimiser.

    Args:
        model: frozen parameters are included, so that they can be trained later in the run.
        decay_norm_and_bias: whether weight decay applies to everything, as in the paper, or spares normalisation
            layers and biases.

    Returns:
        One group, or two: those with weight decay and those without.
    """
    parameters = list(model.parameters())
    if decay_norm_and_bias:
        return [{"params": parameters}]
    # Scales and offsets of normalisation layers and all biases are vectors; everything else is not.
    decayed = [p for p in parameters if p.ndim > 1]
    spared = [p for p in parameters if p.ndim <= 1]
    return [{"params": decayed}, {"params": spared, "weight_decay": 0.0}]
