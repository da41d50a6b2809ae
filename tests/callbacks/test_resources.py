"""A run estimates its time and memory without changing, and an out-of-memory error names a batch size that fits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LambdaCallback
from torch import Tensor, nn

from resnet_pl.callbacks import OutOfMemory, resources
from resnet_pl.callbacks.resources import run_seconds
from tests.cli.commands import BARE, refused, run
from tests.tiny import Tiny, classifier, trainer

FULL = "CUDA out of memory. Tried to allocate 2 GiB"


class Limited(nn.Sequential):
    """A network for at most `limit` images in training, and `eval_limit` in evaluation."""

    def __init__(self, limit: int = 10, eval_limit: int = 1000) -> None:
        super().__init__(
            nn.Conv2d(3, 4, 3, 4), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)
        )
        self.limit, self.eval_limit = limit, eval_limit

    def forward(self, images: Tensor) -> Tensor:
        if len(images) > (self.limit if self.training else self.eval_limit):
            raise torch.OutOfMemoryError(FULL)
        return super().forward(images)


LINE = [*BARE, "--model.backbone", f"{__name__}.Limited"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], ["--data.batch_size 64\n", "use --data.batch_size 8 --trainer.accumulate_grad_batches 8, which fits"]),
        pytest.param(
            ["--model.backbone.limit", 0],
            ["--data.batch_size 64\n", "one image does not fit", "--data.image_size"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--model.backbone.limit", 64, "--model.backbone.eval_limit", 64, "--data.eval_batch_size", 100],
            ["in the validation, with 100 images", "use --data.eval_batch_size 50"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_message_names_a_batch_size_that_fits(
    options: list[object], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(capsys, "fit", *LINE, *options)
    assert message.startswith("error: out of memory") and all(word in message for word in words), message


class Saved(Callback):
    """Records the state after an exception."""

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.state = {name: value.clone() for name, value in pl_module.state_dict().items()}


def test_trying_batch_sizes_changes_no_state() -> None:
    module, saved = classifier(backbone=Limited(5), num_classes=4), Saved()
    before = {name: value.clone() for name, value in module.backbone.state_dict().items() if "running" in name}
    with pytest.raises(torch.OutOfMemoryError) as error:
        trainer(callbacks=[OutOfMemory(), saved]).fit(module, datamodule=Tiny())
    assert "--data.batch_size 5 --trainer.accumulate_grad_batches 2" in error.value.__notes__[0]
    assert before and all(torch.equal(value, saved.state[f"backbone.{name}"]) for name, value in before.items())
    assert all(parameter.grad is None for parameter in module.parameters())


def test_a_long_epoch_is_estimated(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(resources, "SHORTEST", 0)
    monkeypatch.setattr(resources, "MEASURED", 2)
    run("fit", *LINE, "--model.backbone.limit", 64, "--trainer.max_epochs", 3)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("estimate")]
    assert len(lines) == 1 and all(word in lines[0] for word in (" per epoch, ", " for the run", " GB of memory"))


class Predicted(Callback):
    """Records the predicted batches of an epoch and of the run."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.batches = run_seconds(trainer, 1)


@pytest.mark.parametrize("accumulated", [1, 4])
def test_the_predicted_batches_are_those_of_the_run(accumulated: int) -> None:
    predicted, counted = Predicted(), []
    counter = LambdaCallback(on_train_batch_end=lambda *_: counted.append(1))
    limits = {"limit_train_batches": 5, "limit_val_batches": 0, "max_epochs": 2, "accumulate_grad_batches": accumulated}
    trainer(callbacks=[predicted, counter], **limits).fit(classifier(), datamodule=Tiny(count=100))
    assert predicted.batches == (5, len(counted)) and len(counted) == 10
