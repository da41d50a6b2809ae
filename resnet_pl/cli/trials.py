"""Short trainings of a configuration, which measure it for `doctor` and leave nothing behind."""

from __future__ import annotations

import io
import math
import time
from contextlib import nullcontext, redirect_stdout
from copy import deepcopy
from traceback import clear_frames
from typing import TYPE_CHECKING, Any

import torch
from jsonargparse import Namespace
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Checkpoint,
    EarlyStopping,
    LambdaCallback,
    LearningRateFinder,
)
from torch.utils.data import DataLoader

from resnet_pl.callbacks import Estimate, GracefulStop, RunSummary
from resnet_pl.callbacks.access import batch_size
from resnet_pl.callbacks.resources import is_out_of_memory
from resnet_pl.callbacks.run_timer import MIN_BATCHES
from resnet_pl.callbacks.timing import BatchTimer
from resnet_pl.classifier import ImageClassifier
from resnet_pl.cli import train
from resnet_pl.cli.run_loggers import training_loggers
from resnet_pl.data.batch import Batch
from resnet_pl.utils import as_list

if TYPE_CHECKING:
    from resnet_pl.cli.parser import ProjectCLI

# Batches of a validation in the complete trial: the first one starts the workers, the others are measured.
VAL_BATCHES = 5
# Arguments of the Trainer in each trial, which a callback ends.
SHORT = {"fast_dev_run": False, "min_epochs": None, "min_steps": None, "max_time": None, "num_sanity_val_steps": 0}
SHORT |= {"enable_progress_bar": False, "enable_model_summary": False, "profiler": None}
# The same for a trial without validation. Some schedules need one, so it is not turned off.
ENDLESS = {
    "enable_checkpointing": False,
    "max_epochs": 10**6,
    "max_steps": 10**6,
    "check_val_every_n_epoch": 10**6,
    "val_check_interval": 1.0,
}
# Callbacks that would search, stop or save.
UNUSED = BatchSizeFinder | LearningRateFinder | EarlyStopping | Checkpoint


class Trials:
    """Trains the model of a command line several times for a few seconds, each time from its initial weights.

    Args:
        cli: the command line; its run folder is a temporary one.
    """

    def __init__(self, cli: ProjectCLI) -> None:
        self.cli = cli
        self._given = vars(cli.config_init["trainer"]).copy()
        self._callbacks = [each for each in as_list(self._given["callbacks"]) if not isinstance(each, UNUSED)]

    def fit(self, *measuring: Callback, complete: bool = False, repeated: Any = None, **settings: Any) -> Trainer:
        """Trains until one of the measuring callbacks stops it.

        Args:
            measuring: the callbacks.
            complete: whether the trial has the loggers, checkpoints and other callbacks of `fit`.
            repeated: a batch that is repeated, in place of those of the data.
            settings: arguments of the Trainer that differ from the configuration.
        """
        cli, folder, initial = self.cli, self.cli.run_folder, list[Any]()
        # In front of the callbacks that change the weights.
        store = LambdaCallback(on_fit_start=lambda _, module: initial.append(deepcopy(module.state_dict())))
        own = [store, *measuring, *deepcopy(self._callbacks)]
        limit = cli.trainer.limit_val_batches
        val_batches = VAL_BATCHES if isinstance(limit, float) else min(limit, VAL_BATCHES)
        settings = SHORT | {"limit_val_batches": val_batches} | settings
        if complete:
            unused = RunSummary | Estimate | GracefulStop
            own += [callback for callback in train.callbacks(cli) if not isinstance(callback, unused)]
            settings["check_val_every_n_epoch"] = self._given["check_val_every_n_epoch"] and 1
        else:
            settings = ENDLESS | settings
        settings |= {"callbacks": own, "default_root_dir": str(folder)}
        cli.config_init["trainer"] = Namespace(**self._given | settings)
        trainer = cli.instantiate_trainer()
        if complete and self._given["logger"] is not False:
            trainer.loggers = as_list(training_loggers(None, folder, 0))
        if isinstance(cli.model, ImageClassifier):
            cli.model.compiled_forward = None
        # What the first training prints is not repeated.
        output = nullcontext() if complete else redirect_stdout(io.StringIO())
        data: Any = cli.datamodule
        if repeated is not None:
            batches: Any = [repeated] * 1000
            # An attribute of the object hides the method of its class.
            data.train_dataloader = lambda: DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch)
        try:
            with output:
                trainer.fit(cli.model, datamodule=data, weights_only=True)
        finally:
            vars(data).pop("train_dataloader", None)
            for state in initial:
                cli.model.load_state_dict(state, strict=False)  # a callback may have added some
            cli.model.zero_grad()
        return trainer

    def speed(self, seconds: float, repeated: Any = None, **settings: Any) -> tuple[float, float]:
        """Returns the images per second of a training, and the seconds until the first measured batch.

        Args:
            seconds: smallest time of the measurement.
            repeated: a batch that is repeated, in place of those of the data.
            settings: arguments of the Trainer that differ from the configuration.
        """
        timer, start = BatchTimer(2, MIN_BATCHES, seconds, stops=True), time.perf_counter()
        self.fit(timer, repeated=repeated, **settings)
        return timer.images_per_second, timer.began - start

    def loader_speed(self, seconds: float) -> tuple[float, Any]:
        """Returns the images per second of the training data alone, after those that the workers prefetch; and a batch.

        Args:
            seconds: smallest time of the measurement.
        """
        data = self.cli.datamodule
        loader, skipped = data.train_dataloader(), 2 * getattr(data, "resolved_num_workers", 0) + 2
        count, images, start = 0, 0, math.inf
        while True:
            for batch in loader:
                count += 1
                images += batch_size(batch) if count > skipped else 0
                elapsed = time.perf_counter() - start
                if count == skipped:
                    start = time.perf_counter()
                elif count >= skipped + MIN_BATCHES and elapsed >= seconds:
                    return images / elapsed, batch

    def largest_batch(self, batch: Batch, limit: int) -> int:
        """Returns the largest batch size whose training step fits into the memory of the device.

        Args:
            batch: a batch that fits; it is doubled as long as the step fits.
            limit: size that need not be exceeded.
        """
        size = len(batch.labels)
        while size < limit:
            tensors: list[Any] = [batch.images, batch.labels, batch.indices]  # a training batch has one view per image
            images, labels, indices = (torch.cat([each, each]) for each in tensors)
            batch = batch._replace(images=images, labels=labels, indices=indices)
            try:
                self.fit(BatchTimer(1, 1, stops=True), repeated=batch)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                clear_frames(error.__traceback__)  # they hold the activations of the step
                torch.cuda.empty_cache()
                break
            size *= 2
        return size
