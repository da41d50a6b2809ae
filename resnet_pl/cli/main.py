"""Entry point of the command line: answers `--help`, `--version` and typing errors before torch is imported."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from io import TextIOWrapper

from resnet_pl import __version__, analysis
from resnet_pl._renamed import upgrade_arguments
from resnet_pl.analysis import COMMANDS
from resnet_pl.cli.output import tolerant_output
from resnet_pl.utils import UserError, expand_words, gc_paused, import_from_working_folder, prog_name, similar

SUBCOMMANDS = {
    "fit": "train a model",
    "validate": "evaluate a checkpoint on the validation set",
    "test": "evaluate a checkpoint on the test set",
    "doctor": "measure a training for a minute: learning rate, batch size, speed, time, and what to change",
    "probe": "how well the features of a pretrained network separate the classes of your photos",
    "predict": "classify images with a checkpoint",
    "export": "write a checkpoint as one file for other programs: ONNX, torch.export or safetensors",
    "calibrate": "fit probabilities, and a confidence threshold, to the validation set",
    "report": "a page that explains a checkpoint: metrics, mistakes, probable label errors; and a model card",
}
# The module of each subcommand in this package, if it has another name.
MODULES = {"fit": "train", "validate": "evaluate", "test": "evaluate"}
# Commands of both kinds that use a trained model; they have a heading of their own.
USES = ("predict", "export", "serve", "calibrate", "report")
# Subcommands of other training scripts, and what to use here.
OTHER_SUBCOMMANDS = {
    **dict.fromkeys(["train", "training"], "fit"),
    **dict.fromkeys(["eval", "evaluate", "val", "evaluation"], "test (test set) or validate (validation set)"),
    **dict.fromkeys(["infer", "inference", "classify"], "predict"),
}
ACTIVATE = "activate the environment that has the packages, such as: . .venv/bin/activate (make install creates it)"
# Packages whose absence is reported before they are imported.
REQUIRED = ("torch", "torchvision", "lightning", "torchmetrics", "tensorboard", "jsonargparse")


def _listed(commands: Mapping[str, str]) -> str:
    """The lines of commands in the help."""
    return "\n".join(f"  {name:<17}{text}" for name, text in commands.items())


EVERY = SUBCOMMANDS | COMMANDS
HELP = f"""usage: {prog_name()} SUBCOMMAND [options]

resnet_pl {__version__} trains and evaluates ResNets with PyTorch Lightning.

train and evaluate:
{_listed({name: text for name, text in SUBCOMMANDS.items() if name not in USES})}

use a trained model:
{_listed({name: EVERY[name] for name in USES})}

inspect models, data and runs:
{_listed({name: text for name, text in COMMANDS.items() if name not in USES})}

examples:
  {prog_name()} fit --config configs/digits.yaml
  {prog_name()} fit --config configs/folder.yaml --data.root my/photos --trainer.max_epochs 20
  {prog_name()} test --ckpt_path best
  {prog_name()} predict --ckpt_path best --images my/new/*.jpg

`{prog_name()} SUBCOMMAND --help` lists all options of a subcommand.
`--debug` shows the traceback of an error, `--version` the version."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: arguments after the program's name; `sys.argv[1:]` by default.

    Returns:
        The exit code: 0 on success, 2 for an error the user can fix, 1 for any other error, 130 after Ctrl-C,
        143 after SIGTERM, 141 if it has succeeded, but the reader has closed its output.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # A terminal with an ASCII encoding must not stop a training.
            stream.reconfigure(errors="replace")
    # The installed command finds the user's classes in the working folder, as `python cli.py` does.
    import_from_working_folder()
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    with tolerant_output() as output:
        code = _exit_code(args, debug)
        output.flush()
    return 141 if code == 0 and output.is_closed else code


def _exit_code(args: list[str], debug: bool) -> int:
    """Runs a command, reports its error and returns its exit code."""
    try:
        return _dispatch(args)
    except UserError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        if debug:
            raise
        # Errors of the system about an existing file, such as its permissions, can be fixed by the user.
        if isinstance(error, OSError) and error.filename and not isinstance(error, FileNotFoundError):
            print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
            return 2
        if isinstance(error, ImportError) and (missing := [name for name in REQUIRED if find_spec(name) is None]):
            print(f"error: {sys.executable} has no package {', '.join(missing)}\n{ACTIVATE}", file=sys.stderr)
            return 2
        from resnet_pl.cli.errors import format_unexpected_error

        print(f"error: {format_unexpected_error(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
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
    args = upgrade_arguments(expand_words(args))
    if args[0].split()[0] in COMMANDS:
        return analysis.run(args)
    if args[0] not in SUBCOMMANDS:
        raise UserError(_unknown_subcommand(args[0]))
    from resnet_pl.command_line import CommandLine  # imports yaml

    command_line = CommandLine(args)
    with gc_paused():
        from resnet_pl.cli import help_pages, parser

        subcommand = import_module(f"resnet_pl.cli.{MODULES.get(command_line.subcommand, command_line.subcommand)}")
    if page := help_pages.page(command_line, subcommand):
        print(page)
        return 0
    return parser.run(command_line, subcommand)


def _unknown_subcommand(word: str) -> str:
    if word.startswith("-"):
        return f"the subcommand must come before {word}\ngive one of {', '.join(SUBCOMMANDS)}"
    if instead := OTHER_SUBCOMMANDS.get(word):
        return f"unknown subcommand {word}\nuse {instead}"
    near = [f"paper {word}"] if f"paper {word}" in COMMANDS else similar(word, [*SUBCOMMANDS, *COMMANDS])
    hint = f"did you mean {near[0]}?" if near else f"give one of {', '.join([*SUBCOMMANDS, *COMMANDS])}"
    return f"unknown subcommand {word}\n{hint}"
