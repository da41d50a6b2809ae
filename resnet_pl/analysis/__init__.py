"""Commands that train nothing: they look at nets, checkpoints and finished runs.

A command is a module of its name here (`check-data` is check_data): its docstring is the help, `add_arguments` the
options, `run` the work, on the options and on `command_line`, which is as it was typed; its line in `request.COMMANDS`
makes it known. A `parse`, where there is one, reads the options in place of the parser's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from jsonargparse import ArgumentError, ArgumentParser

from resnet_pl.cli.memory import importing
from resnet_pl.utils import UserError, command_line, program


def run(args: Sequence[str]) -> int:
    """Runs a command and returns its exit code; raises UserError where the user can put it right.

    Args:
        args: arguments, the command's name first.
    """
    name, *options = args
    with importing():
        command = import_module(f"{__name__}.{name.replace('-', '_')}")
    parser = ArgumentParser(prog=f"{program()} {name}", description=command.__doc__, exit_on_error=False)
    command.add_arguments(parser)
    try:
        settings = getattr(command, "parse", ArgumentParser.parse_args)(parser, options)
    except ArgumentError as error:
        message = " ".join(line.strip() for line in str(error).splitlines()[:2])
        raise UserError(f"{name}: {message}\nsee {program()} {name} --help") from error
    settings.command_line = command_line(args)
    return command.run(settings) or 0
