"""The TensorBoard logger of a run, and the hyperparameters in its HPARAMS tab."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from typing_extensions import override

from resnet_pl.callbacks.access import base_lr, effective_batch_size, get_datamodule, total_steps
from resnet_pl.run_dir import class_name, get_init_args

# TensorBoard shows tags in alphabetical order and expands the first two groups only. `curves` comes before the groups
# of other metrics and images.
TAGS = {
    "train/loss": "curves/loss",
    "train/top1": "curves/top1",
    "val/generalization_gap": "curves/top1_generalization_gap",
    "lr": "curves/lr",
    "throughput/images_per_second": "curves/train_images_per_second",
    "throughput/epoch_seconds": "train/epoch_seconds",
}
# Tags of the `val` curves, which share the plots of the training curves.
VAL_TAGS = {"val/loss": "curves/loss", "val/top1": "curves/top1"}


class TensorBoardCurves(TensorBoardLogger):
    """Logs training and validation curves in shared plots, which TensorBoard shows first.

    TensorBoard draws one curve per run into the plot of a tag. Validation loss and top-1 are therefore logged as a
    second run in the subfolder `val`, under the tags of the training curves. The tags are:

    | Tag | Log key |
    |---|---|
    | `curves/loss` | `train/loss`, `val/loss` |
    | `curves/top1` | `train/top1`, `val/top1` |
    | `curves/top1_generalization_gap` | `val/generalization_gap` |
    | `curves/lr` | `lr` |
    | `curves/train_images_per_second` | `throughput/images_per_second` |
    | `train/epoch_seconds` | `throughput/epoch_seconds` |

    Other metrics keep their log key as the tag. `epoch`, which Lightning adds to all metrics, is not logged.

    Args:
        run: run folder `ROOT/NAME/VERSION`; the event files are written there. By default, the command line uses the
            folder of the run, and Python `lightning_logs/version_N`, as TensorBoardLogger does.
        start_step: optimizer step that the run is resumed from; TensorBoard hides earlier values from this step on.
    """

    def __init__(self, run: Path | None = None, start_step: int = 0) -> None:
        self.run = run
        where: dict[str, Any] = {"save_dir": "."}
        if run is not None:
            where = {"save_dir": run.parent.parent, "name": run.parent.name, "version": run.name}
        settings: dict[str, Any] = {"default_hp_metric": False, "purge_step": start_step or None}
        super().__init__(**where, **settings)
        self.val = TensorBoardLogger(**where, **settings, sub_dir="val")

    @override
    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        values = {TAGS.get(key, key): value for key, value in metrics.items() if key not in ("epoch", *VAL_TAGS)}
        super().log_metrics(values, step)
        if val := {tag: metrics[key] for key, tag in VAL_TAGS.items() if key in metrics}:
            self.val.log_metrics(val, step)
            self.val.experiment.flush()

    @override
    @rank_zero_only
    def save(self) -> None:
        # Without Lightning's hparams.yaml: config.yaml holds the complete configuration.
        self.experiment.flush()

    @override
    @rank_zero_only
    def finalize(self, status: str) -> None:
        super().finalize(status)
        self.val.finalize("closed")


def hyperparameters(trainer: Trainer, pl_module: LightningModule) -> dict[str, str | int | float]:
    """Returns the values that people tune, for the HPARAMS tab: the same keys for every run.

    TensorBoard shows the first five in alphabetical order, and the others if they are selected.

    `batch_size` is the effective one and `lr` the one in use, after scaling with it. `epochs` is a fraction if
    `max_steps` limits the run, and -1 if nothing does or an epoch has no length.
    """
    data, optimizer = get_datamodule(trainer), next(iter(trainer.optimizers), None)
    groups = [] if optimizer is None else optimizer.param_groups
    return {
        "backbone": backbone_name(pl_module),
        "epochs": _epochs(trainer),
        "batch_size": effective_batch_size(trainer) or 0,
        "optimizer": type(optimizer).__name__,
        "lr": base_lr(trainer),
        # Normalization layers and biases may be in a group without weight decay.
        "weight_decay": max((group.get("weight_decay", 0.0) for group in groups), default=0.0),
        "label_smoothing": getattr(pl_module, "label_smoothing", 0.0),
        "seed": int(os.environ.get("PL_GLOBAL_SEED", 0)),
        "training_data": type(data).__name__,
        "num_classes": len(getattr(pl_module, "class_names", ())),
    }


def _epochs(trainer: Trainer) -> float:
    steps = total_steps(trainer)
    if steps is not None and steps == trainer.max_steps and not math.isinf(trainer.num_training_batches):
        return round(steps / math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches), 2)
    return -1 if trainer.max_epochs is None else trainer.max_epochs


def backbone_name(pl_module: LightningModule) -> str:
    """Returns the class or function of the backbone, with its depth if that is an argument: "cifar_resnet 20".

    For a module without backbone, its own class.
    """
    section = pl_module.hparams.get("backbone")
    name = class_name(section) or type(getattr(pl_module, "backbone", pl_module)).__name__
    depth = get_init_args(section).get("depth")
    return name if depth is None else f"{name} {depth}"
