"""Callbacks and loggers. Each handles one concern and can be removed without affecting the others."""

from resnet_pl.callbacks.checkpoints import BestCheckpoint, LastCheckpoint, checkpoint_callbacks
from resnet_pl.callbacks.dashboard import Dashboard
from resnet_pl.callbacks.ema import EMA
from resnet_pl.callbacks.epoch_seed import EpochSeed
from resnet_pl.callbacks.error_warmup import ErrorWarmup
from resnet_pl.callbacks.finders import FinderResults
from resnet_pl.callbacks.freeze import Freeze
from resnet_pl.callbacks.graceful_stop import GracefulStop
from resnet_pl.callbacks.metrics_csv import MetricsCSV
from resnet_pl.callbacks.predictions import PredictionWriter
from resnet_pl.callbacks.progress import EpochSummary, ProgressBar
from resnet_pl.callbacks.resources import Estimate, OutOfMemory
from resnet_pl.callbacks.run_summary import RunSummary
from resnet_pl.callbacks.save_config import SaveConfig
from resnet_pl.callbacks.stop_on_nan import StopOnNaN
from resnet_pl.callbacks.tensorboard import TensorBoardCurves
from resnet_pl.callbacks.throughput import Throughput
from resnet_pl.callbacks.train_log import TrainLog
from resnet_pl.callbacks.whitening_init import WhiteningInit

__all__ = [
    "EMA",
    "BestCheckpoint",
    "Dashboard",
    "EpochSeed",
    "EpochSummary",
    "ErrorWarmup",
    "Estimate",
    "FinderResults",
    "Freeze",
    "GracefulStop",
    "LastCheckpoint",
    "MetricsCSV",
    "OutOfMemory",
    "PredictionWriter",
    "ProgressBar",
    "RunSummary",
    "SaveConfig",
    "StopOnNaN",
    "TensorBoardCurves",
    "Throughput",
    "TrainLog",
    "WhiteningInit",
    "checkpoint_callbacks",
]
