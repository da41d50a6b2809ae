"""The subcommand `fit`."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Collection, Mapping
from inspect import signature
from pathlib import Path
from pydoc import locate
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, WeightAveraging
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from resnet_pl import checkpoint as ckpt
from resnet_pl.callbacks import (
    BestCheckpoint,
    Dashboard,
    Estimate,
    FinderResults,
    GracefulStop,
    OutOfMemory,
    RunSummary,
    SaveConfig,
    StopOnNaN,
    Throughput,
    checkpoint_callbacks,
)
from resnet_pl.classifier import ImageClassifier
from resnet_pl.cli.run_loggers import training_loggers
from resnet_pl.evaluation.metrics import LOGGED
from resnet_pl.evaluation.multi_label import MULTI_LABEL_LOGGED
from resnet_pl.run_dir import TOP1, class_name, get_init_args
from resnet_pl.utils import UserError, prog_name, rank_zero_print, run_on_rank_zero

if TYPE_CHECKING:
    from resnet_pl.cli.parser import ProjectCLI

# A resumed run must use the split of its checkpoint. Otherwise it would be validated on images it was trained on.
SPLIT = ("val_split", "test_split", "split_seed", "num_folds", "fold", "group_pattern", "group_column")


def add_arguments(parser: LightningArgumentParser) -> None:
    """Adds the options of `fit`."""
    parser.add_lightning_class_args(Dashboard, "dashboard")
    parser.add_function_arguments(checkpoint_callbacks, "checkpoint", skip={"folder"})


def loggers(cli: ProjectCLI, given: Any) -> list[Logger] | bool:
    """Returns the loggers of the run folder and those of the configuration."""
    return training_loggers(given, cli.run_folder, cli.checkpoint["global_step"] if cli.checkpoint else 0)


def callbacks(cli: ProjectCLI) -> list[Callback]:
    """Returns the callbacks of every run, without those of the model."""
    found: list[Callback] = [SaveConfig(cli.run_folder, cli.plain_config), FinderResults()]
    summary = RunSummary(cli.run_folder, cli.command_line.args, [Path(file) for file in cli.command_line.files])
    found += [summary, Throughput(), StopOnNaN(), Estimate(), OutOfMemory()]
    if cli.config_init["trainer"]["enable_checkpointing"] is not False:
        folder = cli.run_folder / "checkpoints"
        found += [*checkpoint_callbacks(folder, **cli.config_init["checkpoint"]), GracefulStop(folder)]
    return found


def run(cli: ProjectCLI) -> None:
    """Trains, then prints the next commands."""
    trainer, start = cli.trainer, 0
    if cli.checkpoint is not None:
        check_resume(cli.checkpoint, cli.plain_config)
        _note_new_length(cli.stored_config, cli.plain_config)
        start = cli.checkpoint["global_step"]
    else:
        _note_kept_arguments(cli)
    if cli.callback(WeightAveraging) is not None:
        # The average stays on the model's device at the start of training. On the CPU it would slow down each step.
        cli.model.to(trainer.strategy.root_device)
    stop = cli.callback(GracefulStop)
    try:
        with cli.removing_new_run():
            check_monitor(cli)
            trainer.fit(cli.model, datamodule=cli.datamodule, weights_only=True)
        trainer.ckpt_path = None  # a test with this Trainer must not load the checkpoint again
    except SystemExit as end:
        # Lightning's exit code is 1 after Ctrl-C and 0 after SIGTERM.
        received = stop.received if stop is not None else []
        last = cli.run_folder / "checkpoints" / "last.ckpt"
        if last.exists():
            rank_zero_print(f"Interrupted. Resume with: {prog_name()} fit --ckpt_path {shlex.quote(str(last))}")
        else:
            rank_zero_print("Interrupted. No checkpoint was saved.")
        if {*received} - {signal.SIGINT, signal.SIGTERM}:
            run_on_rank_zero(_requeue)
        interrupted = signal.SIGINT in received or (not received and end.code)
        raise SystemExit(128 + (signal.SIGINT if interrupted else signal.SIGTERM)) from end
    if trainer.global_step == start and not trainer.should_stop:
        rank_zero_print(
            f"Nothing to do: the run is already at epoch {trainer.current_epoch:,}, step {start:,}; "
            "raise --trainer.max_epochs or --trainer.max_steps"
        )
    if cli.fast_dev_run:
        cli.remove_new_run()
        rank_zero_print("fast_dev_run: no files are saved")
    else:
        run_on_rank_zero(_report, cli)


def _note_kept_arguments(cli: ProjectCLI) -> None:
    """Prints a note if an optimizer given as an option has values that were chosen for the one of the files."""
    optimizer = get_init_args(cli.plain_config.get("model")).get("optimizer")
    before, now = class_name(cli.command_line.in_files("model.optimizer")) or "SGD", class_name(optimizer)
    cls = locate(optimizer["class_path"]) if isinstance(optimizer, Mapping) and before != now else None
    defaults = {name: each.default for name, each in signature(cls).parameters.items()} if callable(cls) else {}
    for name in ("lr", "weight_decay"):
        value, option = get_init_args(optimizer).get(name), f"model.optimizer.{name}"
        given = isinstance(cli.command_line.get(option), str)  # as an option; files have numbers
        if not given and isinstance(default := defaults.get(name), float | int) and value != default:
            rank_zero_print(f"note: {now} has {name} {value}, as {before} before; its default is {default}: --{option}")


def _note_new_length(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Prints a note if a run is resumed with another length and the learning rate depends on the length."""
    schedule = get_init_args(now.get("model")).get("schedule") or {}
    if schedule.get("shape") != "cosine" and schedule.get("unit") != "run":
        return
    for key in ("max_epochs", "max_steps") if before else ():
        was, length = ((config.get("trainer") or {}).get(key) for config in (before, now))
        if was != length:
            rank_zero_print(
                f"note: trainer.{key} was {was} and is now {length}; the schedule has the new length, "
                "so the learning rate may rise first"
            )


def check_monitor(cli: ProjectCLI) -> None:
    """Raises UserError if nothing logs the metric that chooses best.ckpt; a user's callback or module may log more."""
    if type(cli.model) is not ImageClassifier or cli.config_init["trainer"]["callbacks"]:
        return
    several = getattr(cli.datamodule, "multi_label", None) or cli.model.hparams["multi_label"]
    # The thresholds of `exact_match` are chosen on the images of the validation: only a test has it.
    logged = [name for name in MULTI_LABEL_LOGGED if name != "exact_match"] if several else LOGGED
    names = [f"val/{name}" for name in (*logged, *cli.model.own_metrics)]
    monitor = cli.config_init["checkpoint"]["monitor"]
    if monitor not in names and not (several and monitor == TOP1):
        raise UserError(f"checkpoint.monitor: {monitor} is not logged in the validation\nuse one of {', '.join(names)}")


def _report(cli: ProjectCLI) -> None:
    # A resumed run that reaches `max_steps` also has the message of the stop before.
    ended = not cli.trainer.should_stop or cli.trainer.global_step == cli.trainer.max_steps
    for callback in () if ended else cli.callbacks:
        if isinstance(callback, EarlyStopping) and callback.stopping_reason_message and not callback.verbose:
            print(callback.stopping_reason_message)
    best, last = (cli.run_folder / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
    saved = cli.callback(BestCheckpoint)
    if saved is not None and saved.score is not None:
        name = saved.monitor
        print(f"Best validation top-1: {saved.score:.2%}" if name == TOP1 else f"Best {name}: {saved.score:.4f}")
    if best.exists() or last.exists():
        print(f"Evaluate: {prog_name()} test --ckpt_path {shlex.quote(str(best if best.exists() else last))}")
    for folder in {logger.save_dir for logger in cli.trainer.loggers if isinstance(logger, TensorBoardLogger)}:
        print(f"TensorBoard: tensorboard --logdir {shlex.quote(str(folder))}, then open http://localhost:6006")


def _requeue() -> None:
    """Requeues this SLURM job; last.ckpt is already written."""
    job, array = os.environ["SLURM_JOB_ID"], os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else job
    code = subprocess.run(["scontrol", "requeue", job], check=False).returncode
    print(f"Requeued SLURM job {job}" if code == 0 else f"scontrol requeue {job} failed with code {code}", flush=True)


def _differences(name: str, before: Any, now: Any, free: Collection[str] = ()) -> list[tuple[str, Any, Any]]:
    """Returns (key, value before, value now) of a class or function and of its arguments, except the free ones.

    An argument that is missing now has its default.
    """
    path, path_now = (
        section.get("class_path") if isinstance(section, Mapping) else section for section in (before, now)
    )
    arguments, arguments_now = get_init_args(before), get_init_args(now)
    return [
        (name, path, path_now),
        *((f"{name}.{key}", was, arguments_now.get(key, was)) for key, was in arguments.items() if key not in free),
    ]


def check_resume(checkpoint: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Checks that a run can be resumed with a configuration.

    The learning rate, its `schedule` and the length of the run may change.

    Args:
        checkpoint: the checkpoint.
        config: the configuration of the resumed run.

    Raises:
        UserError: another value has changed, or the checkpoint has no optimizer state.
    """
    if not checkpoint.get("optimizer_states"):
        raise UserError(
            "the checkpoint has no optimizer state to resume from\n"
            "start a new run from its weights with --model.weights"
        )
    before = checkpoint[ckpt.METADATA_KEY].get("config") or {}
    model, model_now = get_init_args(before.get("model")), get_init_args(config.get("model"))
    data, data_now = before.get("data") or {}, config.get("data") or {}
    fixed = ("decay_norm_and_bias", "lr_scheduler_interval", "class_weights")
    pairs: list[tuple[str, Any, Any]] = [(f"model.{key}", model.get(key), model_now.get(key)) for key in fixed]
    # The checkpoint holds the class weights, also those of a loss.
    loss, loss_now = (get_init_args(each.get("loss")) for each in (model, model_now))
    pairs.append(("model.loss.weight", loss.get("weight"), loss_now.get("weight")))
    # The state of an optimizer has the memory layout of the weights.
    layout = model_now.get("channels_last")
    pairs.append(("model.channels_last", model.get("channels_last", layout), layout))
    # The state of a scheduler holds its arguments and the learning rate; that of `Schedule` does not.
    scheduler, free = model.get("lr_scheduler"), {"lr"} if model.get("lr_scheduler") is None else set()
    pairs += _differences("model.lr_scheduler", scheduler, model_now.get("lr_scheduler"))
    if model.get("optimizer") and model_now.get("optimizer"):  # a function that was given in Python is not described
        pairs += _differences("model.optimizer", model["optimizer"], model_now["optimizer"], free)
    if not {"backbone", "optimizer", "lr_scheduler"} & model.keys():
        # Not an ImageClassifier: the state of the optimizer may depend on any argument.
        pairs += [(f"model.{key}", value, model_now.get(key)) for key, value in model.items()]
    if class_name(data) == class_name(data_now):
        pairs += [(f"data.{key}", get_init_args(data).get(key), get_init_args(data_now).get(key)) for key in SPLIT]
    for name, was, now in pairs if before else ():
        if was != now:
            raise UserError(
                f"{name}: the run was trained with {was} and cannot be resumed with {now}\n"
                "remove the option, or start a new run from these weights with --model.weights"
            )
