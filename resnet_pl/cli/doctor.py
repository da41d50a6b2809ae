"""The subcommand `doctor`: what to change before a training, from measurements of about a minute."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser

from resnet_pl.callbacks.finders import LEARNING_RATES
from resnet_pl.callbacks.resources import format_time
from resnet_pl.callbacks.run_summary import print_description, print_row
from resnet_pl.callbacks.run_timer import RunTimer
from resnet_pl.callbacks.timing import RangeTest
from resnet_pl.classifier import ImageClassifier
from resnet_pl.cli import train
from resnet_pl.cli.speed_options import COMPILE_SECONDS, SpeedOptions
from resnet_pl.cli.trials import Trials
from resnet_pl.data import ImageDataModule
from resnet_pl.data.batch import Batch
from resnet_pl.reports.plots import save_png
from resnet_pl.reports.range_plot import range_plot, suggest_rate
from resnet_pl.types import PositiveFloat
from resnet_pl.utils import UserError

if TYPE_CHECKING:
    from resnet_pl.cli.parser import ProjectCLI

OUTPUT = "Folder for learning_rate.png, the plot of the range test."
SECONDS = f"Time of all measurements, about; a slow network takes longer. From {COMPILE_SECONDS}, compile is tried too."
# Learning rates of the range test, and the smallest and the largest number of its steps.
FIRST_RATE, LAST_RATE, MIN_STEPS, MAX_STEPS = 1e-5, 10, 60, 200
# About the number of measurements, which share the time.
MEASUREMENTS = 12
# Smallest ratio of the suggested learning rate to a smaller one that is configured.
MIN_RATIO = 3


def add_arguments(parser: LightningArgumentParser) -> None:
    """Adds the options of `fit`, and its own."""
    train.add_arguments(parser)
    parser.add_argument("--seconds", type=PositiveFloat, default=60, help=SECONDS)
    parser.add_argument("--output", type=str, default="doctor", help=OUTPUT)


def callbacks(cli: ProjectCLI) -> list[Callback]:
    """Returns no callbacks: those of a trial are added to it."""
    return []


def run(cli: ProjectCLI) -> None:
    """Measures the training, and prints what was found."""
    if cli.trainer.world_size > 1:
        raise UserError(
            f"trainer.devices: doctor measures a single process, not {cli.trainer.world_size}\n"
            "add --trainer.devices 1 --trainer.num_nodes 1 --trainer.strategy auto"
        )
    train.check_monitor(cli)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # Windows keeps files that are mapped
        cli.run_folder = Path(folder)
        Doctor(cli).examine()


class Doctor:
    """Runs the measurements one after another, and collects suggestions.

    Args:
        cli: the command line.
    """

    def __init__(self, cli: ProjectCLI) -> None:
        self.cli, self.trials = cli, Trials(cli)
        self.seconds = cli.config["seconds"] / MEASUREMENTS
        self.options = SpeedOptions(self.trials, self.seconds)

    def examine(self) -> None:
        """Prints all rows."""
        options = self.options
        print_row(
            "doctor", f"measures for about {format_time(self.cli.config['seconds'])}, longer if a step takes seconds"
        )
        timer = RunTimer(self.seconds)
        trainer = self.trials.fit(timer, complete=True)
        if timer.batch_seconds is None:
            raise UserError("doctor: the run has too few batches to measure\nraise --trainer.max_epochs")
        print_description(trainer, self.cli.model)
        if (count := trainer.accelerator.auto_device_count()) > 1:
            print_row("", f"doctor measures one of {count} devices; fit uses all of them by default")
        both = timer.images_per_second
        loader, batch = self.trials.loader_speed(self.seconds)
        step, start = self.trials.speed(self.seconds, batch)
        print_row("speed", f"data loading alone {_rate(loader)}, network alone {_rate(step)}, together {_rate(both)}")
        limits, sentence = bottleneck(loader, step, both)
        print_row("", sentence)
        options.run_seconds = self._predict(timer)
        saved = sum(path.stat().st_size for path in self.cli.run_folder.rglob("*.ckpt"))
        print_row("memory", f"{timer.memory} at its peak; checkpoints {saved / 1e6:,.0f} MB")
        self.print_batch_size(trainer, batch)
        self._learning_rate(trainer, timer.batch_seconds * trainer.accumulate_grad_batches)
        if "loading" in limits:
            options.try_workers(both)
            options.try_cache(both, loader)
        if "network" in limits:
            if trainer.precision == "32-true":
                options.try_precision(batch, step)
            if isinstance(self.cli.model, ImageClassifier):
                options.try_network(self.cli.model, batch, step, start)
        else:
            options.missing.append("precision, memory format, compile: they make only the network faster")
        for text in options.suggested or ["nothing"]:
            print_row("suggest", text)
        print_row("tried", "; ".join(options.tried) or None)
        for text in options.missing:
            print_row("skipped", text)

    # ------------------------------------------------------------------------------------ the run
    def _predict(self, timer: RunTimer) -> float:
        """Prints the predicted time of the run, and returns it in seconds; infinite if the run has no end."""
        assert timer.batch_seconds is not None
        if math.isinf(timer.run_batches):
            epoch = timer.batch_seconds * timer.epoch_batches
            print_row("run", "no end" if math.isinf(epoch) else f"{format_time(epoch)} per epoch of training")
            return math.inf
        parts = timer.parts(self._val_batches(), self.cli.trainer.check_val_every_n_epoch)
        total = sum(parts.values())
        print_row(
            "run", f"{format_time(total)} = {' + '.join(f'{format_time(each)} {name}' for name, each in parts.items())}"
        )
        return total

    def _val_batches(self) -> int:
        """Returns the number of batches of a validation; 0 if it is not known."""
        data, limit = self.cli.datamodule, self.cli.trainer.limit_val_batches
        if type(data).val_dataloader is LightningDataModule.val_dataloader:
            return 0
        loader = data.val_dataloader()
        try:
            count = len(loader)
        except TypeError:  # data without a length
            return 0
        return min(count, limit) if isinstance(limit, int) else int(count * limit)

    def print_batch_size(self, trainer: Trainer, batch: Any) -> None:
        """Prints the largest batch size that fits into the memory of a GPU."""
        data, is_gpu = self.cli.datamodule, trainer.strategy.root_device.type == "cuda"
        if not is_gpu:
            self.options.missing.append("largest batch size: it needs a GPU")
            return
        if not isinstance(data, ImageDataModule) or not isinstance(batch, Batch):
            self.options.missing.append("largest batch size: it needs a data module of this project")
            return
        images = len(data.split("train"))
        fits = self.trials.largest_batch(batch, images)
        text = f"all {images:,} training" if fits >= images else f"{fits:,}"
        print_row("fits", f"{text} images in a batch")
        if fits > data.batch_size and isinstance(self.cli.model, ImageClassifier):
            if self.cli.model.base_batch_size:
                text = "is scaled with it"
            else:
                text = f"must change too: --model.base_batch_size {data.batch_size} scales it"
            print_row("", f"With another --data.batch_size the learning rate {text}.")

    # ------------------------------------------------------------------------------------ learning rate
    def _learning_rate(self, trainer: Trainer, step_seconds: float) -> None:
        """Runs the range test, saves its plot and suggests a learning rate."""
        cli = self.cli
        if len(trainer.optimizers) != 1 or not cli.model.automatic_optimization:
            self.options.missing.append("learning rate: the range test needs one optimizer and automatic optimization")
            return
        steps = round(min(MAX_STEPS, max(MIN_STEPS, 4 * self.seconds / step_seconds)))
        expected = steps * step_seconds
        if expected > self.cli.config["seconds"]:
            print_row("lr", f"range test: {steps} steps, about {format_time(expected)}")
        test = RangeTest(FIRST_RATE, LAST_RATE, steps)
        try:
            self.trials.fit(test, max_steps=steps + 1)
        except UserError:  # NaN, or a schedule that is shorter than the test
            if not test.losses:
                raise
        found, configured = suggest_rate(test.rates, test.losses), test.configured
        path = Path(cli.config["output"]) / "learning_rate.png"
        save_png(range_plot(test.rates, test.losses, found and found[0], configured), path)
        if found is None:
            more = "" if steps == MAX_STEPS else "; a larger --seconds gives more"
            self.options.missing.append(f"learning rate: the loss decreased too little in {steps} steps{more} ({path})")
            return
        suggested, largest = found
        change = configured > largest or suggested >= MIN_RATIO * configured
        text = f"{configured:g} is configured; the range test suggests {suggested:g} to {largest:g}"
        print_row("lr", f"{text}{'' if change else ', so it can stay'}: {path}")
        if change:
            # A warm-up allows a larger learning rate than that of the first steps.
            warmup = ", or a longer --model.schedule.warmup" if configured > largest else ""
            self.options.suggested.append(f"{_rate_option(cli)} {suggested * _scale(cli):.2g}{warmup}")


def bottleneck(loader: float, step: float, both: float) -> tuple[set[str], str]:
    """Returns what limits the training, "loading", "network" or both of them, and a sentence about it.

    Args:
        loader: speed of the data loading alone, images per second.
        step: speed of the network alone.
        both: speed of the training.
    """
    # Even one after the other, loading at ten times the speed of the network costs a tenth of the time.
    if both >= 0.9 * step or loader >= 10 * step:
        return {"network"}, "The network limits the training: faster data loading would change little."
    if loader < 0.9 * step:
        return {"loading"}, f"Data loading limits the training: the network alone is {step / both:.1f} × as fast."
    text = "Data loading and the network share the CPU cores: a faster one of them helps the other."
    return {"loading", "network"}, text


def _rate(speed: float) -> str:
    return f"{speed:,.{1 if speed < 10 else 0}f} images/s"


def _rate_option(cli: ProjectCLI) -> str:
    """Returns the option of the learning rate."""
    for key in ("model.init_args.lr_scheduler.init_args.max_lr", *LEARNING_RATES):
        if cli.config.get(key) is not None:
            return f"--{key.replace('init_args.', '')}"
    return "--model.optimizer.lr"


def _scale(cli: ProjectCLI) -> float:
    """Returns the factor between the learning rate in use and the configured one."""
    base = cli.model.base_batch_size if isinstance(cli.model, ImageClassifier) else None
    return base / cli.model.effective_batch_size if base else 1.0
