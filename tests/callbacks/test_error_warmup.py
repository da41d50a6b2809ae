"""The warm-up that ends by training error: when it ends, what it does to the rate, and where it resumes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from resnet_pl.callbacks import ErrorWarmup
from resnet_pl.optim import Schedule, ScheduledLR
from resnet_pl.utils import UserError
from tests.test_classifier import Kept
from tests.tiny import Tiny, classifier, optimizer, trainer


def warmed(errors: list[float], callback: ErrorWarmup, start: int = 0, total: int = 200) -> list[float]:
    """The rate of every iteration that has such a training error, under a schedule that falls at iteration 180."""
    held = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = ScheduledLR(held, Schedule("step", "iterations", milestones=[180]), total, total)
    run: Any = SimpleNamespace(accumulate_grad_batches=1, is_last_batch=False, global_step=start)
    run.strategy = SimpleNamespace(reduce=lambda tensor, reduce_op: tensor)
    found = []
    for error in errors:
        logits, labels = torch.eye(2)[[0] * 100], torch.zeros(100, dtype=torch.long)
        labels[: round(100 * error)] = 1
        batch = SimpleNamespace(labels=labels)
        callback.on_train_batch_start(run, None, batch, 0)
        callback.on_before_optimizer_step(run, None, held)
        found.append(held.param_groups[0]["lr"])
        held.step()
        schedule.step()
        run.global_step += 1
        callback.on_train_batch_end(run, None, {"logits": logits}, batch, 0)
    return found


def test_it_ends_by_the_mean_of_a_hundred_and_falls_stay_where_they_are():
    # Half at 0.9 and half at 0.7 are 0.8, which is not below it: one more of these it takes, at iteration 100 + 51.
    found = warmed([0.9] * 100 + [0.7] * 100, ErrorWarmup(factor=0.25))
    assert found == pytest.approx([0.25] * 151 + [1] * 29 + [0.1] * 20)


def test_fewer_than_a_hundred_never_end_it():
    assert warmed([0.0] * 103, ErrorWarmup()) == pytest.approx([0.1] * 100 + [1] * 3)


def test_it_is_in_the_state_until_it_ends():
    errors = [0.9] * 100 + [0.7] * 30 + [0.6] * 40
    whole = warmed(errors, ErrorWarmup())
    assert whole[-1] == 1
    for stop in (0, 40, 130, 160):
        first, second = ErrorWarmup(), ErrorWarmup()
        before = warmed(errors[:stop], first)
        state = first.state_dict()
        assert state["errors"] == (None if stop == 160 else pytest.approx(errors[:stop][-100:]))
        second.load_state_dict(state)
        assert before + warmed(errors[stop:], second, stop) == whole
    assert second.state_dict()["errors"] is None  # once ended it does not begin again


def test_one_that_takes_too_long_stops_the_run():
    callback = ErrorWarmup(max_iterations=120)
    warmed([0.95] * 120, callback)
    with pytest.raises(UserError, match=r"95\.00% after 120 iterations.* 80\.00%\n.*factor.*max_iterations"):
        warmed([0.95], callback, 120)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_in_a_run_an_iteration_is_a_step_of_the_optimizer(accumulate):
    kept, callback = Kept(), ErrorWarmup(error=0.5)
    trainer(
        max_epochs=2, log_every_n_steps=1, accumulate_grad_batches=accumulate, limit_val_batches=0, logger=kept,
        callbacks=[callback],
    ).fit(classifier(schedule=Schedule("constant"), optimizer=optimizer(lr=1e-3)), datamodule=Tiny())  # fmt: skip
    # With log_every_n_steps 1 the logged top-1 is that of one step.
    assert callback.errors == pytest.approx([1 - value for value in kept.values("train/top1").values()])
    assert len(callback.errors) == {1: 8, 3: 4}[accumulate]
    assert kept.values("lr") == pytest.approx(dict.fromkeys(range(8 // (1 if accumulate == 1 else 2)), 1e-4))
