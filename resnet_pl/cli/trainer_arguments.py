"""Arguments of the Trainer that the command line adds to those of the configuration."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar as LightningProgressBar
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.profilers import PassThroughProfiler
from typing_extensions import override

from resnet_pl import checkpoint as ckpt
from resnet_pl.callbacks import EpochSeed, EpochSummary, ProgressBar
from resnet_pl.callbacks.progress import shows_progress
from resnet_pl.classifier import ImageClassifier
from resnet_pl.cli.run_loggers import no_loggers
from resnet_pl.cli.trainer_checks import launched_processes
from resnet_pl.data import ImageDataModule
from resnet_pl.utils import as_list

if TYPE_CHECKING:
    from resnet_pl.cli.parser import ProjectCLI


# The defaults of Lightning, which leave the number open.
OPEN = {"devices": "auto", "num_nodes": 1}


class NullProfiler(PassThroughProfiler):
    """Profiler that does nothing. PassThroughProfiler enters 79 generator-based context managers per step."""

    NOTHING = nullcontext()

    @override
    def profile(  # pyright: ignore[reportIncompatibleMethodOverride] - any context manager will do
        self, action_name: str
    ) -> AbstractContextManager[None]:
        return self.NOTHING


class ConfigureModel(Callback):
    """Fits the head to the data before Lightning's StochasticWeightAveraging copies the model, in its own `setup`."""

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        pl_module.configure_model()


def trainer_arguments(cli: ProjectCLI) -> dict[str, Any]:
    """Returns the arguments of the Trainer that differ from the configuration."""
    settings, fit = cli.config_init, cli.command_line.subcommand == "fit"
    config = settings["trainer"]
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high" if settings["tf32"] else "highest")
        torch.backends.cudnn.allow_tf32 = settings["tf32"]
    sampler, seeds = "use_distributed_sampler", list[Callback]()
    if not isinstance(cli.datamodule, ImageDataModule):
        # Unlike the data modules of this project, others do not seed their random numbers, and leave it to Lightning to
        # distribute the images.
        seeds.append(EpochSeed(int(os.environ["PL_GLOBAL_SEED"])))
        if not any(option.startswith(f"--trainer.{sampler}") for option in cli.command_line.options):
            cli.config["trainer"][sampler] = config[sampler] = True
    configured = as_list(config["callbacks"])
    averages = any(isinstance(callback, StochasticWeightAveraging) for callback in configured)
    if averages and isinstance(cli.model, ImageClassifier):
        configured = [ConfigureModel(), *configured]
    arguments: dict[str, Any] = {
        "plugins": [*as_list(config["plugins"]), ckpt.AtomicCheckpointIO()],
        "profiler": config["profiler"] or NullProfiler(),
        "logger": getattr(cli.module, "loggers", no_loggers)(cli, config["logger"]),
        "callbacks": [*configured, *seeds, *cli.module.callbacks(cli)],
        **_processes(config, cli.command_line.subcommand),
    }
    if config["enable_progress_bar"] is not False:
        has_bar = any(isinstance(callback, LightningProgressBar) for callback in arguments["callbacks"])
        arguments["enable_progress_bar"] = has_bar or shows_progress()
        # The bar comes last: the other callbacks print their first lines before it is drawn.
        arguments["callbacks"] += [EpochSummary()] if fit else []
        arguments["callbacks"] += [ProgressBar()] if shows_progress() and not has_bar else []
    if cli.command_line.trains and config["benchmark"] is None:
        # Training batches have a fixed shape. The algorithm that cuDNN finds fastest differs between runs.
        arguments["benchmark"] = not config["deterministic"]
    return arguments


def _processes(config: Mapping[str, Any], subcommand: str) -> dict[str, int]:
    """The number of devices and nodes, where the configuration leaves it open and Lightning's choice does not fit.

    Of the processes that torchrun or srun has started, Lightning would let each train a model of its own on one device.
    `doctor` measures one process, and a few images for `predict` do not need several.
    """
    started, per_node = launched_processes() or (1, 1)
    found = {"devices": per_node, "num_nodes": started // per_node} if started > 1 else {}
    if subcommand == "doctor" or (subcommand == "predict" and started == 1):
        found = {"devices": 1}
    return {name: number for name, number in found.items() if config[name] == OPEN[name]}
