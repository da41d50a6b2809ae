"""Options that can make a training faster, tried one after another for `doctor`."""

from __future__ import annotations

import math
import time
from contextlib import redirect_stdout
from copy import copy
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

import torch

from resnet_pl.callbacks.resources import format_time
from resnet_pl.classifier import ImageClassifier
from resnet_pl.cli.trials import Trials
from resnet_pl.data import ImageDataModule, ImageFolder
from resnet_pl.data.cache import GB, open_cache
from resnet_pl.data.dataset import ImageFileDataset
from resnet_pl.data.loader import ImageFileLoader
from resnet_pl.utils import first_line

# Smallest gain that is suggested, and the time of all measurements from which torch.compile is tried, in seconds.
MIN_GAIN, COMPILE_SECONDS = 0.05, 180


@dataclass
class SpeedOptions:
    """Measures the gain of options.

    Attributes:
        trials: the short trainings.
        seconds: smallest time of a measurement.
        run_seconds: time of the complete run; infinite if it has no end.
        suggested: options with their gain.
        tried: options whose gain is too small.
        missing: what was not measured, and why.
    """

    trials: Trials
    seconds: float
    run_seconds: float = math.inf
    suggested: list[str] = field(default_factory=list)
    tried: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def _gain(self, speed: float, reference: float, batch: Any = None) -> float:
        """Returns the gain over a reference, which is measured again before a gain counts: measurements vary."""
        if speed >= (1 + MIN_GAIN) * reference:
            reference = max(reference, self.trials.speed(self.seconds, batch)[0])
        return speed / reference - 1

    def _suggest(self, option: str, gain: float, cost: float = 0, note: str = "") -> None:
        """Suggests an option if its gain, minus a cost in seconds that is paid once, is large enough in this run."""
        saved = gain / (1 + gain) - (cost / self.run_seconds if cost else 0)
        if saved >= MIN_GAIN / (1 + MIN_GAIN):
            self.suggested.append(f"{option}: {gain:.0%} more images/s{note}")
        else:
            self.tried.append(f"{option} ({gain:+.0%} images/s)")

    def try_workers(self, both: float) -> None:
        """Tries other numbers of workers."""
        data: Any = self.trials.cli.datamodule
        if not isinstance(data, ImageDataModule) or not isinstance(data.train_dataloader(), ImageFileLoader):
            self.missing.append("workers: the data has none, or its own")
            return
        before, used = data.num_workers, data.resolved_num_workers
        speeds = {}
        for count in sorted({0, used // 2, 2 * used or 2} - {used}):
            data.num_workers = count
            speeds[count], _ = self.trials.speed(self.seconds)
        data.num_workers = before
        best = max(speeds, key=lambda count: speeds[count])
        self._suggest(f"--data.num_workers {best}", self._gain(speeds[best], both))

    def try_cache(self, both: float, loader: float) -> None:
        """Tries a cache of the first images."""
        data: Any = self.trials.cli.datamodule
        if not isinstance(data, ImageFolder) or data.cache:
            return
        images: ImageFileDataset = data.split("train")
        folder, sample = self.trials.cli.run_folder / "cache", copy(images)
        count = min(len(images), max(2 * data.batch_size, round(loader * self.seconds)))
        sample.names, sample.labels = images.names[:count], images.labels[:count]
        start = time.perf_counter()
        with redirect_stdout(StringIO()):
            sample.cache = open_cache(images.root, sample.names, data.cache_side, str(folder))
        scale = sum(len(split) for split in data.splits.values()) / count
        cost = (time.perf_counter() - start) * scale
        size = scale * sum(path.stat().st_size for path in folder.rglob("*.pixels"))
        data.splits["train"] = sample
        speed, _ = self.trials.speed(self.seconds)
        data.splits["train"] = images
        note = f"; decoding takes {format_time(cost)} once, and {size / GB:.1f} GB of disk"
        self._suggest("--data.cache true", self._gain(speed, both), cost, note)

    def try_precision(self, batch: Any, step: float) -> None:
        """Tries bf16; `step` is the speed of the network now."""
        option = "--trainer.precision bf16-mixed"
        if speed := self._try(option, batch, precision="bf16-mixed"):
            self._suggest(option, self._gain(speed[0], step, batch))

    def try_network(self, model: ImageClassifier, batch: Any, step: float, start: float) -> None:
        """Tries the other memory format, and torch.compile if there is time; `start` are the seconds of a start now."""
        used = model.channels_last
        option = f"--model.channels_last {str(not used).lower()}"
        _set_channels_last(model, not used)
        speed = self._try(option, batch)
        _set_channels_last(model, used)
        if speed:
            self._suggest(option, self._gain(speed[0], step, batch))
        option = "--model.compile true"
        if model.compiles:
            return
        if self.trials.cli.config["seconds"] < COMPILE_SECONDS:
            self.missing.append(f"{option}: it takes a minute or more, --seconds {COMPILE_SECONDS} tries it")
            return
        model.compiles = True
        speed = self._try(option, batch)
        model.compiles = False
        if speed:
            cost = max(0.0, speed[1] - start)
            self._suggest(
                option, self._gain(speed[0], step, batch), cost, f"; compiling takes {format_time(cost)} once"
            )

    def _try(self, option: str, batch: Any, **settings: Any) -> tuple[float, float] | None:
        """Returns what `Trials.speed` measures; None if the device or the installation does not support the option."""
        try:
            return self.trials.speed(self.seconds, batch, **settings)
        except Exception as error:
            self.missing.append(f"{option}: {type(error).__name__}: {first_line(error)}")
            return None


def _set_channels_last(model: ImageClassifier, used: bool) -> None:
    model.channels_last = used
    model.backbone.to(memory_format=torch.channels_last if used else torch.contiguous_format)
