"""What happens beside training: the start report, dashboards, predictions, frozen layers, checkpoints."""

from resnet_pl.callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from resnet_pl.callbacks.dashboard import Dashboard
from resnet_pl.callbacks.exact_resume import ExactResume
from resnet_pl.callbacks.freeze import Freeze
from resnet_pl.callbacks.metrics_csv import MetricsCSV
from resnet_pl.callbacks.precise_bn import PreciseBN
from resnet_pl.callbacks.predictions import PredictionWriter
from resnet_pl.callbacks.progress import EpochLine, ProgressBar, StartReport
from resnet_pl.callbacks.throughput import Throughput
from resnet_pl.callbacks.whitening_init import WhitenStem

__all__ = [
    "BestCheckpoint",
    "Dashboard",
    "EpochLine",
    "ExactResume",
    "Freeze",
    "LastCheckpoint",
    "MetricsCSV",
    "PreciseBN",
    "PredictionWriter",
    "ProgressBar",
    "StartReport",
    "Throughput",
    "WhitenStem",
]
