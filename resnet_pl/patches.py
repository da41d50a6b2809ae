"""What Lightning and jsonargparse get wrong for this job, mended in one place."""

from __future__ import annotations

import inspect
import logging
import re
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pydoc import locate
from typing import Any
from unittest.mock import patch

import jsonargparse._typehints
import torch
from jsonargparse import ArgumentParser, class_from_function
from jsonargparse._actions import _ActionHelpClassPath
from jsonargparse._formatters import DefaultHelpFormatter
from jsonargparse._typehints import ActionTypeHint, get_all_subclass_paths
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

from resnet_pl import models
from resnet_pl.cli.foreseen import foreseen
from resnet_pl.utils import UserError

NETS = [name for name in models.__all__ if name.startswith(("resnet", "plain", "cifar"))]
# Words of warnings that nobody can act on here.
NOISE = [
    "LeafSpec",
    r"isinstance\(treespec",
    "does not have many workers",
    "configure_model.*shard",
    "sync_dist",
    "across ranks is zero",
    "exists and is not empty",
    "smaller than the logging interval",
    "is not resumable",
    "in eval mode at the start of training",
    "callbacks used to create the checkpoint need",
    "The dirpath has changed",
    "monitor='val/top1'.* could not find",
]


@contextmanager
def short_names() -> Iterator[None]:
    """Inside the block a builder of `resnet_pl.models` can be named by its last word, and `--help` tells such names.

    jsonargparse finds names and help of classes alone, and our nets are built by functions. Its help would list every
    class of torch.nn, and repeat Lightning's markup. It also takes null for a value of any type.
    """
    find, help_of = jsonargparse._typehints.resolve_class_path_by_name, _ActionHelpClassPath.resolve_help_type
    text_of = DefaultHelpFormatter._get_help_string
    validate, check_value = ArgumentParser.validate, ArgumentParser._check_value_key

    def find_ours_first(cls: Any, name: str) -> str:
        return f"resnet_pl.models.{name}" if name in models.__all__ else find(cls, name)

    def help_of_builders(self: Any, value: str | None, option: str) -> type:
        if value is None and self.dest == "model.backbone.help":
            raise TypeError(f"{option} needs the name of a net\nit is one of {', '.join(NETS)}, or a path")
        named = locate(find_ours_first(self._help_types, value)) if value else None
        if not inspect.isfunction(named) or "return" not in named.__annotations__:
            return help_of(self, value, option)
        # Under the function's own name, which the help shows.
        built = class_from_function(named)
        built.__module__, built.__qualname__ = named.__module__, named.__name__
        return built

    def names_alone(self: ActionTypeHint) -> str:
        paths = get_all_subclass_paths(self._typehint, closed_types=False)
        if "torch.nn.Module" in paths:
            paths = NETS if self.dest.endswith("backbone") else []
        return f", by name: {', '.join(path.rsplit('.', 1)[-1] for path in paths)}" if paths else ""

    def without_markup(self: Any, action: Any) -> str:
        return re.sub(r":\w+:`~?(?:\w+\.)*(\w+)`|``", r"\1", text_of(self, action))

    def with_nulls(self: ArgumentParser, *args: Any, **kwargs: Any) -> None:
        try:
            validate(self, *args, **{**kwargs, "skip_unset": False})
        except (TypeError, KeyError):
            # What is missing is null too, and told better.
            validate(self, *args, **kwargs)
            raise

    def but_lists(self: ArgumentParser, action: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        # Lists of words on the command line are null where there are none.
        return value if value is None and action.nargs == "+" else check_value(self, action, value, *args, **kwargs)

    with (
        patch.object(ArgumentParser, "validate", with_nulls),
        patch.object(ArgumentParser, "_check_value_key", but_lists),
        patch.object(jsonargparse._typehints, "resolve_class_path_by_name", find_ours_first),
        patch.object(_ActionHelpClassPath, "resolve_help_type", help_of_builders),
        patch.object(ActionTypeHint, "extra_help", names_alone),
        patch.object(DefaultHelpFormatter, "_get_help_string", without_markup),
    ):
        yield


class Unprofiled(PassThroughProfiler):
    """No profiler, at no cost: Lightning's own makes a generator for each of the hundred names of a step."""

    NOTHING = nullcontext()

    def profile(self, action_name: str) -> AbstractContextManager[None]:
        """See Lightning's Profiler."""
        return self.NOTHING


def average_on_device(trainer: Trainer) -> None:
    """Keeps averages of the weights where these are trained, unless a device is given.

    Lightning's default is where the net lies before it is moved: on the processor, to which every step then goes.
    """
    for average in trainer.callbacks:
        if isinstance(average, WeightAveraging) and average._device is None:
            average._device = torch.device(trainer.strategy.root_device.type)


@contextmanager
def told_plainly() -> Iterator[None]:
    """Turns what torch, Lightning and the user's own code raise into our errors, where the user can put it right."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if told := foreseen(error):
            raise UserError(told) from error
        if isinstance(error, MisconfigurationException):
            raise UserError(f"trainer: {str(error).splitlines()[0]}") from error
        raise


def quieten() -> None:
    """Leaves out what Lightning says at every start and nobody can act on."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in NOISE:
        warnings.filterwarnings("ignore", message=f".*{message}.*")
    threading.excepthook = _on_thread_error


def _on_thread_error(args: threading.ExceptHookArgs) -> None:
    # TensorBoard's writer hands its error, such as a full disk, to the main thread, which tells it.
    if type(args.thread).__name__ != "_AsyncWriterThread":
        threading.__excepthook__(args)


@contextmanager
def stopping_between_batches(trainer: Trainer) -> Iterator[None]:
    """Inside the block Ctrl-C, SIGTERM and SLURM's requeue signal end a training after the running batch.

    Lightning would stop at Ctrl-C inside the batch, which is then lost when the run goes on; at SIGTERM one of several
    processes would wait for the others wherever they are; and what SLURM makes it write is found by no run, or by
    another. A second Ctrl-C stops at once. The exit codes are those that shells expect, 128 and the signal's number.
    """
    noted: list[int] = []
    connector = trainer._signal_connector
    requeue = connector._slurm_sigusr_handler_fn

    def note(number: int, frame: Any) -> None:
        noted.append(number)
        connector.received_sigterm = trainer.world_size == 1

    def on_interrupt(number: int, frame: Any) -> None:
        # What was learnt is being written.
        if trainer.interrupted:
            return
        # Before and after its loop Lightning looks at no signal.
        if noted or signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            raise KeyboardInterrupt
        note(number, frame)

    def agree() -> None:
        """Lightning's every process calls this before each batch: all stop where one was told to."""
        told = torch.tensor(float(bool(noted)), device=trainer.strategy.root_device)
        torch.distributed.all_reduce(told)
        if told:
            raise SIGTERMException

    connector._sigterm_notifier_fn = connector._slurm_sigusr_handler_fn = note
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = agree
    mendable = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, on_interrupt) if mendable else None
    try:
        yield
    except SIGTERMException as end:
        if {*noted} - {signal.SIGINT, signal.SIGTERM}:
            # By now last.ckpt is written.
            with patch.object(trainer, "save_checkpoint"):
                requeue(noted[0], None)
        raise SystemExit(130 if signal.SIGINT in noted else 143) from end
    finally:
        if mendable:
            signal.signal(signal.SIGINT, before)


@contextmanager
def ending_at_once(trainer: Trainer) -> Iterator[None]:
    """Inside the block SIGTERM ends an evaluation as it ends any program, and Ctrl-C is a KeyboardInterrupt.

    Lightning would note SIGTERM until a batch that may never come, and leave with codes 0 and 1.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as end:
        # It ignores any further one, for good.
        signal.signal(signal.SIGINT, before)
        raise KeyboardInterrupt from end


def let_go() -> None:
    """Ends what several processes used to talk to each other; for the end of a command that all of them have finished.

    Lightning does it for NCCL alone. A thread of gloo's that still holds a tensor while Python ends aborts the process,
    which torchrun takes for a failure, and starts a training that is finished once more.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
