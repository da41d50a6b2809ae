"""Parameter groups, and learning rate schedules in epochs, iterations or parts of the run."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jsonargparse.typing import NonNegativeFloat, PositiveFloat, PositiveInt, restricted_number_type
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from resnet_pl.utils import UserError

Share = restricted_number_type("Share", float, [(">=", 0), ("<", 1)], docstring="Float from 0 up to, not including, 1")
# Iterations over which the training error is averaged: one batch alone is below a threshold by chance.
WINDOW = 100


@dataclass
class Schedule:
    """The learning rate over a run, as a share of the optimiser's own `lr`; it changes after every batch.

    Args:
        shape: `cosine` falls to nothing at the end; `step` is multiplied by `factor` at each milestone; `plateau` is
            multiplied by `factor` when validation top-1 has not improved for `patience` validations; or `constant`.
        unit: what `warmup` and `milestones` are counted in; `run` means parts of the whole, from 0 to 1.
        warmup: length of the linear rise from nothing at the start.
        warmup_error: a warm-up that ends by training error: the rate is multiplied by `warmup_share` until the error
            over 100 iterations is below this share, as for the paper's 110 layers (0.8). Falls come when they would.
        warmup_share: what the rate is multiplied by until then.
        warmup_limit: iterations after which the run stops where the error is not below by then.
        milestones: when `step` falls.
        factor: what the rate is multiplied by at each fall of `step` and `plateau`.
        patience: validations without improvement before `plateau` falls.
    """

    shape: Literal["cosine", "step", "plateau", "constant"] = "cosine"
    unit: Literal["epochs", "iterations", "run"] = "epochs"
    warmup: NonNegativeFloat = 0
    warmup_error: Share | None = None
    warmup_share: PositiveFloat = 0.1
    warmup_limit: PositiveInt = 4000
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
        UserError: a cosine or parts of a run without a length, or milestones that are missing or out of order.

    Attributes:
        errors: the training errors of the last iterations while `warmup_error` has not been reached, else None.
    """

    STATE = ("last_epoch", "_step_count", "reductions", "best", "waited")

    def __init__(self, optimizer: Optimizer, schedule: Schedule, total_steps: float, steps_per_epoch: float) -> None:
        scale = {"epochs": steps_per_epoch, "iterations": 1, "run": total_steps}[schedule.unit]
        self.shape, self.factor, self.patience = schedule.shape, schedule.factor, schedule.patience
        self.schedule, self.total_steps = schedule, total_steps
        self.reductions, self.best, self.waited = 0, -math.inf, 0
        self.errors: list[float] | None = None if schedule.warmup_error is None else []
        if (self.shape == "cosine" or schedule.unit == "run") and not math.isfinite(total_steps):
            what = "shape: cosine" if self.shape == "cosine" else "unit: run"
            raise UserError(
                f"model.schedule.{what} needs to know how long the run is\n"
                "set --trainer.max_epochs or --trainer.max_steps, or choose another"
            )
        # Rounded, for 0.7 of 10 steps is 7.000000000000001 in floating point, one step late.
        self.warmup = round(schedule.warmup * scale, 6)
        self.milestones = [round(milestone * scale, 6) for milestone in schedule.milestones]
        if self.shape == "step" and (not self.milestones or self.milestones != sorted(self.milestones)):
            raise UserError(
                f"model.schedule.milestones: {schedule.milestones} must be one or more numbers in rising order "
                f"({schedule.unit})\nfor example --model.schedule.milestones '[80, 120]'"
            )
        if schedule.unit == "run" and max([schedule.warmup, *schedule.milestones]) > 1:
            raise UserError(
                f"model.schedule: warmup {schedule.warmup:g} and milestones {schedule.milestones} must be parts of the "
                "run, from 0 to 1\nset --model.schedule.unit iterations or epochs for other numbers"
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
        share = self.share(self.last_epoch) * (1 if self.errors is None else self.schedule.warmup_share)
        return [base * share for base in self.base_lrs]

    def warm(self, error: float) -> None:
        """A step of the warm-up that ends by training error.

        Args:
            error: share of the iteration's images that were wrong, over all processes.
        """
        self.errors = [*self.errors, error][-WINDOW:]
        if len(self.errors) == WINDOW and sum(self.errors) / WINDOW < self.schedule.warmup_error:
            self.errors = None
        self.step()

    def check(self) -> None:
        """Raises UserError where a warm-up that ends by training error has lasted for too long."""
        if self.errors is not None and self.last_epoch >= self.schedule.warmup_limit:
            mean = sum(self.errors) / len(self.errors)
            raise UserError(
                f"the training error is {mean:.2%} after {self.last_epoch:,} iterations of warm-up, not below "
                f"{self.schedule.warmup_error:.2%}\n"
                "lower --model.schedule.warmup_share, or raise --model.schedule.warmup_limit"
            )

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
        warming = {} if self.errors is None else {"errors": self.errors}
        return {name: getattr(self, name) for name in self.STATE} | warming

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a state, with the optimiser's rates already those of the next step."""
        self.__dict__.update({name: state_dict[name] for name in self.STATE})
        self.errors = None if self.errors is None else state_dict.get("errors")
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


def fuse(optimizer: Optimizer) -> None:
    """Makes a step of SGD, Adam or AdamW one kernel, where the device knows one and no argument says how to step.

    Set in the groups and not given to the constructor: the constructor's makes the optimiser unscale gradients of
    float16 itself, and Lightning then cannot clip them. SGD's kernel fails where some parameters have a momentum and
    others have none yet, because they thaw later or a batch did without them: momentum begins as nothing, which makes
    the same first step, and a group with frozen parameters is not fused.
    """
    for group in optimizer.param_groups if isinstance(optimizer, SGD | Adam | AdamW) else ():
        unsaid = group["fused"] is None and group["foreach"] is None
        if not unsaid or group.get("dampening") or not all(map(_fusible, group["params"])):
            continue
        group["fused"] = True
        if group.get("momentum"):
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _fusible(parameter: nn.Parameter) -> bool:
    return parameter.requires_grad and parameter.device.type in ("cuda", "cpu") and parameter.is_floating_point()
