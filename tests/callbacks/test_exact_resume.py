"""A run that is stopped anywhere and resumed equals an uninterrupted one bit for bit: weights and metrics.csv."""

from __future__ import annotations

import csv
import random
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, nn

from resnet_pl.callbacks import EMA, BestCheckpoint, ErrorWarmup, GracefulStop, LastCheckpoint, MetricsCSV
from resnet_pl.data import ImageFolder
from resnet_pl.data.base import ImageDataModule
from resnet_pl.data.batch_transforms import BatchTransform
from resnet_pl.optim import Schedule
from resnet_pl.utils import UserError
from tests.conftest import write_photos
from tests.tiny import Tiny, classifier, optimizer, trainer


class Fault(Callback):
    """Raises an error at a place in a step, the first time it is reached or after `skip` times."""

    def __init__(self, place: str, step: int, error: type[BaseException] = RuntimeError, skip: int = 0) -> None:
        self.place, self.step, self.error, self.skip = place, step, error, skip

    def _raise(self, place: str, trainer: Any) -> None:
        if place == self.place and trainer.global_step == self.step:
            if not self.skip:
                raise self.error("fault")
            self.skip -= 1

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        self._raise("before the step", trainer)

    def on_before_backward(self, trainer: Any, *args: Any) -> None:
        self._raise("after the forward pass", trainer)

    def on_before_optimizer_step(self, trainer: Any, *args: Any) -> None:
        self._raise("after the backward pass", trainer)

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self._raise("after the step", trainer)

    def on_train_epoch_start(self, trainer: Any, *args: Any) -> None:
        self._raise("at an epoch's start", trainer)

    def on_validation_batch_start(self, trainer: Any, *args: Any) -> None:
        self._raise("in the validation", trainer)


def build_backbone(layers: Sequence[nn.Module] = ()) -> nn.Module:
    last = [*layers, nn.Dropout(0.5), nn.Flatten(), nn.LazyLinear(4)]
    return nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), *last)


def run(
    folder: Path,
    data: ImageDataModule,
    *callbacks: Callback,
    resume: bool = False,
    every: int | None = None,
    layers: Sequence[nn.Module] = (),
    schedule: Schedule = Schedule("step", "iterations", warmup=3, milestones=[8]),  # noqa: B008 - immutable
    **kwargs: Any,
) -> dict[str, Tensor]:
    """Trains for three epochs, or resumes, and returns the final weights."""
    path = folder / "checkpoints" / "last.ckpt"
    # After an error before the first checkpoint, the run starts again.
    ckpt_path = path if resume and path.is_file() else None
    torch.manual_seed(7)
    backbone = build_backbone(layers)
    backbone(torch.zeros(2, 3, data.image_size, data.image_size))
    module = classifier(backbone=backbone, optimizer=optimizer(lr=0.05, momentum=0.9), schedule=schedule, num_classes=4)
    torch.manual_seed(11)
    start = torch.load(ckpt_path, weights_only=True)["global_step"] if ckpt_path else 0
    settings = {"max_epochs": 3, "log_every_n_steps": 3, "enable_checkpointing": True} | kwargs
    where = path.parent
    checkpoints = [BestCheckpoint(where), LastCheckpoint(where, every_n_steps=every), GracefulStop(where)]
    trainer(callbacks=[*callbacks, *checkpoints], logger=MetricsCSV(folder, start), **settings).fit(
        module, datamodule=data, ckpt_path=ckpt_path, weights_only=True
    )
    return {name: value.clone() for name, value in module.state_dict().items()}


class Reference(NamedTuple):
    """An uninterrupted run."""

    weights: dict[str, Tensor]
    metrics: str


def check_equal(folder: Path, reference: Reference, resumed: dict[str, Tensor]) -> None:
    """Compares the run in `folder`/b with an uninterrupted one."""
    assert (folder / "b" / "metrics.csv").read_text() == reference.metrics
    assert reference.weights.keys() == resumed.keys()
    assert [name for name, value in reference.weights.items() if not torch.equal(value, resumed[name])] == []


def tiny() -> Tiny:
    # 60 training images are 6 batches per epoch.
    return Tiny(count=100)


@pytest.fixture(scope="module")
def references() -> dict[str, Reference]:
    """Uninterrupted runs by their settings: each is trained once."""
    return {}


@pytest.fixture
def reference(references: dict[str, Reference], tmp_path: Path) -> Callable[..., Reference]:
    """Returns a function that trains without interruption."""

    def trained(**kwargs: Any) -> Reference:
        if (key := repr(kwargs)) not in references:
            references[key] = Reference(
                run(tmp_path / "a", tiny(), **kwargs), (tmp_path / "a" / "metrics.csv").read_text()
            )
        return references[key]

    return trained


def check_interrupted(
    folder: Path, reference: Reference, fault: Fault, data: Callable[[], ImageDataModule], **kwargs: Any
) -> None:
    """Compares an uninterrupted run with one that is interrupted by the fault and resumed."""
    with pytest.raises(fault.error, match="fault"):
        run(folder / "b", data(), fault, **kwargs)
    check_equal(folder, reference, run(folder / "b", data(), resume=True, **kwargs))


@pytest.mark.parametrize(
    ("place", "step"),
    [
        *[("before the step", 6), ("before the step", 8)],
        *[("after the forward pass", step) for step in (6, 8, 11)],
        ("after the backward pass", 8),
        ("at an epoch's start", 6),
    ],
)
def test_an_error_in_a_step(place: str, step: int, reference: Callable[..., Reference], tmp_path: Path) -> None:
    check_interrupted(tmp_path, reference(), Fault(place, step), tiny)


@pytest.mark.parametrize("step", [8, 12])
def test_an_error_between_a_step_and_its_validation(
    step: int, reference: Callable[..., Reference], tmp_path: Path
) -> None:
    check_interrupted(tmp_path, reference(), Fault("after the step", step), tiny)


def test_an_error_in_the_first_step_saves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="fault"):
        run(tmp_path, tiny(), Fault("after the forward pass", 0))
    assert not (tmp_path / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize("step", [9, 10])
def test_an_error_next_to_a_validation_within_the_epoch(
    step: int, reference: Callable[..., Reference], tmp_path: Path
) -> None:
    twice = {"val_check_interval": 3}
    check_interrupted(tmp_path, reference(**twice), Fault("after the forward pass", step), tiny, **twice)


def test_an_error_in_a_validation(reference: Callable[..., Reference], tmp_path: Path) -> None:
    check_interrupted(tmp_path, reference(), Fault("in the validation", 12), tiny)


@pytest.mark.parametrize("fault", [("before the step", 4), ("after the forward pass", 7), ("after the step", 7)])
def test_an_error_while_gradients_are_accumulated(
    fault: Any, reference: Callable[..., Reference], tmp_path: Path
) -> None:
    # Six batches per epoch are steps of four and two, or of two batches. The error is at their first or second batch.
    for several, skipped in ((2, 0), (4, 1)):
        settings = {"accumulate_grad_batches": several, "max_epochs": 5, "log_every_n_steps": 1}
        check_interrupted(tmp_path / str(several), reference(**settings), Fault(*fault, skip=skipped), tiny, **settings)


@pytest.mark.parametrize("batch", [9, 11])
def test_stopped_while_gradients_are_accumulated(
    batch: int, reference: Callable[..., Reference], tmp_path: Path
) -> None:
    settings = {"accumulate_grad_batches": 4, "log_every_n_steps": 1}
    with pytest.raises(SIGTERMException):
        run(tmp_path / "b", tiny(), Stop(batch, "batches"), **settings)
    check_equal(tmp_path, reference(**settings), run(tmp_path / "b", tiny(), resume=True, **settings))


@pytest.mark.parametrize(("every", "several"), [(3, 1), (None, 4)])
def test_a_resumed_run_is_saved_where_it_stops_again(
    every: int | None, several: int, reference: Callable[..., Reference], tmp_path: Path
) -> None:
    settings = {"accumulate_grad_batches": several, "log_every_n_steps": 1}
    steps = []
    for batch, resume in [(8, False), (11, True), (15, True)]:
        with pytest.raises(SIGTERMException):
            run(tmp_path / "b", tiny(), Stop(batch, "batches"), resume=resume, every=every, **settings)
        steps.append(torch.load(tmp_path / "b/checkpoints/last.ckpt", weights_only=True)["global_step"])
    # Accumulated gradients are not saved: the step is completed first.
    assert steps == ([8, 11, 15] if several == 1 else [3, 4, 5])
    check_equal(tmp_path, reference(**settings), run(tmp_path / "b", tiny(), resume=True, **settings))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_interrupted_within_the_optimizer_step(
    error: type[BaseException], reference: Callable[..., Reference], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state is inconsistent: the previous checkpoint stays."""
    step, calls = torch.optim.SGD.step, []

    def interrupted_step(self: Any, closure: Any) -> None:
        calls.append(None)
        loss = step(self, closure)
        if len(calls) == 9:
            raise error("fault")
        return loss

    with monkeypatch.context() as patch, pytest.raises((RuntimeError, SystemExit)):
        patch.setattr(torch.optim.SGD, "step", interrupted_step)
        run(tmp_path / "b", tiny())
    assert torch.load(tmp_path / "b/checkpoints/last.ckpt", weights_only=True)["global_step"] == 6
    check_equal(tmp_path, reference(), run(tmp_path / "b", tiny(), resume=True))


@pytest.mark.parametrize("fault", [("after the forward pass", 8), ("in the validation", 12)])
@pytest.mark.parametrize("average", [EMAWeightAveraging, EMA])
def test_an_error_under_averaged_weights(average: Any, fault: Any, tmp_path: Path) -> None:
    weights = run(tmp_path / "a", tiny(), average(decay=0.7))
    with pytest.raises(RuntimeError, match="fault"):
        run(tmp_path / "b", tiny(), Fault(*fault), average(decay=0.7))
    resumed = run(tmp_path / "b", tiny(), average(decay=0.7), resume=True)
    check_equal(tmp_path, Reference(weights, (tmp_path / "a" / "metrics.csv").read_text()), resumed)


def test_stopped_and_stopped_again_before_a_batch(reference: Callable[..., Reference], tmp_path: Path) -> None:
    for resume in (False, True, True):
        with pytest.raises(RuntimeError, match="fault"):
            run(tmp_path / "b", tiny(), Fault("before the step", 8), resume=resume)
    check_equal(tmp_path, reference(), run(tmp_path / "b", tiny(), resume=True))


class Stop(Callback):
    """Sends SIGTERM to this process after a number of steps or batches."""

    def __init__(self, count: int, of: str = "steps") -> None:
        self.count, self.of, self.batches = count, of, 0

    def state_dict(self) -> dict[str, int]:
        return {"batches": self.batches}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.batches = state_dict["batches"]

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self.batches += 1
        if self.count == (trainer.global_step if self.of == "steps" else self.batches):
            signal.raise_signal(signal.SIGTERM)


# Steps 9 and 12 are followed by a validation: the checkpoint contains its result.
@pytest.mark.parametrize("step", [8, 9, 12])
def test_stopped_between_batches(step: int, reference: Callable[..., Reference], tmp_path: Path) -> None:
    twice = {"val_check_interval": 3}
    with pytest.raises(SIGTERMException):
        run(tmp_path / "b", tiny(), Stop(step), **twice)
    check_equal(tmp_path, reference(**twice), run(tmp_path / "b", tiny(), resume=True, **twice))


class Kill(BaseException):
    """Ends the run without saving, as if the process were killed."""


# Six batches per epoch; a checkpoint every second step and at the end of an epoch.
@pytest.mark.parametrize(
    ("step", "reached", "interval"), [(5, 4, 1.0), (9, 8, 1.0), (12, 12, 1.0), (5, 4, 4), (15, 14, 4)]
)
def test_killed_after_a_checkpoint_within_an_epoch(
    step: int, reached: int, interval: float, reference: Callable[..., Reference], tmp_path: Path
) -> None:
    settings = {"val_check_interval": interval}
    with pytest.raises(Kill, match="fault"):
        run(tmp_path / "b", tiny(), Fault("before the step", step, Kill), every=2, **settings)
    assert torch.load(tmp_path / "b/checkpoints/last.ckpt", weights_only=True)["global_step"] == reached
    check_equal(tmp_path, reference(**settings), run(tmp_path / "b", tiny(), resume=True, every=2, **settings))


@pytest.mark.parametrize("step", [4, 9])
def test_within_a_warm_up_by_training_error(step: int, tmp_path: Path, monkeypatch: Any) -> None:
    # The mean error of six iterations drops below the threshold in the second epoch.
    monkeypatch.setattr("resnet_pl.callbacks.error_warmup.ERROR_WINDOW", 6)
    settings = {"schedule": Schedule("constant"), "log_every_n_steps": 1}
    trained = run(tmp_path / "a", tiny(), ErrorWarmup(error=0.72), **settings)
    metrics = (tmp_path / "a" / "metrics.csv").read_text()
    rates = [float(row["lr"]) for row in csv.DictReader(metrics.splitlines()) if row["lr"]]
    assert sorted(set(rates)) == pytest.approx([0.005, 0.05]) and 9 < rates.index(rates[-1]) < 17
    with pytest.raises(SIGTERMException):
        run(tmp_path / "b", tiny(), ErrorWarmup(error=0.72), Stop(step), **settings)
    resumed = run(tmp_path / "b", tiny(), ErrorWarmup(error=0.72), resume=True, **settings)
    check_equal(tmp_path, Reference(trained, metrics), resumed)


# ------------------------------------------------------------------------------------ image files
@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"), classes=("ant", "bee", "cat", "dog"), count=8)


@pytest.fixture(scope="module")
def image_reference(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    folder = tmp_path_factory.mktemp("images")
    return Reference(run(folder, folder_data(photos, 0), max_epochs=2), (folder / "metrics.csv").read_text())


def folder_data(root: Path, workers: int) -> ImageFolder:
    return ImageFolder(str(root), image_size=16, batch_size=4, num_workers=workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_image_files(workers: int, photos: Path, image_reference: Reference, tmp_path: Path) -> None:
    fault = Fault("after the forward pass", 8)
    check_interrupted(tmp_path, image_reference, fault, lambda: folder_data(photos, workers), max_epochs=2)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_image_that_is_repaired(
    workers: int, photos: Path, image_reference: Reference, tmp_path: Path
) -> None:
    (data := folder_data(photos, workers)).setup("fit")
    images = data.splits["train"]
    order = data.train_dataloader().sampler.indices().tolist()
    path = images.root / images.names[order[13]]
    content = path.read_bytes()

    class Corrupt(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            path.write_bytes(b"no image")

    with pytest.raises(UserError, match=path.name):
        run(tmp_path / "b", data, Corrupt(), max_epochs=2, every=1)
    path.write_bytes(content)
    resumed = run(tmp_path / "b", folder_data(photos, workers), resume=True, max_epochs=2, every=1)
    assert (tmp_path / "b/checkpoints/last.ckpt").is_file()
    check_equal(tmp_path, image_reference, resumed)


# ------------------------------------------------------------------------------------ random numbers and sums
class Noise(nn.Module):
    """Uses all global generators, as code of a user may."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (random.random() + float(np.random.rand()) + torch.rand(())) if self.training else x


class Noisy(BatchTransform):
    def __call__(self, images: Tensor, labels: Tensor, rng: Any) -> tuple[Tensor, Tensor]:
        return images * random.random() + float(np.random.rand()) * torch.rand(()), labels


@pytest.mark.parametrize("place", ["before the step", "after the forward pass"])
def test_random_numbers_of_any_generator(place: str, tmp_path: Path) -> None:
    def noisy() -> Tiny:
        return Tiny(count=100, batch_transforms=[Noisy()])

    weights = run(tmp_path / "a", noisy(), layers=[Noise()])
    other = run(tmp_path / "other", tiny(), layers=[Noise()])
    assert not all(torch.equal(value, other[name]) for name, value in weights.items())
    trained = Reference(weights, (tmp_path / "a" / "metrics.csv").read_text())
    check_interrupted(tmp_path, trained, Fault(place, 8), noisy, layers=[Noise()])


def test_sums_that_are_not_logged_yet_are_in_the_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(SIGTERMException):
        run(tmp_path / "b", tiny(), Stop(8))
    checkpoint = torch.load(tmp_path / "b/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["callbacks"]["TrainLog"]["sums"][2] == 20  # images of the two steps since the sixth step
