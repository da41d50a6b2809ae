"""Commands that train nothing: they look at nets, checkpoints and finished runs.

A command is a line in COMMANDS and a module that has its name, or the name's last word: `check-data` is check_data.py,
`paper curves` is curves.py. The module's docstring is the help. `add_arguments(parser)` adds the options.
`run(settings)` does the work and returns the exit code, or None for 0; `settings.command_line` is the command as it was
typed. A module may have `parse(parser, options)`, which reads the options in place of the parser's own `parse_args`.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from resnet_pl.utils import UserError, gc_paused, prog_name, shell_command, shorten_help

# Read before torch is imported: no module of a command may be imported for it.
COMMANDS = {
    "summary": "layers, parameters, multiply-adds and memory of any net",
    "compare": "a table of runs, mean ± std over seeds, next to the paper",
    "sweep": "train and test many runs, one after another or several at a time",
    "check-data": "broken files, copies, class balance and sizes of a folder of photos",
    "paper": "list the studies of the paper",
    "paper responses": "how strongly each layer of a net responds (Fig. 7)",
    "paper gradients": "gradient of each layer, at the start and in a checkpoint",
    "paper curves": "training and validation error of several runs, in one picture",
}
STUDIES = [name.removeprefix("paper ") for name in COMMANDS if name.startswith("paper ")]


def run(args: Sequence[str]) -> int:
    """Runs a command and returns its exit code; raises UserError where the user can put it right.

    Args:
        args: arguments, the command's name first.
    """
    # One word of the shell may hold both words of a name.
    words = [*args[0].split(), *args[1:]]
    if words[0] != "paper":
        return _run(words[0], words[1:], args)
    if len(words) == 1 or words[1] in ("-h", "--help"):
        print(_studies())
        return 0
    name = f"paper {words[1]}"
    if name not in COMMANDS:
        raise UserError(f"paper: there is no study {words[1]}\nthe word after paper is one of {', '.join(STUDIES)}")
    return _run(name, words[2:], args)


def _studies() -> str:
    """The help of `paper`."""
    head = f"usage: {prog_name()} paper NAME [options]\n\nstudies of the ResNet paper (arXiv:1512.03385):"
    lines = [f"  {name:<12}{COMMANDS[f'paper {name}']}" for name in STUDIES]
    return "\n".join([head, *lines, "", f"`{prog_name()} paper NAME --help` lists the options of one."])


def _run(name: str, options: Sequence[str], args: Sequence[str]) -> int:
    """Imports the module of a command, reads its options and calls it."""
    from jsonargparse import ArgumentError, ArgumentParser

    class Parser(ArgumentParser):
        def format_help(self) -> str:
            return shorten_help(super().format_help())

    with gc_paused():
        command = import_module(f"{__name__}.{name.split()[-1].replace('-', '_')}")
    parser = Parser(prog=f"{prog_name()} {name}", description=command.__doc__, exit_on_error=False)
    command.add_arguments(parser)
    try:
        settings = getattr(command, "parse", ArgumentParser.parse_args)(parser, options)
    except ArgumentError as error:
        message = " ".join(line.strip() for line in str(error).splitlines()[:2])
        raise UserError(f"{name}: {message}\nsee {prog_name()} {name} --help") from error
    settings.command_line = shell_command(args)
    return command.run(settings) or 0
