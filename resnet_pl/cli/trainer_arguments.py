"""Arguments of the Trainer that the command line adds to those of the configuration."""

from __future__ import annotations

import os
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ProgressBar as LightningProgressBar
from lightning.pytorch.profilers import PassThroughProfiler
from typing_extensions import override

from resnet_pl import checkpoint as ckpt
from resnet_pl.callbacks import EpochSeed, EpochSummary, ProgressBar
from resnet_pl.callbacks.progress import shows_progress
from resnet_pl.classifier import ImageClassifier
from resnet_pl.data import ImageDataModule
from resnet_pl.utils import as_list

if TYPE_CHECKING:
    from resnet_pl.cli.parser import ProjectCLI


class NullProfiler(PassThroughProfiler):
    """Profiler that does nothing. PassThroughProfiler enters 79 generator-based context managers per step."""

    NOTHING = nullcontext()

    @override
    def profile(  # pyright: ignore[reportIncompatibleMethodOverride] - any context manager will do
        self, action_name: str
    ) -> AbstractContextManager[None]:
        return self.NOTHING


def trainer_arguments(cli: ProjectCLI) -> dict[str, Any]:
    """Returns the arguments of the Trainer that differ from the configuration."""
    settings, fit = cli.config_init, cli.command_line.subcommand == "fit"
    config = settings["trainer"]
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high" if settings["tf32"] else "highest")
        torch.backends.cudnn.allow_tf32 = settings["tf32"]
    arguments: dict[str, Any] = {
        "plugins": [*as_list(config["plugins"]), ckpt.AtomicCheckpointIO()],
        "profiler": config["profiler"] or NullProfiler(),
        "logger": cli.module.loggers(cli, config["logger"]),
        "callbacks": [*as_list(config["callbacks"]), *_for_other_classes(cli), *cli.module.callbacks(cli)],
    }
    if config["enable_progress_bar"] is not False:
        has_bar = any(isinstance(callback, LightningProgressBar) for callback in arguments["callbacks"])
        arguments["enable_progress_bar"] = has_bar or shows_progress()
        # The bar comes last: the other callbacks print their first lines before it is drawn.
        arguments["callbacks"] += [EpochSummary()] if fit else []
        arguments["callbacks"] += [ProgressBar()] if shows_progress() and not has_bar else []
    if fit and config["benchmark"] is None:
        # Training batches have a fixed shape. The algorithm that cuDNN finds fastest differs between runs.
        arguments["benchmark"] = not config["deterministic"]
    sampler = "use_distributed_sampler"
    if not isinstance(cli.datamodule, ImageDataModule) and cli.command_line.get(f"trainer.{sampler}") is None:
        arguments[sampler] = True
    return arguments


def _for_other_classes(cli: ProjectCLI) -> list[Callback]:
    """Callbacks, and a warning, for modules and data that do not derive from the classes of this project."""
    if type(cli.model) is not ImageClassifier:
        # `TrainLog` also logs at the end of an epoch, `self.log` of a user's module does not.
        warnings.filterwarnings("default", message=".*smaller than the logging interval")
    is_own = isinstance(cli.datamodule, ImageDataModule)
    return [] if is_own else [EpochSeed(int(os.environ["PL_GLOBAL_SEED"]))]
