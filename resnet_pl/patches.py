"""What Lightning and jsonargparse get wrong for this job, mended in one place."""

from __future__ import annotations

import inspect
import logging
import os
import re
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pydoc import locate
from typing import Any
from unittest.mock import patch

import jsonargparse._typehints
from jsonargparse import ArgumentParser, class_from_function
from jsonargparse._actions import _ActionHelpClassPath
from jsonargparse._formatters import DefaultHelpFormatter
from jsonargparse._typehints import ActionTypeHint, get_all_subclass_paths
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

from resnet_pl import models
from resnet_pl.errors import UserError
from resnet_pl.foreseen import foreseen

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
    """Inside the block the first Ctrl-C ends a training after the running batch, as SIGTERM does.

    Lightning would stop inside the batch, which is then lost when the run goes on. A second Ctrl-C stops at once. The
    exit codes are those that shells expect, 128 and the signal's number. Several processes keep Lightning's way.
    """
    stopped: list[int] = []

    def on_interrupt(number: int, frame: Any) -> None:
        # Before and after its loop Lightning leaves SIGTERM alone, which would then end the process without a word.
        if stopped or signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            raise KeyboardInterrupt
        stopped.append(number)
        os.kill(os.getpid(), signal.SIGTERM)

    mendable = trainer.world_size == 1 and threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, on_interrupt) if mendable else None
    try:
        yield
    except SIGTERMException as end:
        raise SystemExit(130 if stopped else 143) from end
    finally:
        if mendable:
            signal.signal(signal.SIGINT, before)
