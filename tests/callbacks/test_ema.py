"""The average of the weights of a short run is close to the weights, and both are validated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from resnet_pl.callbacks import EMA, LastCheckpoint
from resnet_pl.utils import UserError
from tests.cli.commands import PROJECT, SMALL, rows, run
from tests.test_multi_label import Several
from tests.tiny import Tiny, classifier, optimizer, trainer

RECIPE = ["--config", PROJECT / "configs/recipes/ema.yaml"]


class Recorder(Callback):
    """Records a weight after each step."""

    def __init__(self) -> None:
        self.weights: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.weights.append(pl_module.backbone.fc.weight.detach().clone())


def test_the_decay_grows_with_the_number_of_steps_up_to_its_limit() -> None:
    module, recorder = classifier(optimizer=optimizer(lr=0.1)), Recorder()
    trainer(callbacks=[EMA(0.4), recorder], limit_val_batches=0, max_epochs=2).fit(module, datamodule=Tiny())
    average = recorder.weights[0]
    for step, weight in enumerate(recorder.weights[1:], 1):
        decay = min(0.4, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weight
    assert len(recorder.weights) == 8 and not torch.equal(recorder.weights[-1], average)
    torch.testing.assert_close(module.backbone.fc.weight.detach(), average)


def test_an_object_that_is_used_again_starts_a_new_average() -> None:
    ema, modules = EMA(0.4), [classifier(optimizer=optimizer(lr=0.1)) for _ in range(2)]
    for module in modules:
        trainer(callbacks=[ema], limit_val_batches=0).fit(module, datamodule=Tiny())
    first, second = (module.backbone.fc.weight for module in modules)
    assert torch.equal(first, second)


def test_the_module_has_the_thresholds_of_the_last_validation(tmp_path: Path) -> None:
    module = classifier()
    callbacks = [EMA(), LastCheckpoint(tmp_path)]
    trainer(callbacks=callbacks, enable_checkpointing=True).fit(module, datamodule=Several())
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["resnet_pl"]["thresholds"]
    assert module.thresholds is not None and module.thresholds.tolist() == pytest.approx(saved)
    assert saved != [0.5] * 3


def test_a_short_run_validates_the_average_and_the_weights_that_are_trained() -> None:
    run("fit", *SMALL, "--name", "plain")
    run("fit", *SMALL, *RECIPE, "--name", "ema")
    plain = torch.load("runs/plain/version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    ema = torch.load("runs/ema/version_0/checkpoints/last.ckpt", weights_only=True)
    assert all(torch.equal(value, ema["current_model_state"][name]) for name, value in plain.items())

    def column(name: str, key: str) -> list[float]:
        return [float(row[key]) for row in rows(Path("runs") / name / "version_0") if row[key]]

    assert column("ema", "val/top1_raw") == column("plain", "val/top1")
    assert column("ema", "val/top1") != column("plain", "val/top1")
    # With a decay of 0.999 from the first step, 99 % of the average would be the weights after that step.
    name = "backbone.fc.weight"
    assert (ema["state_dict"][name] - plain[name]).norm() < 0.5 * plain[name].norm()


def test_a_late_start_of_lightnings_average_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    late = ["--trainer.callbacks+=EMAWeightAveraging", "--trainer.callbacks.update_starting_at_step", "3"]
    run("fit", *SMALL, *late, "--trainer.fast_dev_run", "true")
    out = capsys.readouterr().out
    assert "update_starting_at_step 3" in out and "initial weights" in out and "--trainer.callbacks+=EMA" in out


def test_a_test_after_the_training_uses_the_average(tmp_path: Path) -> None:
    module, data = classifier(optimizer=optimizer(lr=0.5)), Tiny()
    run = trainer(callbacks=[EMA(), LastCheckpoint(tmp_path)], enable_checkpointing=True)
    run.fit(module, datamodule=data)
    averaged = {name: value.clone() for name, value in module.state_dict().items()}
    run.test(module, datamodule=data, ckpt_path=str(tmp_path / "last.ckpt"), weights_only=True)
    assert all(torch.equal(value, averaged[name]) for name, value in module.state_dict().items())


def test_other_precisions() -> None:
    module = classifier()
    trainer(callbacks=[EMA()], precision="bf16-true", limit_train_batches=2).fit(module, datamodule=Tiny())
    assert all(value.isfinite().all() for value in module.state_dict().values())
    with pytest.raises(UserError, match="EMA averages in float32"):
        trainer(callbacks=[EMA()], precision="64-true").fit(classifier(), datamodule=Tiny())
