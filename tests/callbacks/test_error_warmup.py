"""Warm-up until the training error drops: its end, the learning rate, and resuming."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from resnet_pl.callbacks import ErrorWarmup
from resnet_pl.optim import Schedule, ScheduledLR
from resnet_pl.utils import UserError
from tests.own import PlainData
from tests.test_classifier import MemoryLogger
from tests.test_multi_label import Several
from tests.tiny import Tiny, classifier, optimizer, trainer


def warmed(errors: list[float], callback: ErrorWarmup, start: int = 0, total: int = 200) -> list[float]:
    """Returns the learning rate at each iteration, given the training errors; the schedule drops at iteration 180."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = ScheduledLR(optimizer, Schedule("step", "iterations", milestones=[180]), total, total)
    run: Any = SimpleNamespace(accumulate_grad_batches=1, is_last_batch=False, global_step=start)
    run.strategy = SimpleNamespace(reduce=lambda tensor, reduce_op: tensor)
    rates = []
    for error in errors:
        logits, labels = torch.eye(2)[[0] * 100], torch.zeros(100, dtype=torch.long)
        labels[: round(100 * error)] = 1
        batch = [torch.zeros(100, 3, 1, 1), labels]
        callback.on_train_batch_start(run, None, batch, 0)
        callback.on_before_optimizer_step(run, None, optimizer)
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
        run.global_step += 1
        callback.on_train_batch_end(run, None, {"logits": logits}, batch, 0)
    return rates


def test_it_ends_by_the_mean_of_100_iterations_and_milestones_do_not_change():
    # 50 iterations at 0.9 and 50 at 0.7 have mean 0.8, which is not below 0.8: it ends one later, at 100 + 51.
    rates = warmed([0.9] * 100 + [0.7] * 100, ErrorWarmup(factor=0.25))
    assert rates == pytest.approx([0.25] * 151 + [1] * 29 + [0.1] * 20)


def test_fewer_than_100_iterations_never_end_it():
    assert warmed([0.0] * 103, ErrorWarmup()) == pytest.approx([0.1] * 100 + [1] * 3)


def test_the_errors_are_part_of_the_state():
    errors = [0.9] * 100 + [0.7] * 30 + [0.6] * 40
    complete = warmed(errors, ErrorWarmup())
    assert complete[-1] == 1
    for stop in (0, 40, 130, 160):
        first, second = ErrorWarmup(), ErrorWarmup()
        before = warmed(errors[:stop], first)
        state = first.state_dict()
        assert state["errors"] == (None if stop == 160 else pytest.approx(errors[:stop][-100:]))
        second.load_state_dict(state)
        assert before + warmed(errors[stop:], second, stop) == complete
    assert second.state_dict()["errors"] is None  # an ended warm-up does not start again


def test_a_run_that_exceeds_max_iterations_is_aborted():
    callback = ErrorWarmup(max_iterations=120)
    warmed([0.95] * 120, callback)
    with pytest.raises(UserError, match=r"95\.00% after 120 iterations.* 80\.00%\n.*factor.*max_iterations"):
        warmed([0.95], callback, 120)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_an_iteration_is_an_optimizer_step(accumulate):
    logger, callback = MemoryLogger(), ErrorWarmup(error=0.5)
    trainer(
        max_epochs=2, log_every_n_steps=1, accumulate_grad_batches=accumulate, limit_val_batches=0, logger=logger,
        callbacks=[callback],
    ).fit(classifier(schedule=Schedule("constant"), optimizer=optimizer(lr=1e-3)), datamodule=Tiny())  # fmt: skip
    # With `log_every_n_steps=1` the logged top-1 is that of one step.
    assert callback.errors == pytest.approx([1 - value for value in logger.values("train/top1").values()])
    assert len(callback.errors) == {1: 8, 3: 4}[accumulate]
    assert logger.values("lr") == pytest.approx(dict.fromkeys(range(8 // (1 if accumulate == 1 else 2)), 1e-4))


def test_an_object_that_is_used_again_starts_a_new_warm_up():
    callback, errors = ErrorWarmup(), []
    for _ in range(2):
        trainer(limit_val_batches=0, callbacks=[callback]).fit(classifier(), datamodule=Tiny())
        errors.append(callback.errors)
    assert len(errors[0]) == 4 and errors[0] == errors[1]


def test_other_data():
    callback = ErrorWarmup()
    trainer(limit_val_batches=0, callbacks=[callback]).fit(classifier(), datamodule=PlainData())
    assert callback.errors and all(0 <= error <= 1 for error in callback.errors)


@pytest.mark.parametrize(
    ("settings", "data", "message"),
    [
        ({"lr_scheduler": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9)}, Tiny, "lr_scheduler"),
        ({}, Several, "one class per image"),
    ],
)
def test_it_is_refused_where_it_cannot_work(settings, data, message):
    run = trainer(limit_val_batches=0, callbacks=[ErrorWarmup()])
    with pytest.raises(UserError, match=message):
        run.fit(classifier(**settings), datamodule=data())
