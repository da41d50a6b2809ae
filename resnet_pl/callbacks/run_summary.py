"""Prints a summary of the run before training, and writes it to the run folder."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.nn.parameter import is_lazy

from resnet_pl.callbacks.access import (
    as_classifier,
    base_lr,
    effective_batch_size,
    get_datamodule,
    get_image_data,
    total_steps,
)
from resnet_pl.callbacks.loggers import logger_versions
from resnet_pl.callbacks.tensorboard import backbone_name
from resnet_pl.checkpoint import versions
from resnet_pl.code_version import code_version
from resnet_pl.data.base import ImageDataModule
from resnet_pl.data.provenance import describe
from resnet_pl.data.samplers import class_counts
from resnet_pl.optim import ScheduledLR
from resnet_pl.run_dir import job_id, write_session, write_splits
from resnet_pl.utils import DivergenceError, counted, shell_command

# Factor between the largest and the smallest class from which the summary says what to use.
IMBALANCE = 3


class RunSummary(Callback):
    """Prints model, data, batch size, training and device, and records them, immediately before the first step.

    Args:
        run: run folder; splits.json and sessions.json are written there.
        args: arguments of the command line, for sessions.json.
        files: its configuration files: a commit without them is not all that the run uses.
    """

    def __init__(self, run: Path, args: Sequence[str] = (), files: Sequence[Path] = ()) -> None:
        self.run, self.args, self.files = run, args, files

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the summary and writes the files."""
        data = get_image_data(trainer)
        print_row(
            "run", f"{self.run}" + (f", resuming from step {trainer.global_step:,}" if trainer.global_step else "")
        )
        print_description(trainer, pl_module)
        every, batches = trainer.log_every_n_steps, trainer.num_training_batches  # pyright: ignore[reportAttributeAccessIssue] - set by Lightning
        # `TrainLog` also logs at the end of an epoch, `self.log` of a user's module does not.
        if batches < every and not type(pl_module).__module__.startswith("resnet_pl."):
            print(f"note: self.log writes every {every} steps, and an epoch has {batches}: --trainer.log_every_n_steps")
        if data is not None:
            write_splits(self.run, {key: value for key, value in data.provenance().items() if key != "digests"})
        write_session(self.run, _session(trainer, self.args, self.files))

    @rank_zero_only
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Records that the training was not interrupted."""
        write_session(self.run, {"ended": _now()}, new=False)

    @rank_zero_only
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Records that the loss diverged: a search does not repeat such a run."""
        if isinstance(exception, DivergenceError):
            write_session(self.run, {"diverged": _now()}, new=False)


def print_row(name: str, text: str | None) -> None:
    """Prints a row of the summary, unless there is no text."""
    if text is not None:
        print(f"{name:<10}{text}", flush=True)


def print_description(trainer: Trainer, pl_module: LightningModule) -> None:
    """Prints the rows of the summary about model, data, training and device."""
    data = get_image_data(trainer)
    print_row("model", _model(pl_module))
    print_row("data", _data(trainer))
    if data is not None:
        print_row("classes", _classes(data.class_names))
        print_row("layout", getattr(data, "layout_note", None))
        print_row("splits", data.split_note)
        print_row("balance", _balance(data, pl_module))
        print_row("batch", _batch(trainer, data))
    print_row("training", _training(trainer, pl_module))
    print_row("device", f"{device_name(trainer)}, precision {trainer.precision}{_tf32(trainer)}")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _session(trainer: Trainer, args: Sequence[str], files: Sequence[Path]) -> dict[str, Any]:
    """Returns what sessions.json records about this start of the run."""
    data = get_image_data(trainer)
    splits = {} if data is None else data.splits
    return {
        "command": shell_command(args),
        "commit": code_version(files),
        "launch": job_id(),
        "started": _now(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "device": device_name(trainer),
        "threads": torch.get_num_threads(),
        "data": {split: images.digest() for split, images in splits.items() if hasattr(images, "digest")},
        "parameters": sum(p.numel() for p in trainer.lightning_module.parameters() if not is_lazy(p)),
        "loggers": logger_versions(trainer),
        "versions": versions(),
    }


def _model(pl_module: LightningModule) -> str:
    parameters = [parameter for parameter in pl_module.parameters() if not is_lazy(parameter)]
    total = sum(parameter.numel() for parameter in parameters)
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    frozen = "" if trainable == total else f", {trainable:,} of them trainable"
    compiled = ", compiled in the first step" if getattr(pl_module, "compiles", False) else ""
    return f"{backbone_name(pl_module)}, {total:,} parameters{frozen}{compiled}"


def _data(trainer: Trainer) -> str:
    data = get_image_data(trainer)
    if data is None:
        batches = trainer.num_training_batches
        counts = "no fixed length" if math.isinf(batches) else counted(int(batches), "batch")
        return f"{describe(get_datamodule(trainer) or trainer.train_dataloader)}: {counts}"
    # Without a test set, test is val.
    splits = {split: images for split, images in data.splits.items() if split not in data.split_labels}
    counts = " + ".join(f"{len(images):,} {split}" for split, images in splits.items())
    return f"{data.describe()}: {counts} images, {counted(len(data.classes), 'class')}"


def _classes(names: Sequence[str]) -> str:
    """The class names; of many the first and the last, which show what a folder was read as."""
    return ", ".join(names if len(names) <= 10 else [*names[:4], "…", *names[-3:]])


def _balance(data: ImageDataModule, pl_module: LightningModule) -> str | None:
    """The sampler and the class weights; without them the smallest and the largest class, and what to use."""
    names, counts = data.class_names, class_counts(data.splits.get("train"), len(data.classes))
    used = [] if data.sampler is None else [f"{data.sampler} sampler"]
    if getattr(pl_module, "class_weights", None):
        loss = getattr(pl_module, "criterion", None)
        weights = getattr(loss, "pos_weight" if data.multi_label else "weight", None)
        used.append("class weights" if weights is None else f"class weights {_range(names, weights, '.3g')}")
    if used:
        return ", ".join(used)
    if counts is None or len(counts) < 2:
        return None
    low, high = int(counts.min()), int(counts.max())
    if high <= IMBALANCE * low:
        return None
    # The sampler needs one class per image, and mAP counts all classes equally already.
    advice = "--data.sampler balanced or --model.class_weights balanced, and --checkpoint.monitor val/f1_macro"
    advice = "--model.class_weights balanced" if data.multi_label else advice
    return f"training images: {_range(names, counts, ',')}; try {advice}"


def _range(names: Sequence[str], values: Tensor, form: str) -> str:
    """The smallest and the largest value, with the class of each."""
    ends = (int(values.argmin()), int(values.argmax()))
    return " to ".join(f"{values[index].item():{form}} ({names[index]})" for index in ends)


def _batch(trainer: Trainer, data: ImageDataModule) -> str:
    size, paper = effective_batch_size(trainer), data.paper_batch_size
    parts = [counted(data.batch_size, "image")]
    parts += [f"{trainer.world_size} processes"] if trainer.world_size > 1 else []
    parts += [f"{trainer.accumulate_grad_batches} accumulated"] if trainer.accumulate_grad_batches > 1 else []
    text = f"{size}" + (f" = {' × '.join(parts)}" if len(parts) > 1 else "")
    return text if paper in (None, size) else f"{text} (paper: {paper})"


def _training(trainer: Trainer, pl_module: LightningModule) -> str:
    total = total_steps(trainer)
    steps = "no limit" if total is None else counted(total, "iteration")
    epochs = f"{counted(trainer.max_epochs, 'epoch')}, " if trainer.max_epochs not in (None, -1) else ""
    if math.isnan(base_lr(trainer)):  # no optimizer
        return f"{epochs}{steps}"
    schedules = [_schedule(config.scheduler, pl_module) for config in trainer.lr_scheduler_configs]
    optimizer, schedule = type(trainer.optimizers[0]).__name__, "".join(f"{text}, " for text in schedules)
    return f"{optimizer}, learning rate {base_lr(trainer):g}, {schedule}{epochs}{steps}"


def _schedule(scheduler: Any, pl_module: LightningModule) -> str:
    if not isinstance(scheduler, ScheduledLR):
        return type(scheduler).__name__
    schedule = as_classifier(pl_module).schedule
    unit = schedule.unit.removesuffix("s") if schedule.warmup == 1 else schedule.unit
    return f"{schedule.shape}" + (f" after {schedule.warmup:g} {unit} of warm-up" if schedule.warmup else "")


def _tf32(trainer: Trainer) -> str:
    """Returns " with TF32" if a GPU uses it for float32 matrix products and convolutions."""
    used = trainer.strategy.root_device.type == "cuda" and torch.backends.cudnn.allow_tf32
    return " with TF32" if used and "16" not in trainer.precision else ""


def device_name(trainer: Trainer) -> str:
    """Returns number and name of the devices, such as "2 × NVIDIA H100"."""
    device = trainer.strategy.root_device
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        threads = torch.get_num_threads()
        name = f"{device.type}, {counted(threads, 'thread')}"
    return f"{trainer.world_size} × {name}"
