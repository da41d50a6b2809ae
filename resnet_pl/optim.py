"""Parameter groups, and learning rate schedules in epochs, iterations or parts of the run."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from resnet_pl.types import NonNegativeFloat, PositiveFloat, PositiveInt
from resnet_pl.utils import UserError


@dataclass
class Schedule:
    """The learning rate over a run, as a share of the optimizer's own `lr`; it changes after every optimizer step.

    Args:
        shape: `cosine` falls to zero at the end; `step` is multiplied by `factor` at each milestone; `plateau` is
            multiplied by `factor` when validation top-1 has not improved for `patience` validations; or `constant`.
        unit: what `warmup` and `milestones` are counted in; `run` means parts of the run, from 0 to 1.
        warmup: length of the linear rise from zero at the start.
        milestones: when `step` falls.
        factor: what the rate is multiplied by at each fall of `step` and `plateau`.
        patience: validations without improvement before `plateau` falls.
    """

    shape: Literal["cosine", "step", "plateau", "constant"] = "cosine"
    unit: Literal["epochs", "iterations", "run"] = "epochs"
    warmup: NonNegativeFloat = 0
    milestones: list[NonNegativeFloat] = field(default_factory=list)
    factor: PositiveFloat = 0.1
    patience: PositiveInt = 10

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            # jsonargparse takes null for a value of any type.
            if value is None:
                raise ValueError(f"model.schedule.{name} is null\nremove it to use the default")


class ScheduledLR(LambdaLR):
    """Follows a `Schedule`, one step an iteration.

    Its state says how far it has come and nothing of the schedule itself: a run resumes exactly, and one that is
    continued with more epochs or another learning rate follows these.

    Args:
        optimizer: its groups' `lr` are the rates that the schedule scales.
        schedule: what to follow.
        total_steps: optimizer steps in the whole run; infinite where the run has no set length.
        steps_per_epoch: optimizer steps in an epoch.

    Raises:
        UserError: a cosine or parts of a run without a length, or milestones that are missing or out of order.
    """

    STATE = ("last_epoch", "num_decays", "best", "num_bad_validations")

    def __init__(self, optimizer: Optimizer, schedule: Schedule, total_steps: float, steps_per_epoch: float) -> None:
        scale = {"epochs": steps_per_epoch, "iterations": 1, "run": total_steps}[schedule.unit]
        self.shape, self.factor, self.patience = schedule.shape, schedule.factor, schedule.patience
        self.total_steps = total_steps
        self.num_decays, self.best, self.num_bad_validations = 0, -math.inf, 0
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
        super().__init__(optimizer, self.lr_factor)

    def lr_factor(self, step: int) -> float:
        """What the rate is multiplied by at a step, counted from 0."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        if self.shape == "cosine":
            done = (step - self.warmup) / max(1, self.total_steps - self.warmup)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        if self.shape == "step":
            return self.factor ** bisect_right(self.milestones, step)
        return self.factor**self.num_decays

    def update_plateau(self, top1: float) -> None:
        """Takes the result of a validation; `plateau` falls where it should."""
        if self.shape != "plateau":
            return
        self.best, self.num_bad_validations = (
            (top1, 0) if top1 > self.best else (self.best, self.num_bad_validations + 1)
        )
        if self.num_bad_validations >= self.patience:
            self.num_decays, self.num_bad_validations = self.num_decays + 1, 0
            self._set_lrs()

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {name: getattr(self, name) for name in self.STATE}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues from a state; the optimizer's rates become those of the next step."""
        self.__dict__.update({name: state_dict[name] for name in self.STATE})
        self._set_lrs()

    def _set_lrs(self) -> None:
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base * self.lr_factor(self.last_epoch)


def make_scheduler(optimizer: Optimizer, schedule: Schedule, trainer: Trainer) -> ScheduledLR:
    """The schedule over the run of a Trainer; raises UserError where the run does not allow it."""
    data = trainer.datamodule
    if schedule.shape == "plateau" and data is not None and "val" not in data.splits:
        raise UserError(
            "model.schedule.shape: plateau follows the validation, and no images are held out\n"
            "hold some out with --data.val_split, or choose another shape"
        )
    total = trainer.estimated_stepping_batches
    batches = trainer.num_training_batches
    if math.isinf(batches) and data is not None:
        # Lightning has not looked at the data where `max_steps` alone ends the run.
        batches = data.batches_per_epoch
    # Lightning makes a step at the end of an epoch, however few batches have been accumulated.
    return ScheduledLR(optimizer, schedule, total, math.ceil(batches / trainer.accumulate_grad_batches))


def make_optimizer(
    factory: Callable[[list[dict[str, Any]]], Optimizer], model: nn.Module, decay_norm_and_bias: bool
) -> Optimizer:
    """The optimizer of a model, its step fused; raises UserError for an argument that the optimizer refuses.

    Args:
        factory: makes an optimizer of parameter groups.
        model: see `parameter_groups`.
        decay_norm_and_bias: see `parameter_groups`.
    """
    try:
        optimizer = factory(parameter_groups(model, decay_norm_and_bias))
    except ValueError as error:
        raise UserError(f"model.optimizer: {error}") from error
    fuse(optimizer)
    return optimizer


def parameter_groups(model: nn.Module, decay_norm_and_bias: bool) -> list[dict[str, Any]]:
    """Groups a model's parameters for an optimizer.

    Args:
        model: frozen parameters are included, so that they can be trained later in the run.
        decay_norm_and_bias: whether weight decay applies to everything, as in the paper, or spares normalization
            layers and biases.

    Returns:
        One group, or two: those with weight decay and those without.
    """
    parameters = list(model.parameters())
    if decay_norm_and_bias:
        return [{"params": parameters}]
    # Scales and offsets of normalization layers and all biases are vectors; everything else is not.
    decayed = [p for p in parameters if p.ndim > 1]
    spared = [p for p in parameters if p.ndim <= 1]
    return [{"params": decayed}, {"params": spared, "weight_decay": 0.0}]


def fuse(optimizer: Optimizer) -> None:
    """Makes a step of SGD, Adam or AdamW one kernel, where the device knows one and no argument says how to step.

    Set in the groups and not given to the constructor: the constructor's makes the optimizer unscale gradients of
    float16 itself, and Lightning then cannot clip them. SGD's kernel fails where some parameters have a momentum and
    others have none yet, because they thaw later or a batch did without them: momentum begins as nothing, which makes
    the same first step, and a group with frozen parameters is not fused.
    """
    for group in optimizer.param_groups if isinstance(optimizer, SGD | Adam | AdamW) else ():
        unsaid = group["fused"] is None and group["foreach"] is None
        if not unsaid or group.get("dampening") or not all(map(_supports_fused, group["params"])):
            continue
        group["fused"] = True
        if group.get("momentum"):
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _supports_fused(parameter: nn.Parameter) -> bool:
    return parameter.requires_grad and parameter.device.type in ("cuda", "cpu") and parameter.is_floating_point()
