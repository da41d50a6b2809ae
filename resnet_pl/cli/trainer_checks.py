"""Rejects options of the Trainer and callbacks that Lightning accepts, and fails at or misinterprets later."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta

from jsonargparse import Namespace
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BaseFinetuning,
    BasePredictionWriter,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
)
from lightning.pytorch.strategies import StrategyRegistry

from resnet_pl._compat import trains_in_copies
from resnet_pl.classifier import ImageClassifier
from resnet_pl.utils import UserError, as_list, counted, prog_name, rank_zero_print, similar

# Base classes: they do nothing, or fail in the first step.
ABSTRACT = {
    BaseFinetuning: "use --trainer.callbacks+=Freeze, or a class of your own that derives from it",
    BasePredictionWriter: "predict writes predictions.csv without it; for other files, derive a class from it",
}
# Callbacks that do something else than their name says with an `ImageClassifier`.
NOT_FOR_CLASSIFIER = {
    # `pl_module.backbone` contains the head here, and the optimizer has all parameters from the start.
    BackboneFinetuning: "it would freeze the classifier head too\n"
    "use --trainer.callbacks+=Freeze --trainer.callbacks.unfreeze_at_epoch N",
    GradientAccumulationScheduler: "the learning rate schedule needs the same number of steps in every epoch\n"
    "use --trainer.accumulate_grad_batches N",
}


def check_trainer(settings: Namespace, model: LightningModule) -> None:
    """Rejects values, plugins and callbacks of the Trainer.

    Args:
        settings: arguments of the Trainer.
        model: module that is trained.

    Raises:
        UserError: a value is out of range, or not supported.
    """
    _check_values(settings)
    for plugin in as_list(settings["plugins"]):
        if isinstance(plugin, CheckpointIO):
            raise UserError(
                f"trainer.plugins: {type(plugin).__name__} is not supported, because last.ckpt is replaced atomically\n"
                "remove it"
            )
    _check_callbacks(as_list(settings["callbacks"]), model)


def _check_values(settings: Namespace) -> None:
    for key in ("accumulate_grad_batches", "limit_train_batches", "val_check_interval", "check_val_every_n_epoch"):
        value = settings[key]
        if isinstance(value, int | float) and value <= 0:
            hint = "\nto train without validation use --trainer.limit_val_batches 0" if "val" in key else ""
            raise UserError(f"trainer.{key}: {value} is out of range, must be above 0{hint}")
    for key in ("max_epochs", "max_steps"):
        if settings[key] == 0:
            raise UserError(f"trainer.{key}: 0 trains nothing\nraise it, or use -1 for no limit")
    if (every := settings["log_every_n_steps"] or 0) < 0:
        raise UserError(f"trainer.log_every_n_steps: {every} is out of range\nuse 0 to log nothing within an epoch")
    if settings["barebones"]:
        raise UserError(
            "trainer.barebones: not supported, because runs have loggers and checkpoints\n"
            "use --trainer.logger false --trainer.enable_checkpointing false instead"
        )
    if settings["model_registry"]:
        raise UserError(
            "trainer.model_registry: not supported, because best.ckpt and last.ckpt are not uploaded\n"
            "remove it, and upload best.ckpt after the training"
        )
    strategy, names = settings["strategy"], ["auto", *StrategyRegistry.available_strategies()]
    if isinstance(strategy, str) and strategy.lower() not in names:
        near = similar(strategy, names, 3) or [name for name in names if "_" not in name]
        raise UserError(f"trainer.strategy: unknown strategy {strategy}\nuse one of {', '.join(near)}")


def _check_callbacks(callbacks: Sequence[Callback], model: LightningModule) -> None:
    for callback in callbacks:
        name = f"trainer.callbacks: {type(callback).__name__}"
        if type(callback) in ABSTRACT:
            raise UserError(f"{name} is a base class\n{ABSTRACT[type(callback)]}")
        for kind, reason in NOT_FOR_CLASSIFIER.items() if isinstance(model, ImageClassifier) else ():
            if isinstance(callback, kind):
                raise UserError(f"{name} is not supported: {reason}")
        starts = ("update_starting_at_step", "update_starting_at_epoch")
        late = [f"{key} {value}" for key in starts if (value := getattr(callback, key, None))]
        if isinstance(callback, EMAWeightAveraging) and late:
            # Lightning issue 21724.
            rank_zero_print(
                f"note: {name}: with {late[0]}, validations and best.ckpt before it are of the initial weights\n"
                "use EMA, which needs no late start: --trainer.callbacks+=EMA"
            )


def check_processes(trainer: Trainer, settings: Namespace) -> None:
    """Rejects a Trainer that uses other processes than those that were started.

    Args:
        trainer: the Trainer, before it starts processes itself.
        settings: the section `trainer` of the configuration.

    Raises:
        UserError: each process would train the model on its own, the Trainer would wait forever, or this process would
            not know what the others have trained.
    """
    if trains_in_copies(trainer):
        raise UserError(
            "trainer.strategy: forked and spawned processes do not return the state of the training\n"
            "use --trainer.strategy ddp in a script, or one process: --trainer.devices 1 --trainer.strategy auto"
        )
    launched, used = launched_processes(), trainer.num_devices * trainer.num_nodes
    if launched is not None and used != launched[0]:
        started, per_node = launched
        nodes = f" --trainer.num_nodes {started // per_node}" if started > per_node else ""
        raise UserError(
            f"trainer.devices: {counted(started, 'process')} {'was' if started == 1 else 'were'} started, "
            f"but the Trainer uses {used}\n"
            f"start {used}, or use --trainer.devices {per_node}{nodes}"
        )
    environment = getattr(trainer.strategy, "cluster_environment", None)
    alone = isinstance(environment, LightningEnvironment) and not environment.creates_processes_externally
    if trainer.num_nodes > 1 and alone and "MASTER_ADDR" not in os.environ:
        raise UserError(
            f"trainer.num_nodes: {trainer.num_nodes} nodes need a launcher\nstart on each node: torchrun "
            f"--nnodes {trainer.num_nodes} --nproc-per-node {trainer.num_devices} --rdzv-backend c10d "
            f"--rdzv-endpoint HOST:29500 {prog_name().removeprefix('python ')} ..."
        )
    if used > 1 and isinstance(settings["val_check_interval"], str | dict | timedelta):
        raise UserError(
            "trainer.val_check_interval: with several processes, their clocks would disagree about a duration\n"
            "use a number of batches, or a fraction of an epoch"
        )
    if settings["sync_batchnorm"] and used > 1 and trainer.strategy.root_device.type == "cpu":
        raise UserError("trainer.sync_batchnorm: needs GPUs\nremove it")


def launched_processes() -> tuple[int, int] | None:
    """Returns how many processes torchrun or srun has started for this command, in all and on each node.

    None means that there is no launcher: Lightning starts the processes itself.

    Raises:
        UserError: another launcher has started them, such as a PyTorchJob of Kubernetes, or srun in an interactive job:
            Lightning does not detect it, and each process would train a model on its own.
    """
    if TorchElasticEnvironment.detect():
        started = TorchElasticEnvironment().world_size()
        return started, int(os.environ.get("LOCAL_WORLD_SIZE", started))
    if SLURMEnvironment.detect():
        # Only srun sets it: a script in a job of several tasks is one process.
        started = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
        return started, started // int(os.environ.get("SLURM_STEP_NUM_NODES", 1))
    if (tasks := os.environ.get("SLURM_STEP_NUM_TASKS", "1")) != "1":
        raise UserError(
            f"srun has started {tasks} processes, but Lightning ignores it in a job called bash or interactive\n"
            "give the step another name: srun --job-name train"
        )
    if "RANK" in os.environ and (count := os.environ.get("WORLD_SIZE", "1")) != "1":
        raise UserError(
            f"WORLD_SIZE is {count}, but neither torchrun nor srun is used\nstart the command with torchrun"
        )
    return None
