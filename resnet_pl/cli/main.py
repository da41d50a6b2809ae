"""The entry: answers what needs no torch at once, hands the rest on, and says errors in a line or two."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from resnet_pl import __version__, analysis
from resnet_pl._renamed import upgrade_arguments
from resnet_pl.analysis import COMMANDS
from resnet_pl.command_line import CommandLine
from resnet_pl.utils import UserError, gc_paused, prog_name, similar

SUBCOMMANDS = {
    "fit": "train a network",
    "validate": "evaluate a checkpoint on the validation images",
    "test": "evaluate a checkpoint on the test images",
    "predict": "classify images with a checkpoint",
}
# The module of each in this package.
MODULES = {"fit": "train", "validate": "evaluate", "test": "evaluate", "predict": "predict"}

HELP = f"""usage: {prog_name()} SUBCOMMAND [options]

resnet_pl {__version__}: train residual networks properly with PyTorch Lightning.

subcommands:
{chr(10).join(f"  {name:<17}{text}" for name, text in SUBCOMMANDS.items())}

nets and finished runs:
{chr(10).join(f"  {name:<17}{text}" for name, text in COMMANDS.items())}

examples:
  {prog_name()} fit --config configs/digits.yaml
  {prog_name()} fit --config configs/flowers.yaml --data.root my/flowers --trainer.max_epochs 10
  {prog_name()} test --ckpt_path best
  {prog_name()} predict --ckpt_path runs/flowers/version_0/checkpoints/best.ckpt --images photos/*.jpg

`{prog_name()} SUBCOMMAND --help` lists every option; --debug shows the traceback of an error."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: arguments after the program's name; the process's own by default.

    Returns:
        The exit code: 0, 2 where the user can put it right, 1 at another error, 130 after Ctrl-C, 143 after SIGTERM,
        141 where nobody reads what is printed any more.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A terminal that knows ASCII alone must not stop a training.
            stream.reconfigure(errors="replace")
    # The installed command finds a user's own classes beside it, as `python cli.py` does.
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    try:
        code = _dispatch(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader has gone, as `| head` does; Python would complain of it once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except UserError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        if debug:
            raise
        # What the system says of a file that is there, or of a path that can never be, is the user's to put right.
        if isinstance(error, OSError) and error.filename and not isinstance(error, FileNotFoundError):
            print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
            return 2
        print(f"error: {_unexpected(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0
    if args[0] == "--version":
        print(__version__)
        return 0
    args = upgrade_arguments(args)
    if args[0].split()[0] in COMMANDS:
        return analysis.run(args)
    if args[0] not in SUBCOMMANDS:
        raise UserError(_unknown_subcommand(args[0]))
    command_line = CommandLine(args)
    with gc_paused():
        from resnet_pl.cli import parser

        subcommand = import_module(f"resnet_pl.cli.{MODULES[command_line.subcommand]}")
    return parser.run(command_line, subcommand)


def _unexpected(error: Exception) -> str:
    from resnet_pl.cli.errors import format_unexpected_error

    return format_unexpected_error(error)


def _unknown_subcommand(word: str) -> str:
    near = similar(word, [*SUBCOMMANDS, *COMMANDS])
    if word.startswith("-"):
        return f"the subcommand comes first, before {word}\nit is one of {', '.join(SUBCOMMANDS)}"
    if f"paper {word}" in COMMANDS:
        near = [f"paper {word}"]
    hint = f"did you mean: {near[0]}" if near else f"it is one of {', '.join([*SUBCOMMANDS, *COMMANDS])}"
    return f"there is no subcommand {word}\n{hint}"
