"""A run that is stopped anywhere and goes on is bitwise the run that was never stopped: weights and metrics.csv."""

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

from resnet_pl.callbacks import BestCheckpoint, ErrorWarmup, GracefulStop, LastCheckpoint, MetricsCSV
from resnet_pl.data import ImageFolder
from resnet_pl.data.base import ImageDataModule
from resnet_pl.data.batch_transforms import BatchTransform
from resnet_pl.optim import Schedule
from resnet_pl.utils import UserError
from tests.conftest import write_photos
from tests.tiny import Tiny, classifier, optimizer, trainer


class Fault(Callback):
    """Raises an error at a place in a step, the first time that it is reached or after some times."""

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


def net(layers: Sequence[nn.Module] = ()) -> nn.Module:
    last = [*layers, nn.Dropout(0.5), nn.Flatten(), nn.LazyLinear(4)]
    return nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), *last)


def run(
    folder: Path,
    data: ImageDataModule,
    *callbacks: Callback,
    resume: bool = False,
    every: int | None = None,
    layers: Sequence[nn.Module] = (),
    schedule: Schedule = Schedule("step", "iterations", warmup=3, milestones=[8]),  # noqa: B008 - never changed
    **kwargs: Any,
) -> dict[str, Tensor]:
    """Trains for three epochs; returns the last state of the weights."""
    path = folder / "checkpoints" / "last.ckpt"
    # An error before the first file leaves nothing to resume from: the run starts again.
    path = path if resume and path.is_file() else None
    torch.manual_seed(7)
    model = net(layers)
    model(torch.zeros(2, 3, data.image_size, data.image_size))
    module = classifier(backbone=model, optimizer=optimizer(lr=0.05, momentum=0.9), schedule=schedule, num_classes=4)
    torch.manual_seed(11)
    start = torch.load(path, weights_only=True)["global_step"] if path else 0
    settings = {"max_epochs": 3, "log_every_n_steps": 3, "enable_checkpointing": True} | kwargs
    files = folder / "checkpoints"
    saving = [BestCheckpoint(files), LastCheckpoint(files, every_n_steps=every), GracefulStop(files)]
    trainer(callbacks=[*callbacks, *saving], logger=MetricsCSV(folder, start), **settings).fit(
        module, datamodule=data, ckpt_path=path, weights_only=True
    )
    return {name: value.clone() for name, value in module.state_dict().items()}


class Whole(NamedTuple):
    weights: dict[str, Tensor]
    metrics: str


def same(folder: Path, whole: Whole, resumed: dict[str, Tensor]) -> None:
    assert (folder / "b" / "metrics.csv").read_text() == whole.metrics
    assert whole.weights.keys() == resumed.keys()
    assert [name for name, value in whole.weights.items() if not torch.equal(value, resumed[name])] == []


def tiny() -> Tiny:
    # 60 training images are 6 batches an epoch.
    return Tiny(count=100)


@pytest.fixture(scope="module")
def wholes() -> dict[str, tuple[str, dict[str, Tensor]]]:
    """metrics.csv and weights of runs that were never stopped, by their settings: each is trained once."""
    return {}


@pytest.fixture
def whole(wholes: dict[str, Any], tmp_path: Path) -> Callable[..., Whole]:
    """The run on tiny data that was never stopped."""

    def trained(**kwargs: Any) -> Whole:
        if (key := repr(kwargs)) not in wholes:
            wholes[key] = Whole(run(tmp_path / "a", tiny(), **kwargs), (tmp_path / "a" / "metrics.csv").read_text())
        return wholes[key]

    return trained


def interrupted(folder: Path, whole: Whole, fault: Fault, data: Callable[[], ImageDataModule], **kwargs: Any) -> None:
    """Compares a run with one that the fault breaks off and that goes on."""
    with pytest.raises(fault.error, match="fault"):
        run(folder / "b", data(), fault, **kwargs)
    same(folder, whole, run(folder / "b", data(), resume=True, **kwargs))


@pytest.mark.parametrize(
    ("place", "step"),
    [
        *[("before the step", 6), ("before the step", 8)],
        *[("after the forward pass", step) for step in (6, 8, 11)],
        ("after the backward pass", 8),
        ("at an epoch's start", 6),
    ],
)
def test_an_error_in_a_step(place: str, step: int, whole: Callable[..., Whole], tmp_path: Path) -> None:
    interrupted(tmp_path, whole(), Fault(place, step), tiny)


@pytest.mark.parametrize("step", [8, 12])
def test_an_error_between_a_step_and_its_validation(step: int, whole: Callable[..., Whole], tmp_path: Path) -> None:
    interrupted(tmp_path, whole(), Fault("after the step", step), tiny)


def test_an_error_in_the_first_step_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="fault"):
        run(tmp_path, tiny(), Fault("after the forward pass", 0))
    assert not (tmp_path / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize("step", [3, 4])
def test_an_error_beside_a_validation_within_the_epoch(step: int, whole: Callable[..., Whole], tmp_path: Path) -> None:
    twice = {"val_check_interval": 3}
    interrupted(tmp_path, whole(**twice), Fault("after the forward pass", step), tiny, **twice)


def test_an_error_in_a_validation(whole: Callable[..., Whole], tmp_path: Path) -> None:
    interrupted(tmp_path, whole(), Fault("in the validation", 12), tiny)


@pytest.mark.parametrize("fault", [("before the step", 4), ("after the forward pass", 7), ("after the step", 7)])
def test_an_error_among_accumulated_batches(fault: Any, whole: Callable[..., Whole], tmp_path: Path) -> None:
    # Six batches are steps of four and two, or of two; the error comes at the first or the second of them.
    for several in (2, 4):
        settings = {"accumulate_grad_batches": several, "max_epochs": 5, "log_every_n_steps": 1}
        for skipped in (0, 1):
            folder = tmp_path / f"{several} {skipped}"
            interrupted(folder, whole(**settings), Fault(*fault, skip=skipped), tiny, **settings)


@pytest.mark.parametrize("batch", [8, 9, 10, 11])
def test_stopped_among_accumulated_batches(batch: int, whole: Callable[..., Whole], tmp_path: Path) -> None:
    settings = {"accumulate_grad_batches": 4, "log_every_n_steps": 1}
    with pytest.raises(SIGTERMException):
        run(tmp_path / "b", tiny(), Stop(batch, "batches"), **settings)
    same(tmp_path, whole(**settings), run(tmp_path / "b", tiny(), resume=True, **settings))


@pytest.mark.parametrize(("every", "several"), [(3, 1), (None, 4)])
def test_a_run_that_went_on_is_kept_where_it_stops_again(
    every: int | None, several: int, whole: Callable[..., Whole], tmp_path: Path
) -> None:
    settings = {"accumulate_grad_batches": several, "log_every_n_steps": 1}
    kept = []
    for batch, resume in [(8, False), (11, True), (15, True)]:
        with pytest.raises(SIGTERMException):
            run(tmp_path / "b", tiny(), Stop(batch, "batches"), resume=resume, every=every, **settings)
        kept.append(torch.load(tmp_path / "b/checkpoints/last.ckpt", weights_only=True)["global_step"])
    # Gradients of half a step are not saved: the step is made first.
    assert kept == ([8, 11, 15] if several == 1 else [3, 4, 5])
    same(tmp_path, whole(**settings), run(tmp_path / "b", tiny(), resume=True, **settings))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_broken_off_within_the_optimiser(
    error: type[BaseException], whole: Callable[..., Whole], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some of the weights are changed: the file from before stays."""
    step, calls = torch.optim.SGD.step, []

    def breaks(self: Any, closure: Any) -> None:
        calls.append(None)
        loss = step(self, closure)
        if len(calls) == 9:
            raise error("fault")
        return loss

    with monkeypatch.context() as patch, pytest.raises((RuntimeError, SystemExit)):
        patch.setattr(torch.optim.SGD, "step", breaks)
        run(tmp_path / "b", tiny())
    assert torch.load(tmp_path / "b/checkpoints/last.ckpt", weights_only=True)["global_step"] == 6
    same(tmp_path, whole(), run(tmp_path / "b", tiny(), resume=True))


@pytest.mark.parametrize("fault", [("after the forward pass", 8), ("in the validation", 12)])
def test_an_error_under_averaged_weights(fault: Any, tmp_path: Path) -> None:
    weights = run(tmp_path / "a", tiny(), EMAWeightAveraging(decay=0.7))
    with pytest.raises(RuntimeError, match="fault"):
        run(tmp_path / "b", tiny(), Fault(*fault), EMAWeightAveraging(decay=0.7))
    resumed = run(tmp_path / "b", tiny(), EMAWeightAveraging(decay=0.7), resume=True)
    same(tmp_path, Whole(weights, (tmp_path / "a" / "metrics.csv").read_text()), resumed)


def test_stopped_and_stopped_again_before_a_batch(whole: Callable[..., Whole], tmp_path: Path) -> None:
    for resume in (False, True, True):
        with pytest.raises(RuntimeError, match="fault"):
            run(tmp_path / "b", tiny(), Fault("before the step", 8), resume=resume)
    same(tmp_path, whole(), run(tmp_path / "b", tiny(), resume=True))


class Stop(Callback):
    """Sends SIGTERM to this process after so many steps or batches."""

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


# The last two have a validation after them: the state is saved with its result.
@pytest.mark.parametrize("step", [8, 9, 12])
def test_stopped_between_batches(step: int, whole: Callable[..., Whole], tmp_path: Path) -> None:
    twice = {"val_check_interval": 3}
    with pytest.raises(SIGTERMException):
        run(tmp_path / "b", tiny(), Stop(step), **twice)
    same(tmp_path, whole(**twice), run(tmp_path / "b", tiny(), resume=True, **twice))


class Kill(BaseException):
    """The end of a process that can write nothing any more."""


# Six batches an epoch, written each second step and at the end.
@pytest.mark.parametrize(
    ("step", "reached", "interval"), [(5, 4, 1.0), (9, 8, 1.0), (12, 12, 1.0), (5, 4, 4), (15, 14, 4)]
)
def test_killed_after_a_file_in_the_middle_of_an_epoch(
    step: int, reached: int, interval: float, whole: Callable[..., Whole], tmp_path: Path
) -> None:
    settings = {"val_check_interval": interval}
    with pytest.raises(Kill, match="fault"):
        run(tmp_path / "b", tiny(), Fault("before the step", step, Kill), every=2, **settings)
    assert torch.load(tmp_path / "b/checkpoints/last.ckpt", weights_only=True)["global_step"] == reached
    same(tmp_path, whole(**settings), run(tmp_path / "b", tiny(), resume=True, every=2, **settings))


@pytest.mark.parametrize("step", [4, 9])
def test_in_the_middle_of_a_warm_up_by_training_error(step: int, tmp_path: Path, monkeypatch: Any) -> None:
    # Of these six iterations' errors the mean falls below the threshold in the second epoch.
    monkeypatch.setattr("resnet_pl.callbacks.error_warmup.ERROR_WINDOW", 6)
    settings = {"schedule": Schedule("constant"), "log_every_n_steps": 1}
    trained = run(tmp_path / "a", tiny(), ErrorWarmup(error=0.72), **settings)
    metrics = (tmp_path / "a" / "metrics.csv").read_text()
    rates = [float(row["lr"]) for row in csv.DictReader(metrics.splitlines()) if row["lr"]]
    assert sorted(set(rates)) == pytest.approx([0.005, 0.05]) and 9 < rates.index(rates[-1]) < 17
    with pytest.raises(SIGTERMException):
        run(tmp_path / "b", tiny(), ErrorWarmup(error=0.72), Stop(step), **settings)
    resumed = run(tmp_path / "b", tiny(), ErrorWarmup(error=0.72), resume=True, **settings)
    same(tmp_path, Whole(trained, metrics), resumed)


# ------------------------------------------------------------------------------------ photos
@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"), classes=("ant", "bee", "cat", "dog"), count=8)


@pytest.fixture(scope="module")
def whole_of_photos(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    return Whole(run(folder, folder_data(photos, 0), max_epochs=2), (folder / "metrics.csv").read_text())


def folder_data(root: Path, workers: int) -> ImageFolder:
    return ImageFolder(str(root), image_size=16, batch_size=4, num_workers=workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_photos(workers: int, photos: Path, whole_of_photos: Whole, tmp_path: Path) -> None:
    fault = Fault("after the forward pass", 8)
    interrupted(tmp_path, whole_of_photos, fault, lambda: folder_data(photos, workers), max_epochs=2)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_photo_that_was_repaired(workers: int, photos: Path, whole_of_photos: Whole, tmp_path: Path) -> None:
    (data := folder_data(photos, workers)).setup("fit")
    images = data.splits["train"]
    order = data.train_dataloader().sampler.indices().tolist()
    path = images.root / images.names[order[13]]
    content = path.read_bytes()

    class Spoil(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            path.write_bytes(b"no image")

    with pytest.raises(UserError, match=path.name):
        run(tmp_path / "b", data, Spoil(), max_epochs=2)
    path.write_bytes(content)
    same(tmp_path, whole_of_photos, run(tmp_path / "b", folder_data(photos, workers), resume=True, max_epochs=2))


# ------------------------------------------------------------------------------------ what is drawn
class Noise(nn.Module):
    """Draws as a user's code may, from any generator."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (random.random() + float(np.random.rand()) + torch.rand(())) if self.training else x


class Noisy(BatchTransform):
    def __call__(self, images: Tensor, labels: Tensor, draws: Any) -> tuple[Tensor, Tensor]:
        return images * random.random() + float(np.random.rand()) * torch.rand(()), labels


@pytest.mark.parametrize("place", ["before the step", "after the forward pass"])
def test_draws_from_any_generator(place: str, tmp_path: Path) -> None:
    def noisy() -> Tiny:
        return Tiny(count=100, batch_transforms=[Noisy()])

    weights = run(tmp_path / "a", noisy(), layers=[Noise()])
    other = run(tmp_path / "other", tiny(), layers=[Noise()])
    assert not all(torch.equal(value, other[name]) for name, value in weights.items())
    trained = Whole(weights, (tmp_path / "a" / "metrics.csv").read_text())
    interrupted(tmp_path, trained, Fault(place, 8), noisy, layers=[Noise()])


def test_what_is_not_logged_yet_is_in_the_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(SIGTERMException):
        run(tmp_path / "b", tiny(), Stop(8))
    checkpoint = torch.load(tmp_path / "b/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["callbacks"]["TrainLog"]["sums"][2] == 20  # images of the two steps since the sixth
