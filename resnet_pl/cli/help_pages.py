"""Pages of help: the options of a subcommand, the options of a class, and the classes that an option accepts."""

from __future__ import annotations

import inspect
import textwrap
from importlib import import_module
from itertools import pairwise
from pydoc import ErrorDuringImport, locate
from types import ModuleType
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import Strategy
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchvision.transforms.v2 import Transform

from resnet_pl import ImageClassifier, ImageDataModule, data, models
from resnet_pl.callbacks import EMA, ErrorWarmup, Freeze, WhiteningInit
from resnet_pl.cli.arguments import (
    TRAINER_DEFAULTS,
    ClassHelpFormatter,
    add_shared_arguments,
    parser_kwargs,
    plain_sentence,
)
from resnet_pl.command_line import CommandLine
from resnet_pl.losses import AsymmetricLoss, FocalLoss
from resnet_pl.lr_schedulers import LRSequence
from resnet_pl.utils import UserError, plain_page, similar

DESCRIPTIONS = {
    "fit": "Trains a model and validates it after every epoch. Checkpoints, metrics and the resolved configuration are"
    " written to runs/NAME/version_N. With --ckpt_path an interrupted run resumes in its own folder.",
    "doctor": "Measures a training for about a minute, with all options of fit, and prints what to change: a range test"
    " of the learning rate, on a GPU the largest batch size, the speed of data loading and network, time and memory of"
    " the run, and options that were faster. Writes doctor/learning_rate.png, and no run folder.",
    "validate": "Evaluates a checkpoint on the validation set. Model, data, splits, classes and normalization are"
    " restored from the checkpoint; options override them. Writes results-val.json, figures and the mistakes.",
    "test": "Evaluates a checkpoint on the test set. Model, data, splits, classes and normalization are restored from"
    " the checkpoint; options override them. Writes results.json, figures and the mistakes.",
    "predict": "Classifies images with a checkpoint: those given with --images, or else the test set. Writes"
    " predictions.csv and contact_sheet.png: the most confident mistakes first, else the least confident predictions.",
    "probe": "Computes the features of the training and validation images with a pretrained network that is not trained"
    " further, and prints the cross-validated accuracy of nearest neighbors and logistic regression. The test"
    " images are not used. Give the network with --model.weights, --model.backbone or --ckpt_path.",
    "calibrate": "Fits a temperature to the validation images: the network's outputs are divided by it, so that"
    " probabilities agree with accuracies. Stores it in the checkpoint, where test, predict and load_run find it, and"
    " reports loss and calibration error before and after, on validation and test images.",
    "export": "Writes a checkpoint as one file for programs without this project: an ONNX file or a graph of"
    " torch.export, which take images as decoded from a file and return probabilities, or the weights alone. Needs no"
    " images, except with --check and --int8.",
    "report": "Evaluates a checkpoint on the test set and explains its results. Writes the folder report/ with"
    " index.html, one file with all images in it: metrics with 95 % intervals, confused classes, the most confident"
    " mistakes with heat maps, probable label errors, data and recipe. Also writes the tables as CSV files, and"
    " README.md, a model card for Hugging Face.",
}
EPILOG = (
    "An option that takes a class has its own page: --KEY.help lists the classes and --KEY.help NAME the options"
    " of one, such as --data.help, --data.help ImageFolder, --data.crop.help RandomResizedCrop,"
    " --model.backbone.help resnet50, --model.optimizer.help Adam or --trainer.callbacks.help Freeze."
)
# Classes and functions that each option accepts: those of this project, and a library's module with more.
DATA_MODULES = [data.CIFAR10, data.CIFAR100, data.Digits, data.Flowers, data.ImageFolder]
DATA_MODULES += [data.ImageNet, data.ImageTable, data.HFDataset]
CHOICES: dict[str, tuple[list[Any], str]] = {
    "data": (DATA_MODULES, ""),
    "data.crop": ([data.Letterbox, data.RandomResizedCrop, data.ResizeCenterCrop, data.ScaleCrop], ""),
    "data.batch_transforms": ([data.Cutout, data.PadCrop, data.PCAColor, data.RandomFlip], ""),
    "data.mix": ([data.CutMix, data.MixUp, data.RandomChoice], ""),
    "data.transforms": ([], "torchvision.transforms.v2"),
    "model": ([ImageClassifier], ""),
    "model.backbone": ([getattr(models, name) for name in models.NETWORKS], "torchvision.models"),
    "model.loss": ([AsymmetricLoss, FocalLoss], "torch.nn"),
    "model.lr_scheduler": ([LRSequence], "torch.optim.lr_scheduler"),
    "model.optimizer": ([], "torch.optim"),
    "trainer.callbacks": ([EMA, ErrorWarmup, Freeze, WhiteningInit], "lightning.pytorch.callbacks"),
    "trainer.logger": ([], "lightning.pytorch.loggers"),
    "trainer.profiler": ([], "lightning.pytorch.profilers"),
    "trainer.strategy": ([], "lightning.pytorch.strategies"),
    "trainer.accelerator": ([], "lightning.pytorch.accelerators"),
    "trainer.plugins": ([], "lightning.pytorch.plugins"),
}  # fmt: skip
# Base classes of the libraries' classes above, to select them among the names of the module.
BASES: dict[str, type] = {
    "data.transforms": Transform,
    "model.loss": nn.Module,
    "model.lr_scheduler": LRScheduler,
    "model.optimizer": Optimizer,
    "trainer.callbacks": Callback,
    "trainer.logger": Logger,
    "trainer.profiler": Profiler,
    "trainer.strategy": Strategy,
    "trainer.accelerator": Accelerator,
}
# Options that accept a library's classes by their import path only.
IMPORT_PATHS = ("model.backbone", "data.transforms")


def page(command_line: CommandLine, subcommand: ModuleType) -> str | None:
    """Returns the page that the command line requests; None if it requests none, or one of an unknown option."""
    if command_line.class_help:
        key, name = command_line.class_help
        if name and (key in CHOICES or _find(key, name)):
            return class_page(command_line, key, name)
        return choices_page(key) if key in CHOICES else None
    return subcommand_page(command_line, subcommand) if command_line.help else None


def subcommand_page(command_line: CommandLine, subcommand: ModuleType) -> str:
    """Returns the page of a subcommand: all options, with those of the model and of the data."""
    parser = LightningArgumentParser(
        description=DESCRIPTIONS[command_line.subcommand], epilog=EPILOG, **parser_kwargs(command_line)
    )
    parser.add_argument("-c", "--config", action="config", help="")
    parser.add_argument("--seed_everything", type=bool | int, default=0, help="")
    add_shared_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
    subcommand.add_arguments(parser)
    model, data_module = _named(command_line, "model", ImageClassifier), _named(command_line, "data", ImageDataModule)
    parser.add_lightning_class_args(model, "model")
    parser.add_lightning_class_args(data_module, "data")
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.set_defaults({f"trainer.{key}": value for key, value in TRAINER_DEFAULTS.items()})
    shared = "options of all data modules; --data.help ImageFolder lists those of one"
    titles = {
        "model": f"model ({model.__name__})",
        "model.schedule": "learning-rate schedule",
        "data": f"data ({shared if data_module is ImageDataModule else data_module.__name__})",
        "trainer": "trainer (Lightning's Trainer)",
        "dashboard": "images for TensorBoard",
        "checkpoint": "checkpoints",
    }
    for key, group in (parser.groups or {}).items():
        group.title = titles.get(key, group.title)
    text = plain_page(parser.format_help()).rstrip()
    # The checkpoint has the required values.
    return text if command_line.trains else text.replace("(required, type", "(type")


def _named(command_line: CommandLine, key: str, default: type) -> type:
    """The class that the command line names for the model or the data."""
    for option, following in pairwise([*command_line.options, ""]):
        name, _, value = option.partition("=")
        if name in (f"--{key}", f"--{key}.class_path") and isinstance(found := _find(key, value or following), type):
            return found if issubclass(found, LightningModule | LightningDataModule) else default
    return default


def class_page(command_line: CommandLine, key: str, name: str) -> str:
    """Returns the page of a class, or of a function that builds an object: its options.

    Args:
        command_line: the command line.
        key: the option that takes the class, such as `model.optimizer`.
        name: a name that `choices_page` lists, or an import path.

    Raises:
        UserError: there is no such class.
    """
    if (found := _find(key, name)) is None:
        near = similar(name, [choice.__name__ for choice in _choices(key)])
        hint = f"did you mean {near[0]}?" if near else f"--{key}.help lists the names; or give package.module.Class"
        raise UserError(f"--{key}.help: unknown class {name}\n{hint}")
    kwargs = parser_kwargs(command_line)
    kwargs |= {"usage": f"--{key} {_as_given(key, found, name)} [--{key}.OPTION VALUE ...]"}
    kwargs |= {"formatter_class": ClassHelpFormatter, "description": _first_paragraph(found)}
    parser = LightningArgumentParser(add_help=False, **kwargs)
    skip: set[str | int] = {1} if key in ("model.optimizer", "model.lr_scheduler") else set()
    if isinstance(found, type):
        parser.add_class_arguments(found, key, fail_untyped=False, skip=skip)
    else:
        parser.add_function_arguments(found, key, fail_untyped=False)
    for group in (parser.groups or {}).values():
        group.title = "options"
    return plain_page(parser.format_help()).rstrip()


def choices_page(key: str) -> str:
    """Returns the list of names that an option accepts: this project's with descriptions, then a library's."""
    own, module = CHOICES[key]
    lines = [f"names for --{key}; --{key}.help NAME lists the options of one", ""]
    width = max((len(choice.__name__) for choice in own), default=0) + 2
    indent = " " * (width + 2)
    for choice in own:
        text = textwrap.wrap(_first_paragraph(choice), 108 - width, initial_indent=indent, subsequent_indent=indent)
        lines += [f"  {choice.__name__:<{width}}{text[0].lstrip()}", *text[1:]] if text else [f"  {choice.__name__}"]
    others = [choice.__name__ for choice in _choices(key) if choice not in own]
    if others:
        given = f", given as {module}.NAME" if key in IMPORT_PATHS else ""
        lines += ["", f"from {module}{given}:"] if own else [f"from {module}{given}:"]
        lines += textwrap.wrap(", ".join(others), 100, initial_indent="  ", subsequent_indent="  ")
    return "\n".join([*lines, "", "Any other class is given by its import path: package.module.Class"])


def _first_paragraph(documented: Any) -> str:
    """The first paragraph of a docstring, without reStructuredText."""
    return plain_sentence((inspect.getdoc(documented) or "").split("\n\n")[0])


def _as_given(key: str, found: Any, name: str) -> str:
    """The name of a class as the option accepts it."""
    own, module = CHOICES.get(key, ([], ""))
    return f"{module}.{name}" if key in IMPORT_PATHS and found not in own and "." not in name else name


def _find(key: str, name: str) -> Any:
    """The class or function behind a name, None if there is none."""
    if "." not in name:
        return next((choice for choice in _choices(key) if choice.__name__ == name), None)
    try:
        found = locate(name)
    except ErrorDuringImport as error:
        raise UserError(f"--{key}: {name} cannot be imported\n{error}") from error
    return found if callable(found) else None


def _choices(key: str) -> list[Any]:
    """All classes and functions that an option accepts by name."""
    own, module = CHOICES.get(key, ([], ""))
    if not module:
        return own
    library = import_module(module)
    if key == "model.backbone":
        others = [getattr(library, name) for name in library.list_models(module=library)]
    elif key == "trainer.plugins":
        others = [getattr(library, name) for name in library.__all__]
    else:
        base = BASES[key]
        names = getattr(library, "__all__", None) or vars(library)
        others = [
            value
            for name in names
            if isinstance(value := getattr(library, name), type) and issubclass(value, base) and value is not base
        ]
    if key == "model.loss":
        others = [value for value in others if value.__name__.endswith("Loss")]
    return [*own, *sorted((value for value in others if not inspect.isabstract(value)), key=lambda each: each.__name__)]
