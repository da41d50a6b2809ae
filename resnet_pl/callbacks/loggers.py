"""Hyperparameters and images for all loggers: TensorBoard, Weights & Biases, MLflow, Comet and a user's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakSet

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CometLogger, CSVLogger, Logger, MLFlowLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn

from resnet_pl.callbacks.metrics_csv import MetricsCSV
from resnet_pl.callbacks.tensorboard import TensorBoardCurves
from resnet_pl.utils import first_line

# Loggers that have raised an exception. They get no images: each attempt can wait minutes for a server.
FAILED: WeakSet[Logger] = WeakSet()


def log_hyperparameters(trainer: Trainer, config: dict[str, Any]) -> None:
    """Passes the configuration to the loggers; TensorBoard and metrics.csv have files of their own for it."""
    for logger in trainer.loggers:
        if not isinstance(logger, TensorBoardLogger | MetricsCSV):
            _call(logger, "hyperparameters", _log_hyperparameters, logger, config)


def _log_hyperparameters(logger: Any, config: dict[str, Any]) -> None:
    # MLflow refuses other values, such as the max_epochs of a run that is resumed.
    if not isinstance(logger, MLFlowLogger) or not logger.experiment.get_run(logger.run_id).data.params:
        logger.log_hyperparams(config)


def image_loggers(trainer: Trainer) -> list[Logger]:
    """Returns the loggers that take images, except after an error; none in processes that do not log."""
    loggers = trainer.loggers if trainer.is_global_zero else []
    kinds = TensorBoardLogger | MLFlowLogger | CometLogger
    taking = [logger for logger in loggers if isinstance(logger, kinds) or hasattr(logger, "log_image")]
    return [logger for logger in taking if logger not in FAILED]


def log_image(trainer: Trainer, tag: str, image: np.ndarray, step: int) -> None:
    """Logs an image to all loggers that take images.

    Args:
        trainer: the Trainer.
        tag: name of the image, such as `val/confusion`.
        image: `(H, W, 3)`, uint8.
        step: optimizer step.
    """
    for logger in image_loggers(trainer):
        _call(logger, tag, _log_image, logger, tag, image, step)


def _log_image(logger: Any, tag: str, image: np.ndarray, step: int) -> None:
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(tag, image, step, dataformats="HWC")
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.log_image(logger.run_id, image, key=tag, step=step)
    elif isinstance(logger, CometLogger):
        logger.experiment.log_image(image, name=tag, step=step)
    else:  # the method of WandbLogger
        logger.log_image(tag, [image], step=step)


def _call(logger: Logger, what: str, function: Callable[..., Any], *args: Any) -> None:
    """Calls a function of a logger. An error, such as one of the network, is a warning and does not end a training."""
    try:
        function(*args)
    except Exception as error:
        FAILED.add(logger)
        rank_zero_warn(f"{type(logger).__name__}: no {what} and no further images: {first_line(error)}")


def logger_versions(trainer: Trainer) -> list[list[Any]]:
    """Returns class name and version of the loggers that a resumed run can continue.

    The version of a logger is the id of its run: W&B's id, MLflow's run id, Comet's experiment key. CSVLogger is
    excluded, because it deletes its file when it is given the version again. The loggers of the run folder need none.
    """
    others = CSVLogger | MetricsCSV | TensorBoardCurves
    loggers = [logger for logger in trainer.loggers if not isinstance(logger, others)]
    return [[type(logger).__name__, logger.version] for logger in loggers if isinstance(logger.version, str | int)]
