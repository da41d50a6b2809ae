"""Commands that do not train: they analyze models, checkpoints, datasets and finished runs.

A command is an entry in COMMANDS and a module of the same name, or of its last word: `check-data` is check_data.py,
`paper curves` is curves.py. Each module has

- a docstring, which is the help text of the command,
- `add_arguments(parser)`, which adds the options,
- `run(settings)`, which returns the exit code, or None for 0; `settings.command_line` is the command line as text,
- optionally `parse(parser, options)`, which replaces `parser.parse_args(options)`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from resnet_pl.utils import UserError, gc_paused, plain_page, prog_name, shell_command

# Here, not in the modules of the commands, because --help prints them without importing torch.
COMMANDS = {
    "summary": "layers, parameters, multiply-adds and activation memory of a model",
    "compare": "table and plot of several runs, mean ± standard deviation over seeds",
    "sweep": "train combinations of option values, or search for good ones; test the best",
    "cross-validate": "train a model per fold and predict every image with the model that has not seen it",
    "check-data": "corrupt files, duplicates, class balance and image sizes of an image folder",
    "serve": "classify photos in the browser, and as a JSON endpoint",
    "paper": "list the commands for the experiments of the ResNet paper",
    "paper responses": "per-layer response standard deviation (paper, Fig. 7)",
    "paper gradients": "per-layer gradient norms at initialization and at a checkpoint",
    "paper lesion": "error without residual blocks of a trained network (arXiv:1605.06431)",
    "paper shattering": "autocorrelation of input gradients over depth (arXiv:1702.08591)",
    "paper curves": "training and validation error of several runs over iterations (paper, Fig. 6)",
}
STUDIES = [name.removeprefix("paper ") for name in COMMANDS if name.startswith("paper ")]


def run(args: Sequence[str]) -> int:
    """Runs a command.

    Args:
        args: command-line arguments; the first is the name of the command.

    Returns:
        The exit code.

    Raises:
        UserError: an option or an input is wrong.
    """
    size = os.environ.get("WORLD_SIZE" if "RANK" in os.environ else "SLURM_STEP_NUM_TASKS", "1")
    if size != "1":
        raise UserError(f"{args[0]} is one process, but {size} were started\nstart it without torchrun or srun")
    # `paper curves` may be quoted in the shell.
    words = [*args[0].split(), *args[1:]]
    if words[0] != "paper":
        return _run(words[0], words[1:], args)
    if len(words) == 1 or words[1] in ("-h", "--help"):
        print(_studies())
        return 0
    name = f"paper {words[1]}"
    if name not in COMMANDS:
        raise UserError(f"paper: unknown command {words[1]}\nuse one of {', '.join(STUDIES)}")
    return _run(name, words[2:], args)


def _studies() -> str:
    """The help text of `paper`."""
    head = (
        f"usage: {prog_name()} paper NAME [options]\n\nExperiments of the ResNet paper (arXiv:1512.03385) and others:"
    )
    lines = [f"  {name:<12}{COMMANDS[f'paper {name}']}" for name in STUDIES]
    return "\n".join([head, *lines, "", f"Run `{prog_name()} paper NAME --help` for its options."])


def _run(name: str, options: Sequence[str], args: Sequence[str]) -> int:
    """Imports the module of a command, parses its options and runs it."""
    from jsonargparse import ArgumentError, ArgumentParser
    from typing_extensions import override

    class Parser(ArgumentParser):
        @override
        def format_help(self, *args: Any, **kwargs: Any) -> str:
            return plain_page(super().format_help(*args, **kwargs))

    with gc_paused():
        command = import_module(f"{__name__}.{name.split()[-1].replace('-', '_')}")
    parser = Parser(prog=f"{prog_name()} {name}", description=command.__doc__, exit_on_error=False)
    command.add_arguments(parser)
    try:
        settings = getattr(command, "parse", ArgumentParser.parse_args)(parser, options)
    except ArgumentError as error:
        from resnet_pl.config import parser_message  # imports torch

        message = parser_message(str(error), parser.get_defaults().keys())
        fix = f"run {prog_name()} {name} --help for its options"
        if name in ("sweep", "cross-validate"):
            fix += "; options of fit follow after --"
        raise UserError(f"{name}: {message}\n{fix}") from error
    settings.command_line = shell_command(args)
    return command.run(settings) or 0
