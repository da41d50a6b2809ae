"""Options shared by all subcommands, and the format of their help."""

from __future__ import annotations

import argparse
import re
from typing import Any

from jsonargparse import DefaultHelpFormatter
from lightning.pytorch.cli import LightningArgumentParser
from typing_extensions import override

from resnet_pl.command_line import CommandLine
from resnet_pl.utils import prog_name
from resnet_pl.yaml_forms import PARSER_MODE

# Defaults of the Trainer that differ from Lightning's.
TRAINER_DEFAULTS: dict[str, Any] = {
    "default_root_dir": "runs",
    "max_epochs": 10,
    "use_distributed_sampler": False,
    "enable_model_summary": False,
    "enable_autolog_hparams": False,
    "num_sanity_val_steps": 0,
}
CKPT_PATH = (
    "Checkpoint file, run folder, or best or last for the newest run (of --name, if given)."
    " A run folder stands for its best checkpoint, with fit for its last one."
)
TF32 = (
    "Allow TF32 for float32 matrix multiplications and convolutions on CUDA. It is several times faster and rounds the"
    " inputs to 10 bits of mantissa."
)
NAME = "Name of the run, written to runs/NAME/version_N. With --ckpt_path best or last: name of the runs to search."
# Help texts of Lightning and jsonargparse, by option.
TEXTS = {
    "--help": "Show this page.",
    "--config": "YAML file with options, or the name of a config of this project, such as cifar10 or recipes/ema. Can"
    " be repeated: later files override earlier ones, and options override all files.",
    "--print_config": "Print the resolved configuration as YAML and exit. Flags: skip_default, skip_unset.",
    "--seed_everything": "Seed of all random numbers. True chooses one at random.",
    "--data": "Data module: ImageFolder, ImageTable, HFDataset, CIFAR10, CIFAR100, Digits, Flowers, ImageNet, or"
    " package.module.Class.",
    "--model": "Model class, ImageClassifier by default, or package.module.Class.",
    "--trainer.default_root_dir": "Folder of all runs. A run is written to ROOT/NAME/version_N.",
    "--trainer.logger": "Logger or list of loggers that replace TensorBoard. Add one with --trainer.logger+=NAME. False"
    " turns off TensorBoard and metrics.csv.",
    "--trainer.callbacks": "Callback or list of callbacks. Add one with --trainer.callbacks+=NAME.",
    "--trainer.max_epochs": "Stop training after this number of epochs; -1 for no limit.",
    "--trainer.max_steps": "Stop training after this number of optimizer steps; -1 for no limit.",
    "--trainer.min_epochs": "Train for at least this number of epochs.",
    "--trainer.min_steps": "Train for at least this number of optimizer steps.",
    "--trainer.enable_checkpointing": "Whether to write best.ckpt and last.ckpt. Default: True.",
    "--trainer.enable_progress_bar": "Whether to show the progress of training. Default: True.",
    "--trainer.enable_model_summary": "Whether to print Lightning's summary of the model.",
    "--trainer.benchmark": "Whether cuDNN benchmarks its convolution algorithms. Default in fit: True, unless"
    " --trainer.deterministic is set.",
    "--trainer.use_distributed_sampler": "Leave this false: the data modules distribute the images over the processes.",
    "--trainer.profiler": "Profiler of the steps of training: simple, advanced, pytorch, or a class.",
}
# What jsonargparse says of the option that takes all options of a class from a file.
CONFIG_OPTION = "Path to a configuration file."
METAVARS = {"--data": "CLASS", "--model": "CLASS", "--config": "FILE"}


def parser_kwargs(command_line: CommandLine) -> dict[str, Any]:
    """Arguments of the parser of a subcommand."""
    prog = f"{prog_name()} {command_line.subcommand}"
    return {
        "prog": prog,
        "usage": f"{prog} [--config FILE ...] [--KEY VALUE ...]",
        "formatter_class": HelpFormatter,
        "parser_mode": PARSER_MODE,
        "exit_on_error": False,
        "allow_abbrev": False,
    }


def add_shared_arguments(parser: LightningArgumentParser) -> None:
    """Adds the options of all subcommands."""
    parser.add_argument("--ckpt_path", type=str | None, default=None, help=CKPT_PATH)
    parser.add_argument("--name", type=str, default="resnet", help=NAME)
    parser.add_argument("--tf32", type=bool, default=True, help=TF32)


class HelpFormatter(DefaultHelpFormatter):
    """Formats help as plain sentences, without reStructuredText and without the `--KEY.help` options."""

    @override
    def add_argument(self, action: argparse.Action) -> None:
        """Adds an option with a plain help text."""
        name = next((option for option in action.option_strings if option.startswith("--")), "")
        if name.endswith(".help"):
            return
        if action.help == CONFIG_OPTION:
            action.help, action.metavar = "YAML file with these options.", "FILE"
        if action.help is not None and action.help != argparse.SUPPRESS:
            action.help = plain_sentence(TEXTS.get(name, action.help), repeats_default=action.default is not None)
        action.metavar = METAVARS.get(name, action.metavar)
        super().add_argument(action)


class ClassHelpFormatter(HelpFormatter):
    """Formats the help of a class, without the option that takes the class."""

    @override
    def add_argument(self, action: argparse.Action) -> None:
        """Adds an option of the class."""
        if action.help != CONFIG_OPTION:
            super().add_argument(action)


def plain_sentence(text: str, repeats_default: bool = False) -> str:
    """Removes reStructuredText from a help text, and begins and ends it as a sentence.

    Args:
        text: the help text.
        repeats_default: whether the default is printed after the text, and is removed from it.
    """
    text = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)(?:\s*<[^>]*>)?`", r"\1", " ".join(text.split()))
    text = re.sub(r"\s*\(default: None\)", "", text)
    text = re.sub(r"`([^`<]+?)\s*<[^>]*>`_+|`([^`]+)`_+", r"\1\2", text).replace("``", "")
    if repeats_default:
        text = re.sub(r"\s*\(?[Dd]efault:\s(?:[^.()]|\.\d|\.\w|\([^)]*\))*[.)]*\s*$", "", text)
    if re.fullmatch(r"[a-z]+[,;:]?", text.partition(" ")[0]):
        text = text[:1].upper() + text[1:]
    return text if not text or text.endswith((".", ":", ")")) else f"{text}."
