"""Learning rate schedules, parameter groups and fused optimizers."""

import math
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from resnet_pl.models import cifar_resnet
from resnet_pl.optim import Schedule, ScheduledLR, fuse, parameter_groups
from resnet_pl.utils import UserError
from tests.tiny import Tiny, classifier, optimizer, trainer


def scheduled(schedule: Schedule, total: float = 10, per_epoch: float = 5, lr: float = 1.0) -> ScheduledLR:
    return ScheduledLR(torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr), schedule, total, per_epoch)


def current_lr(scheduler: ScheduledLR) -> float:
    return scheduler.optimizer.param_groups[0]["lr"]


def learning_rates(scheduler: ScheduledLR, steps: int) -> list[float]:
    lrs = []
    for _ in range(steps):
        lrs.append(current_lr(scheduler))
        scheduler.optimizer.step()
        scheduler.step()
    return lrs


def test_cosine_decays_to_zero():
    scheduler = scheduled(Schedule("cosine"), total=4)
    half = math.sqrt(0.5) / 2
    assert learning_rates(scheduler, 4) == pytest.approx([1, 0.5 + half, 0.5, 0.5 - half])
    assert current_lr(scheduler) == pytest.approx(0)
    assert learning_rates(scheduler, 3) == pytest.approx([0, 0, 0])


def test_the_schedule_of_the_paper_decays_at_32k_and_48k():
    schedule = Schedule("step", unit="iterations", milestones=[32_000, 48_000])
    scheduler = scheduled(schedule, total=64_000, per_epoch=352, lr=0.1)
    lrs = learning_rates(scheduler, 64_000)
    assert [lrs[i] for i in (0, 31_999, 32_000, 47_999, 48_000, 63_999)] == pytest.approx(
        [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    )


def test_milestones_in_epochs_can_be_fractions():
    scheduler = scheduled(Schedule("step", milestones=[1, 1.5], factor=0.5), per_epoch=4)
    assert learning_rates(scheduler, 8) == [1, 1, 1, 1, 0.5, 0.5, 0.25, 0.25]


def test_constant_needs_no_fixed_length():
    assert learning_rates(scheduled(Schedule("constant"), total=math.inf, lr=0.3), 50) == [0.3] * 50


@pytest.mark.parametrize(
    ("unit", "warmup", "warmup_lrs"),
    [
        ("iterations", 4, [0.2, 0.4, 0.6, 0.8]),
        ("epochs", 1, [1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6]),
        ("epochs", 0.5, [1 / 3.5, 2 / 3.5, 3 / 3.5]),
        ("iterations", 0, []),
    ],
)
@pytest.mark.parametrize("shape", ["constant", "cosine", "step", "plateau"])
def test_linear_warmup_then_the_shape(shape, unit, warmup, warmup_lrs):
    schedule = Schedule(shape, unit, warmup, milestones=[9] if unit == "iterations" else [1.8])
    lrs = learning_rates(scheduled(schedule, total=20), 10)
    assert lrs[: len(warmup_lrs)] == pytest.approx(warmup_lrs)
    assert lrs[len(warmup_lrs)] == pytest.approx(1, abs=0.01)
    if shape == "cosine":
        assert all(a > b for a, b in zip(lrs[len(warmup_lrs) :], lrs[len(warmup_lrs) + 1 :], strict=False))
    else:
        assert lrs[len(warmup_lrs) : 9] == [1] * (9 - len(warmup_lrs))
        assert lrs[9] == (pytest.approx(0.1) if shape == "step" else 1)


def test_plateau_decays_after_patience_validations_without_improvement():
    scheduler = scheduled(Schedule("plateau", patience=2, factor=0.5))
    lrs = []
    for top1 in (0.1, 0.5, 0.5, 0.4, 0.6, 0.6, 0.6, 0.2, 0.3):
        scheduler.update_plateau(top1)
        lrs.append(current_lr(scheduler))
        learning_rates(scheduler, 3)
    # 0.5 and 0.4 do not improve on 0.5; after a decay the count starts at zero.
    assert lrs == [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.125]


def test_other_shapes_ignore_validations():
    scheduler = scheduled(Schedule("constant", patience=1))
    for _ in range(5):
        scheduler.update_plateau(0.0)
    assert learning_rates(scheduler, 2) == [1, 1]


def test_each_parameter_group_has_its_own_learning_rate():
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 0.01)]
    scheduler = ScheduledLR(torch.optim.SGD(groups, 0.1), Schedule("step", "iterations", milestones=[1]), 2, 1)
    learning_rates(scheduler, 1)
    assert [group["lr"] for group in scheduler.optimizer.param_groups] == pytest.approx([0.1, 0.001])


# ------------------------------------------------------------------------------------ state


@pytest.mark.parametrize("stop", [0, 2, 5, 7])
@pytest.mark.parametrize(
    "schedule",
    [
        Schedule("cosine", warmup=0.6),
        Schedule("step", "iterations", 3, milestones=[5, 7]),
        Schedule("plateau", "iterations", 1, patience=1),
    ],
    ids=lambda schedule: schedule.shape,
)
def test_a_restored_schedule_resumes_exactly(schedule, stop):
    def train(scheduler: ScheduledLR, start: int, end: int) -> list[float]:
        lrs = []
        for step in range(start, end):
            lrs += learning_rates(scheduler, 1)
            if step % 2:
                scheduler.update_plateau(0.5)
        return lrs

    uninterrupted = train(scheduled(schedule), 0, 10)
    first = scheduled(schedule)
    before = train(first, 0, stop)
    second = scheduled(schedule)
    second.load_state_dict(first.state_dict())
    assert before + train(second, stop, 10) == uninterrupted


def test_the_state_dict_is_plain_progress():
    state = scheduled(Schedule("plateau")).state_dict()
    assert all(isinstance(value, int | float) for value in state.values())
    assert set(state) == {"last_epoch", "num_decays", "best", "num_bad_validations"}


def test_resuming_with_more_epochs_stretches_the_cosine():
    short, long = scheduled(Schedule("cosine"), total=4), scheduled(Schedule("cosine"), total=8)
    learning_rates(short, 4)
    uninterrupted = learning_rates(scheduled(Schedule("cosine"), total=8), 8)
    long.load_state_dict(short.state_dict())
    assert learning_rates(long, 4) == uninterrupted[4:]


def test_resuming_with_another_learning_rate_uses_it_from_the_first_step():
    old, new = scheduled(Schedule("constant"), lr=1), scheduled(Schedule("constant"), lr=0.25)
    learning_rates(old, 3)
    new.optimizer.load_state_dict(old.optimizer.state_dict())  # as Lightning does before it restores the schedule
    new.load_state_dict(old.state_dict())
    assert learning_rates(new, 2) == [0.25, 0.25]
    assert new.get_last_lr() == [0.25]


# ------------------------------------------------------------------------------------ errors


def test_cosine_needs_a_fixed_length():
    with pytest.raises(UserError, match=r"trainer\.max_epochs") as error:
        scheduled(Schedule("cosine"), total=math.inf)
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize("milestones", [[], [3, 2]])
def test_milestones_must_be_given_and_ascending(milestones):
    with pytest.raises(UserError, match=r"model\.schedule\.milestones") as error:
        scheduled(Schedule("step", milestones=milestones))
    assert str(milestones) in str(error.value)
    assert "epochs" in str(error.value)


# ------------------------------------------------------------------------------------ in a run


class LearningRateRecorder(Callback):
    """Records the learning rate of each training batch."""

    def __init__(self) -> None:
        self.lrs: list[float] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.lrs.append(trainer.optimizers[0].param_groups[0]["lr"])


def fit(schedule: Schedule, ckpt_path: Any = None, data: Tiny | None = None, **kwargs: Any) -> tuple[list[float], Any]:
    seen = LearningRateRecorder()
    settings = {"callbacks": [seen], "limit_val_batches": 0} | kwargs
    run = trainer(**settings)
    module = classifier(schedule=schedule, optimizer=optimizer(lr=1.0))
    run.fit(module, datamodule=data or Tiny(), ckpt_path=ckpt_path)
    return seen.lrs, run


def test_the_length_of_the_run_is_that_of_the_trainer():
    assert fit(Schedule("cosine"), max_epochs=2)[0] == pytest.approx(
        [0.5 * (1 + math.cos(math.pi * step / 8)) for step in range(8)]
    )
    assert fit(Schedule("cosine"), max_steps=3)[0] == pytest.approx([1, 0.75, 0.25])


def test_accumulated_batches_have_the_same_learning_rate():
    # Four batches are steps of three and of one batch: Lightning performs a step at the end of an epoch.
    schedule = Schedule("constant", "iterations", warmup=3)
    lrs, run = fit(schedule, max_epochs=2, accumulate_grad_batches=3)
    assert run.global_step == 4
    assert lrs == pytest.approx([0.25] * 3 + [0.5] + [0.75] * 3 + [1])


def test_epochs_include_the_last_step_with_fewer_accumulated_batches():
    lrs, _ = fit(Schedule("step", milestones=[2]), max_epochs=3, accumulate_grad_batches=3)
    assert lrs == pytest.approx([1] * 8 + [0.1] * 4)


def test_epochs_with_max_steps_only():
    lrs, _ = fit(Schedule("constant", warmup=1), max_epochs=-1, max_steps=6)
    assert lrs == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])


def test_plateau_decays_at_the_first_batch_after_a_validation():
    # Without BatchNorm and with a tiny learning rate, no validation is better than the first.
    seen, model = LearningRateRecorder(), nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    run = trainer(callbacks=[seen], max_epochs=4, limit_train_batches=2)
    schedule = Schedule("plateau", patience=2)
    run.fit(classifier(backbone=model, schedule=schedule, optimizer=optimizer(lr=1e-12)), datamodule=Tiny())
    assert [lrs / 1e-12 for lrs in seen.lrs] == pytest.approx([1] * 6 + [0.1] * 2)


def test_an_interrupted_run_resumes_with_the_same_learning_rates(tmp_path):
    schedule = Schedule("cosine", "iterations", warmup=2)
    uninterrupted, _ = fit(schedule, max_epochs=3)
    before, run = fit(
        schedule, max_epochs=3, limit_train_batches=4, callbacks=[seen := LearningRateRecorder(), StopAfter(1)]
    )
    assert before == []
    run.save_checkpoint(tmp_path / "a.ckpt")
    after, _ = fit(schedule, tmp_path / "a.ckpt", max_epochs=3)
    assert seen.lrs + after == uninterrupted


class StopAfter(Callback):
    """Stops the run after a number of epochs."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        trainer.should_stop = trainer.current_epoch + 1 >= self.epochs


@pytest.mark.parametrize(("accumulate", "expected"), [(1, 0.5), (2, 1.0), (4, 2.0)])
def test_the_learning_rate_is_scaled_with_the_effective_batch_size(accumulate, expected):
    module = classifier(base_batch_size=20, schedule=Schedule("constant"), optimizer=optimizer(lr=1.0))
    run = trainer(accumulate_grad_batches=accumulate, callbacks=[seen := LearningRateRecorder()], limit_val_batches=0)
    run.fit(module, datamodule=Tiny())
    assert module.effective_batch_size == 10 * accumulate
    assert seen.lrs == [expected] * 4


def test_an_argument_that_the_optimizer_rejects_is_a_user_error():
    module = classifier(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=-0.1))
    with pytest.raises(UserError, match=r"model\.optimizer: Invalid learning rate: -0\.1"):
        trainer().fit(module, datamodule=Tiny())


@pytest.mark.parametrize("name", ["shape", "unit", "warmup", "milestones", "factor", "patience"])
def test_null_in_the_schedule_is_refused(name):
    with pytest.raises(ValueError, match=rf"model\.schedule\.{name} is null"):
        Schedule(**{name: None})


# ------------------------------------------------------------------------------------ parameter groups


def test_weight_decay_for_all_parameters_is_one_group():
    model = cifar_resnet(8)
    [group] = parameter_groups(model, decay_norm_and_bias=True)
    assert group["params"] == list(model.parameters())
    assert "weight_decay" not in group


def test_no_weight_decay_for_norms_and_biases():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    groups = parameter_groups(model, decay_norm_and_bias=False)
    optimizer = torch.optim.SGD(groups, 0.1, weight_decay=0.5)
    named = {id(parameter): name for name, parameter in model.named_parameters()}
    decays = {named[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays == {
        "0.weight": 0.5, "3.weight": 0.5, "0.bias": 0, "1.weight": 0, "1.bias": 0, "3.bias": 0,
    }  # fmt: skip


def test_frozen_parameters_are_in_the_groups():
    model = cifar_resnet(8).requires_grad_(False)
    for decay in (True, False):
        assert sum(len(group["params"]) for group in parameter_groups(model, decay)) == len(list(model.parameters()))


# ------------------------------------------------------------------------------------ fused optimizers


@pytest.mark.parametrize(
    ("optimizer_class", "arguments", "fused"),
    [
        (torch.optim.SGD, {}, True),
        (torch.optim.Adam, {}, True),
        (torch.optim.AdamW, {}, True),
        (torch.optim.SGD, {"fused": False}, False),
        (torch.optim.SGD, {"foreach": True}, None),
        # Its constructor has created the step count where the fused kernel cannot use it.
        (torch.optim.Adagrad, {}, None),
        (torch.optim.Adadelta, {}, "no such option"),
    ],
)
def test_the_fused_implementation_is_enabled(optimizer_class, arguments, fused):
    optimizer = optimizer_class([nn.Parameter(torch.zeros(3))], lr=0.1, **arguments)
    fuse(optimizer)
    assert optimizer.param_groups[0].get("fused", "no such option") is fused


def test_a_device_without_fused_kernels():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(3, device="meta"))], lr=0.1)
    fuse(optimizer)
    assert optimizer.param_groups[0]["fused"] is None


@pytest.mark.parametrize(
    ("optimizer_class", "arguments"),
    [(torch.optim.SGD, {"momentum": 0.9, "nesterov": True}), (torch.optim.SGD, {}), (torch.optim.AdamW, {})],
)
def test_fused_steps_give_the_same_weights(optimizer_class, arguments):
    weights = []
    for fused in (False, True):
        parameters = [nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4) + shift) for shift in (0, 0.5)]
        optimizer = optimizer_class(parameters, lr=0.1, weight_decay=0.1, **arguments)
        if fused:
            fuse(optimizer)
        for power in (1, 2, 3):
            optimizer.zero_grad()
            # The first batch has no gradient for the second parameter.
            sum((parameter**power).sum() for parameter in parameters[: 1 if power == 1 else 2]).backward()
            optimizer.step()
        assert bool(optimizer.param_groups[0]["fused"]) is fused
        weights.append(torch.cat(parameters).detach())
    assert torch.allclose(*weights, rtol=1e-5, atol=1e-7)


def test_a_group_with_frozen_parameters_is_not_fused():
    frozen = nn.Parameter(torch.zeros(3), requires_grad=False)
    for sgd in (
        torch.optim.SGD([nn.Parameter(torch.zeros(3)), frozen], lr=0.1, momentum=0.9),
        torch.optim.SGD([nn.Parameter(torch.zeros(3))], lr=0.1, momentum=0.9, dampening=0.1),
    ):
        fuse(sgd)
        assert sgd.param_groups[0]["fused"] is None and not sgd.state


# ------------------------------------------------------------------------------------ fractions of the run


@pytest.mark.parametrize("total", [10, 64_000, 16_000, 351, 7])
def test_milestones_as_fractions_of_the_run_are_exact(total):
    fractions = [0.1, 0.29, 0.5, 0.7, 0.75]
    schedule = scheduled(Schedule("step", "run", milestones=fractions, factor=0.5), total=total)
    decays = [step for step in range(1, total + 1) if schedule.lr_factor(step) < schedule.lr_factor(step - 1)]
    # The first step at or after the milestone, in integer arithmetic.
    expected = sorted({-(-round(fraction * 100) * total // 100) for fraction in fractions})
    assert decays == expected


def test_warmup_as_a_fraction_of_the_run():
    assert learning_rates(scheduled(Schedule("constant", "run", warmup=0.4), total=10), 6) == pytest.approx(
        [0.2, 0.4, 0.6, 0.8, 1, 1]
    )


def test_fractions_need_a_fixed_length():
    with pytest.raises(UserError, match=r"model\.schedule\.unit: run.*\n.*--trainer\.max_steps"):
        scheduled(Schedule("step", "run", milestones=[0.5]), total=math.inf)


def test_fractions_above_one_are_refused():
    with pytest.raises(UserError, match=r"\[32000.*\].* from 0 to 1\n.*unit iterations"):
        scheduled(Schedule("step", "run", milestones=[32_000]))


def test_plateau_needs_a_validation_split():
    with pytest.raises(UserError, match=r"plateau.*\n.*data\.val_split"):
        fit(Schedule("plateau"), data=Tiny(val_split=0))
