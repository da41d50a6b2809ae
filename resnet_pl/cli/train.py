"""The subcommand `fit`."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import TensorBoardLogger

from resnet_pl import checkpoint as ckpt
from resnet_pl.callbacks import BestCheckpoint, Dashboard, GracefulStop, LastCheckpoint
from resnet_pl.run_dir import class_name, get_init_args
from resnet_pl.utils import UserError, prog_name, rank_zero_print, run_on_rank_zero

if TYPE_CHECKING:
    from resnet_pl.cli.parser import ProjectCLI

# A resumed run must use the split of its checkpoint. Otherwise it would be validated on images it was trained on.
SPLIT = ("val_split", "test_split", "split_seed", "num_folds", "fold")


def add_arguments(parser: LightningArgumentParser, name: str) -> None:
    """Adds the options of `fit`."""
    parser.add_lightning_class_args(Dashboard, "dashboard")
    parser.add_class_arguments(LastCheckpoint, "checkpoint", skip={"folder"}, instantiate=False)


def run(cli: ProjectCLI) -> None:
    """Trains, then prints the next commands."""
    trainer, start = cli.trainer, 0
    if cli.checkpoint is not None:
        check_resume(cli.checkpoint, cli.plain_config)
        start = cli.checkpoint["global_step"]
    if cli.callback(WeightAveraging) is not None:
        # The average stays on the model's device at the start of training. On the CPU it would slow down each step.
        cli.model.to(trainer.strategy.root_device)
    stop = cli.callback(GracefulStop)
    try:
        with cli.removing_new_run():
            trainer.fit(cli.model, datamodule=cli.datamodule, weights_only=True)
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
    if trainer.global_step == start:
        rank_zero_print(
            f"Nothing to do: the run is already at epoch {trainer.current_epoch:,}, step {start:,}; "
            "raise --trainer.max_epochs or --trainer.max_steps"
        )
    run_on_rank_zero(_report, cli)


def _report(cli: ProjectCLI) -> None:
    best, last = (cli.run_folder / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
    saved = cli.callback(BestCheckpoint)
    if saved is not None and saved.score is not None:
        print(f"Best validation top-1: {saved.score:.2%}")
    if best.exists() or last.exists():
        print(f"Evaluate: {prog_name()} test --ckpt_path {shlex.quote(str(best if best.exists() else last))}")
    if any(isinstance(logger, TensorBoardLogger) for logger in cli.trainer.loggers):
        folder = shlex.quote(str(cli.run_folder.parent.parent))
        print(f"TensorBoard: tensorboard --logdir {folder} (http://localhost:6006)")


def _requeue() -> None:
    """Requeues this SLURM job; last.ckpt is already written."""
    job, array = os.environ["SLURM_JOB_ID"], os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else job
    code = subprocess.run(["scontrol", "requeue", job], check=False).returncode
    print(f"Requeued SLURM job {job}" if code == 0 else f"scontrol requeue {job} failed with code {code}", flush=True)


def check_resume(checkpoint: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Checks that a run can be resumed with a configuration.

    The learning rate, its schedule and the length of the run may change.

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
    optimizer, optimizer_now = model.get("optimizer") or {}, model_now.get("optimizer") or {}
    data, data_now = before.get("data") or {}, config.get("data") or {}
    pairs = [
        ("model.optimizer", optimizer.get("class_path"), optimizer_now.get("class_path")),
        ("model.decay_norm_and_bias", model.get("decay_norm_and_bias"), model_now.get("decay_norm_and_bias")),
    ]
    pairs += [
        (f"model.optimizer.{key}", was, get_init_args(optimizer_now).get(key, was))
        for key, was in get_init_args(optimizer).items()
        if key != "lr"
    ]
    if class_name(data) == class_name(data_now):
        pairs += [(f"data.{key}", get_init_args(data).get(key), get_init_args(data_now).get(key)) for key in SPLIT]
    for name, was, now in pairs if before else ():
        if was != now:
            raise UserError(
                f"{name}: the run was trained with {was} and cannot be resumed with {now}\n"
                "remove the option, or start a new run from these weights with --model.weights"
            )
