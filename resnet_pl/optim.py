"""Optimizers with parameter groups, and learning rate schedules in epochs, iterations or fractions of the run."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelPruning
from torch import nn
from torch.optim import LBFGS, SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from typing_extensions import override

from resnet_pl.types import NonNegativeFloat, PositiveFloat, PositiveInt
from resnet_pl.utils import UserError


@dataclass
class Schedule:
    """Learning rate schedule: a factor of the optimizer's `lr`, updated after every optimizer step.

    Args:
        shape: `cosine` decays to zero at the end of the run; `step` multiplies by `factor` at each milestone; `plateau`
            multiplies by `factor` when validation top-1 has not improved for `patience` validations; `constant`.
        unit: unit of `warmup` and `milestones`; `run` means fractions of the run, from 0 to 1.
        warmup: length of the linear warm-up from zero. Milestones are unaffected by it.
        milestones: when `step` decays the learning rate.
        factor: factor of each decay of `step` and `plateau`.
        patience: number of validations without improvement after which `plateau` decays the learning rate.
    """

    shape: Literal["cosine", "step", "plateau", "constant"] = "cosine"
    unit: Literal["epochs", "iterations", "run"] = "epochs"
    warmup: NonNegativeFloat = 0
    milestones: list[NonNegativeFloat] = field(default_factory=list)
    factor: PositiveFloat = 0.1
    patience: PositiveInt = 10

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            # jsonargparse accepts null for any type.
            if value is None:
                raise ValueError(f"model.schedule.{name} is null\nremove it to use the default")


class ScheduledLR(LambdaLR):
    """Applies a `Schedule`, one step per optimizer step.

    Its state is the progress only, not the schedule: a run resumes exactly, and a run that is resumed with more epochs
    or another learning rate uses the new ones.

    Args:
        optimizer: optimizer whose groups have the base learning rates as `lr`.
        schedule: shape, warm-up and milestones.
        total_steps: optimizer steps of the run; infinite if the run has no fixed length.
        steps_per_epoch: optimizer steps per epoch; infinite for data without a length.

    Raises:
        UserError: `cosine` or the unit `run` without a fixed length, the unit `epochs` for data without a length, or
            milestones that are missing or not ascending.
    """

    STATE = ("last_epoch", "num_decays", "best", "num_bad_validations")

    def __init__(self, optimizer: Optimizer, schedule: Schedule, total_steps: float, steps_per_epoch: float) -> None:
        scale = {"epochs": steps_per_epoch, "iterations": 1, "run": total_steps}[schedule.unit]
        self.shape, self.factor, self.patience = schedule.shape, schedule.factor, schedule.patience
        self.total_steps = total_steps
        self.num_decays, self.best, self.num_bad_validations = 0, -math.inf, 0
        if (self.shape == "cosine" or schedule.unit == "run") and not math.isfinite(total_steps):
            option = "shape: cosine" if self.shape == "cosine" else "unit: run"
            raise UserError(
                f"model.schedule.{option} needs a run of fixed length\n"
                "set --trainer.max_epochs or --trainer.max_steps, or choose another schedule"
            )
        if schedule.unit == "epochs" and math.isinf(scale):
            if schedule.warmup or self.shape == "step":
                raise UserError(
                    "model.schedule.unit: epochs needs data of known length\nuse --model.schedule.unit iterations"
                )
            scale = 1  # not used, and infinity times zero is not a number
        # Rounded: 0.7 * 10 steps is 7.000000000000001 in floating point, which would decay one step late.
        self.warmup = round(schedule.warmup * scale, 6)
        self.milestones = [round(milestone * scale, 6) for milestone in schedule.milestones]
        if self.shape == "step" and (not self.milestones or self.milestones != sorted(self.milestones)):
            raise UserError(
                f"model.schedule.milestones: {schedule.milestones} must be one or more ascending numbers "
                f"({schedule.unit})\nfor example --model.schedule.milestones '[80, 120]'"
            )
        if schedule.unit == "run" and max([schedule.warmup, *schedule.milestones]) > 1:
            raise UserError(
                f"model.schedule: warmup {schedule.warmup:g} and milestones {schedule.milestones} must be fractions of "
                "the run, from 0 to 1\nset --model.schedule.unit iterations or epochs for other numbers"
            )
        super().__init__(optimizer, self.lr_factor)

    def lr_factor(self, step: int) -> float:
        """Returns the factor of the base learning rate at an optimizer step, counted from 0."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        if self.shape == "cosine":
            progress = (step - self.warmup) / max(1, self.total_steps - self.warmup)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        if self.shape == "step":
            return self.factor ** bisect_right(self.milestones, step)
        return self.factor**self.num_decays

    def update_plateau(self, top1: float) -> None:
        """Records the top-1 of a validation; `plateau` decays the learning rate if its patience is over."""
        if self.shape != "plateau":
            return
        if top1 > self.best:
            self.best, self.num_bad_validations = top1, 0
        else:
            self.num_bad_validations += 1
        if self.num_bad_validations >= self.patience:
            self.num_decays, self.num_bad_validations = self.num_decays + 1, 0
            self._set_lrs()

    @override
    def state_dict(self) -> dict[str, Any]:
        """Returns the progress as plain numbers."""
        return {name: getattr(self, name) for name in self.STATE}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the progress, and sets the learning rates of the next step."""
        self.__dict__.update({name: state_dict[name] for name in self.STATE})
        self._set_lrs()

    def _set_lrs(self) -> None:
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base * self.lr_factor(self.last_epoch)


def make_scheduler(optimizer: Optimizer, schedule: Schedule, trainer: Trainer) -> ScheduledLR:
    """Returns the schedule for the run of a Trainer.

    Raises:
        UserError: the run does not allow this schedule.
    """
    if schedule.shape == "plateau":
        check_validation("model.schedule.shape: plateau", trainer)
    total = run_steps(trainer)
    if math.isinf(trainer.num_training_batches):
        # With `max_steps` and no `max_epochs` Lightning has not counted the batches of an epoch.
        trainer.fit_loop.setup_data()
    # Lightning performs an optimizer step at the end of an epoch, even if fewer batches have been accumulated.
    steps = trainer.num_training_batches / trainer.accumulate_grad_batches
    return ScheduledLR(optimizer, schedule, total, math.inf if math.isinf(steps) else math.ceil(steps))


def run_steps(trainer: Trainer) -> float:
    """Returns the number of optimizer steps of a run; infinite if it has no fixed length."""
    total = trainer.estimated_stepping_batches
    return total if total >= 0 else math.inf  # -1 for data without a length and no `max_steps`


def check_validation(name: str, trainer: Trainer) -> None:
    """Raises UserError if there is no validation, which `name` needs."""
    data = getattr(trainer, "datamodule", None)  # Lightning sets it; its class does not declare it
    if not trainer.enable_validation or "val" not in getattr(data, "splits", {"val"}):
        raise UserError(
            f"{name} needs a validation split\nhold out images with --data.val_split, or choose another one"
        )


def make_optimizer(factory: Callable[[Any], Optimizer], model: nn.Module, decay_norm_and_bias: bool) -> Optimizer:
    """Returns the optimizer of a model, fused if possible.

    Args:
        factory: creates the optimizer for parameters, or for groups of them.
        model: see `parameter_groups`.
        decay_norm_and_bias: see `parameter_groups`.

    Raises:
        UserError: the optimizer rejects one of its arguments, or the parameters.
    """
    groups = parameter_groups(model, decay_norm_and_bias)
    try:
        # One group is passed as its parameters: a function of the user's may go over them.
        optimizer = factory(groups[0]["params"] if len(groups) == 1 else groups)
    except (TypeError, ValueError) as error:
        fix = "\nuse timm.optim.Muon, which updates vectors with AdamW" if "only supports 2D" in str(error) else ""
        raise UserError(f"model.optimizer: {error}{fix}") from error
    if not isinstance(optimizer, Optimizer):
        raise UserError(f"model.optimizer: the function returned {optimizer!r}, not a torch.optim.Optimizer")
    fuse(optimizer)
    return optimizer


def check_layout(optimizer: Optimizer, trainer: Trainer, channels_last: bool) -> None:
    """Rejects what LBFGS and ModelPruning do not work with.

    Raises:
        UserError: the weights are in channels_last format, or LBFGS would sum the gradients of its own evaluations.
    """
    callbacks = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue] - set outside its class
    for each in [optimizer, *callbacks] if channels_last else ():
        if isinstance(each, LBFGS | ModelPruning):
            name = type(each).__name__
            raise UserError(f"model.channels_last: {name} needs contiguous weights\nset --model.channels_last false")
    if isinstance(optimizer, LBFGS) and trainer.accumulate_grad_batches > 1:
        raise UserError(
            "trainer.accumulate_grad_batches: LBFGS computes the gradients several times in a step\n"
            "remove it, and raise --data.batch_size"
        )


def parameter_groups(model: nn.Module, decay_norm_and_bias: bool) -> list[dict[str, Any]]:
    """Returns parameter groups for an optimizer: one, or two, with and without weight decay.

    Args:
        model: model to optimize. Frozen parameters are included, so that they can be unfrozen during the run.
        decay_norm_and_bias: whether weight decay applies to all parameters, as in the paper, or not to those of
            normalization layers and to biases.
    """
    parameters = list(model.parameters())
    if decay_norm_and_bias:
        return [{"params": parameters}]
    # Biases, and weights and biases of normalization layers, are vectors; all other parameters have more dimensions.
    decay = [p for p in parameters if p.ndim > 1]
    no_decay = [p for p in parameters if p.ndim <= 1]
    return [{"params": decay}, {"params": no_decay, "weight_decay": 0.0}]


def fuse(optimizer: Optimizer) -> None:
    """Enables the fused implementation of SGD, Adam and AdamW, unless `fused` or `foreach` was set.

    It is set in the parameter groups, not passed to the constructor. With `fused=True` in the constructor the optimizer
    unscales float16 gradients itself, and Lightning refuses to clip gradients then.

    Fused SGD fails if only some parameters of a group have a momentum buffer, as after unfreezing, or after a step
    without gradients for some of them. Therefore all buffers are created here, as zeros: the first step is the same.
    Groups with frozen parameters are not fused.
    """
    # Not for classes that derive from these: they may have another step.
    for group in optimizer.param_groups if type(optimizer) in (SGD, Adam, AdamW) else ():
        chosen_by_user = group["fused"] is not None or group["foreach"] is not None
        if chosen_by_user or group.get("dampening") or not all(map(_supports_fused, group["params"])):
            continue
        group["fused"] = True
        if group.get("momentum"):
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _supports_fused(parameter: nn.Parameter) -> bool:
    return parameter.requires_grad and parameter.device.type in ("cuda", "cpu") and parameter.is_floating_point()
