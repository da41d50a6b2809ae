"""Images per second and seconds per epoch, with a simulated clock."""

from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch import Callback

from resnet_pl.callbacks import Throughput, throughput
from resnet_pl.data import ImageFolder
from tests.tiny import Tiny, classifier, trainer


class Clock(Callback):
    """A training batch takes half a second, a validation batch 100 seconds."""

    def __init__(self) -> None:
        self.now = 1000.0

    def perf_counter(self) -> float:
        return self.now

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        self.now += 0.5

    def on_validation_batch_start(self, *args: Any, **kwargs: Any) -> None:
        self.now += 100


class MetricRecorder(Callback):
    """Records the logged metrics of each epoch."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch:
            self.epochs.append({name: float(value) for name, value in trainer.logged_metrics.items()})

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.epochs.append({name: float(value) for name, value in trainer.logged_metrics.items()})


@pytest.mark.parametrize(("cache", "min_wait", "printed"), [(False, 0, True), (True, 0, False), (False, 1e6, False)])
def test_a_hint_if_data_loading_is_slow(photo_folder, tmp_path, monkeypatch, capsys, cache, min_wait, printed):
    monkeypatch.setattr(throughput, "MIN_WAIT_SECONDS", min_wait)
    monkeypatch.setattr(throughput, "MIN_WAIT_FRACTION", 0)
    data = ImageFolder(photo_folder, image_size=16, batch_size=4, num_workers=0, cache=cache, cache_dir=tmp_path)
    trainer(callbacks=[Throughput()], max_epochs=1).fit(classifier(), datamodule=data)
    assert ("--data.cache true" in capsys.readouterr().out) == printed


@pytest.mark.parametrize("interval", [1.0, 2])
def test_validation_time_is_excluded(monkeypatch, interval):
    clock, recorder = Clock(), MetricRecorder()
    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=clock.perf_counter))
    run = trainer(callbacks=[clock, Throughput(), recorder], max_epochs=2, val_check_interval=interval)
    run.fit(classifier(), datamodule=Tiny())
    assert len(recorder.epochs) == 2
    for epoch in recorder.epochs:
        assert epoch["throughput/epoch_seconds"] == pytest.approx(2.0)
        assert epoch["throughput/images_per_second"] == pytest.approx(20.0)
