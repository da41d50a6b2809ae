"""The loggers of a run: in its folder, and those of the configuration, which continue after a resume and in `test`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities import rank_zero_warn

from resnet_pl.callbacks import MetricsCSV, TensorBoardCurves
from resnet_pl.config import instantiate
from resnet_pl.data import ImageDataModule
from resnet_pl.import_paths import check_objects
from resnet_pl.run_dir import class_name, get_init_args, read_sessions, run_dir_of
from resnet_pl.utils import as_list, first_line

if TYPE_CHECKING:
    from resnet_pl.cli.parser import ProjectCLI

# Arguments by which a logger continues a run: of WandbLogger and TensorBoardLogger, MLFlowLogger, and CometLogger.
VERSION_ARGUMENTS = ("version", "run_id", "experiment_key")
# By default, MLflow tries to reach its server for four minutes and W&B for 90 seconds.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "WANDB_INIT_TIMEOUT": "20"}


class LogAtStep(Callback):
    """Logs the metrics of a test at the step of the checkpoint; Lightning's step counts from 0.

    Args:
        step: optimizer steps of the checkpoint.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs `step`, which Lightning passes to the loggers as the x value and not as a metric."""
        pl_module.log("step", float(self.step), sync_dist=True)


def no_loggers(cli: ProjectCLI, given: Any) -> list[Logger]:
    """Returns a stand-in for the loggers: modules may use `self.logger` in all stages."""
    return [DummyLogger()]


def training_loggers(given: Any, run: Path, start: int) -> list[Logger] | bool:
    """Returns the loggers of `fit`: metrics.csv, and TensorBoard or the given ones.

    Args:
        given: value of `trainer.logger`.
        run: run folder.
        start: optimizer step that the run is resumed from. The steps after it are repeated: the loggers in the folder
            drop or hide the earlier values.
    """
    if given is False:
        return False
    chosen = [TensorBoardCurves()] if given in (None, True) else as_list(given)
    return [*_in_folder(chosen, run, start), MetricsCSV(run, start)]


def test_loggers(cli: ProjectCLI, given: Any) -> list[Logger]:
    """Returns the loggers of the run that the checkpoint belongs to, for the metrics of `test`.

    There are none if the metrics are not those of the checkpoint alone, such as with `--tta`, or if the results are
    written elsewhere. metrics.csv is a table of the training. A logger that cannot be used is a warning.

    Args:
        cli: the command.
        given: value of `trainer.logger`; by default the loggers are those of the training.
    """
    run = run_dir_of(cli.command_line.checkpoint) if cli.command_line.checkpoint else None
    if given is False or run is None or cli.output.resolve() != run.resolve():
        return []
    # A resumed run hides later steps in the event files of its folder, and this step may be one of them.
    folder = run / "test"
    if given not in (None, True):
        return _in_folder(as_list(given), folder)
    used = (cli.stored_config.get("trainer") or {}).get("logger")
    if used is False or not _is_plain_test(cli):
        return []
    if used in (None, True):
        return _in_folder([TensorBoardCurves()], folder)
    entries = [entry for entry in continued(used, run) if _continues(entry)]
    built = [_build(entry, run) for entry in entries]
    return _in_folder([logger for logger in built if logger is not None], folder)


def continued(given: Any, run: Path) -> Any:
    """Returns the value of `trainer.logger` with the versions of the loggers in the last sessions of a run.

    With the version, a logger continues its run of these sessions instead of starting another.
    """
    versions: dict[str, list[Any]] = {}
    with suppress(OSError, ValueError, TypeError, AttributeError):  # sessions.json is missing or damaged
        for session in read_sessions(run):
            last: dict[str, list[Any]] = {}
            for name, version in session.get("loggers", []):
                last.setdefault(name, []).append(version)
            versions |= last
    if given is None or isinstance(given, bool):
        return given
    return [_with_version(entry, versions) for entry in as_list(given) if not isinstance(entry, str)]


def _with_version(entry: Any, versions: Mapping[str, list[Any]]) -> Any:
    """Sets the version of a logger, unless the user has; the n-th logger of a class gets its n-th version."""
    known, entry = versions.get(class_name(entry["class_path"])), deepcopy(entry)
    init_args = entry.get("init_args") or {}
    name = next((name for name in VERSION_ARGUMENTS if name in init_args), None)
    if known and name and all(init_args.get(key) is None for key in (name, "id")):
        init_args[name] = known.pop(0)
        if init_args.get("resume", "") is None:
            init_args["resume"] = "allow"  # the default of WandbLogger, which jsonargparse replaces by that of wandb
    return entry


def _continues(entry: Mapping[str, Any]) -> bool:
    """Whether a logger has no version, or a known one: with an unknown one it would start another run for a test."""
    versions = [value for name, value in get_init_args(entry).items() if name in VERSION_ARGUMENTS]
    return not versions or any(version is not None for version in versions)


def _is_plain_test(cli: ProjectCLI) -> bool:
    """Whether the test has no options that lead to other metrics: they would have the same names."""
    settings, now = cli.config, cli.plain_config

    def conditions(config: Mapping[str, Any]) -> list[Any]:
        data, precision = config.get("data"), (config.get("trainer") or {}).get("precision")
        arguments = get_init_args(data)
        keys = ("root", "image_size") if isinstance(cli.datamodule, ImageDataModule) else sorted(arguments)
        return [class_name(data), *(arguments.get(key) for key in keys), precision]

    options = settings["ensemble"], settings["precise_bn"], settings["trainer"]["limit_test_batches"]
    return settings["tta"] == "none" and not any(options) and conditions(cli.stored_config) == conditions(now)


def _in_folder(loggers: list[Any], run: Path, start: int = 0) -> list[Logger]:
    """Replaces a TensorBoardCurves without a folder by one in the run folder."""
    return [
        TensorBoardCurves(run, start) if isinstance(logger, TensorBoardCurves) and logger.run is None else logger
        for logger in loggers
    ]


def _build(entry: Mapping[str, Any], run: Path) -> Logger | None:
    """Builds and starts a logger of an earlier session. An error, such as one of the network, is a warning."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--logger", type=Logger)
    with _little_patience():
        try:
            parsed = parser.parse_object({"logger": entry})
            check_objects(parsed.as_dict(), run)
            logger = instantiate(parser, parsed)["logger"]
            if not isinstance(logger, TensorBoardCurves):  # it has no folder yet
                _ = getattr(logger, "experiment", None)
        except Exception as error:
            rank_zero_warn(f"{class_name(entry)}: metrics of this test not logged: {first_line(error)}")
            return None
    # This logger deletes its file when it starts again.
    return None if isinstance(logger, CSVLogger) else logger


@contextmanager
def _little_patience() -> Iterator[None]:
    """Makes loggers give up after seconds if a server cannot be reached, unless the user has set these variables."""
    added = [name for name in PATIENCE if name not in os.environ]
    os.environ |= {name: PATIENCE[name] for name in added}
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
