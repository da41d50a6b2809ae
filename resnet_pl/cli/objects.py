"""Subcommands with a model, data or callbacks that were built in Python; `api.py` has the functions for users."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from contextvars import copy_context
from functools import cached_property
from types import ModuleType
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser
from typing_extensions import override

from resnet_pl._renamed import upgrade_arguments
from resnet_pl.callbacks import BestCheckpoint
from resnet_pl.cli import evaluate, train
from resnet_pl.cli.arguments import TRAINER_DEFAULTS
from resnet_pl.cli.errors import silence_warnings
from resnet_pl.cli.parser import ProjectCLI
from resnet_pl.command_line import CommandLine
from resnet_pl.data.loaders import as_data_module
from resnet_pl.plain_types import describe
from resnet_pl.run_dir import BUILT_IN_PYTHON
from resnet_pl.utils import UserError, as_list, import_from_working_folder

KINDS: dict[str, type] = {"model": LightningModule, "data": LightningDataModule}


def fit_objects(args: Sequence[str], model: Any, data: Any, callbacks: Sequence[Callback]) -> dict[str, Any]:
    """Trains, and returns the attributes of `api.Run`."""
    cli = _run(train, ["fit", *args], model, data, callbacks)
    best = cli.callback(BestCheckpoint)
    return {
        "folder": cli.run_folder,
        "metrics": {key: float(value) for key, value in cli.trainer.callback_metrics.items()},
        "best": None if best is None else best.score,
        "trainer": cli.trainer,
        "model": cli.model,
        "data": cli.datamodule,
    }


def test_objects(args: Sequence[str], model: Any, data: Any, callbacks: Sequence[Callback]) -> dict[str, Any]:
    """Tests, and returns the results."""
    return _run(evaluate, ["test", *args], model, data, callbacks).results


def _run(module: ModuleType, args: list[str], model: Any, data: Any, callbacks: Sequence[Callback] = ()) -> ObjectsCLI:
    """Runs a subcommand like `cli.parser.run`, but lets exceptions through."""
    silence_warnings()
    import_from_working_folder()
    if model is not None and not isinstance(model, LightningModule):
        raise UserError(f"model: a {type(model).__name__} is not a LightningModule\npass ImageClassifier(NETWORK)")
    given = {"model": model, "data": None if data is None else as_data_module(data)}
    given = {key: value for key, value in given.items() if value is not None}
    command_line = CommandLine(upgrade_arguments(args), bare=bool(given))

    def run() -> ObjectsCLI:
        cli = ObjectsCLI(command_line, module, given, callbacks)
        cli.results = module.run(cli)
        return cli

    try:
        # In a separate context: jsonargparse would otherwise hold model, data and workers until the next call.
        return copy_context().run(run)
    except SystemExit as end:
        if end.code in (1, 128 + signal.SIGINT):  # what Lightning and the command make of a KeyboardInterrupt
            raise KeyboardInterrupt from end
        raise


class ObjectsCLI(ProjectCLI):
    """A `ProjectCLI` with a model, data or callbacks that were built in Python.

    Args:
        command_line: the command line.
        module: module of the subcommand.
        given: objects in place of the sections `model` and `data`.
        callbacks: callbacks, added to those of the configuration.

    Attributes:
        results: what the subcommand returned.
    """

    def __init__(
        self, command_line: CommandLine, module: ModuleType, given: Mapping[str, Any], callbacks: Sequence[Callback]
    ) -> None:
        self.given, self.own_callbacks, self.results = given, list(callbacks), {}
        for option in command_line.options:
            if (key := option.removeprefix("--").partition("=")[0].partition(".")[0]) in given and option[:2] == "--":
                raise UserError(f"{option}: the {key} is an object, which options do not change\nremove the option")
        super().__init__(command_line, module)

    @override
    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the options of the Trainer, and of the sections that are not given as objects."""
        parser.add_lightning_class_args(Trainer, "trainer")
        parser.set_defaults({f"trainer.{key}": value for key, value in TRAINER_DEFAULTS.items()})
        for key, kind in KINDS.items():
            if key in self.given:
                # Sections of files and checkpoints are accepted, and not used.
                parser.add_argument(f"--{key}", type=dict | str | None)
            else:
                parser.add_lightning_class_args(kind, key, subclass_mode=True)

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        super().parse_arguments(parser, args)
        for key in self.given:
            self.config[key] = None

    @cached_property
    @override
    def plain_config(self) -> dict[str, Any]:
        """The resolved configuration, with a description of the objects."""
        config, lacking = dict(super().plain_config), list[str]()
        for key, built in self.given.items():
            config[key], names = describe(key, built)
            lacking += names
        return config | ({BUILT_IN_PYTHON: lacking} if lacking else {})

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Uses the objects, and adds their callbacks."""
        # Lightning has set both to None, and is about to use them.
        self.model, self.datamodule = self.given.get("model", self.model), self.given.get("data", self.datamodule)
        settings = self.config_init["trainer"]
        settings["callbacks"] = [*as_list(settings["callbacks"]), *self.own_callbacks]
        return super().instantiate_trainer(**kwargs)
