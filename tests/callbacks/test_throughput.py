"""Images a second and seconds an epoch, with a clock that the test turns."""

from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch import Callback

from resnet_pl.callbacks import Throughput, throughput
from resnet_pl.data import ImageFolder
from tests.tiny import Tiny, classifier, trainer


class Clock(Callback):
    """Half a second a training batch, a hundred a validation batch."""

    def __init__(self) -> None:
        self.now = 1000.0

    def perf_counter(self) -> float:
        return self.now

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        self.now += 0.5

    def on_validation_batch_start(self, *args: Any, **kwargs: Any) -> None:
        self.now += 100


class Logged(Callback):
    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch:
            self.epochs.append({name: float(value) for name, value in trainer.logged_metrics.items()})

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.epochs.append({name: float(value) for name, value in trainer.logged_metrics.items()})


@pytest.mark.parametrize(("cache", "seconds", "told"), [(False, 0, True), (True, 0, False), (False, 1e6, False)])
def test_a_word_on_waiting_for_photos(photo_folder, tmp_path, monkeypatch, capsys, cache, seconds, told):
    monkeypatch.setattr(throughput, "MIN_WAIT_SECONDS", seconds)
    monkeypatch.setattr(throughput, "MIN_WAIT_FRACTION", 0)
    data = ImageFolder(photo_folder, image_size=16, batch_size=4, num_workers=0, cache=cache, cache_dir=tmp_path)
    trainer(callbacks=[Throughput()], max_epochs=1).fit(classifier(), datamodule=data)
    assert ("--data.cache true" in capsys.readouterr().out) == told


@pytest.mark.parametrize("interval", [1.0, 2])
def test_the_speed_of_training_without_validation(monkeypatch, interval):
    clock, logged = Clock(), Logged()
    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=clock.perf_counter))
    run = trainer(callbacks=[clock, Throughput(), logged], max_epochs=2, val_check_interval=interval)
    run.fit(classifier(), datamodule=Tiny())
    assert len(logged.epochs) == 2
    for epoch in logged.epochs:
        assert epoch["throughput/epoch_seconds"] == pytest.approx(2.0)
        assert epoch["throughput/images_per_second"] == pytest.approx(20.0)
