"""Constructor arguments of data modules: for type checkers, and for the command line."""

import inspect
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest
from jsonargparse import ArgumentParser

from resnet_pl.data import (
    CIFAR10,
    CIFAR100,
    Digits,
    Flowers,
    HFDataset,
    ImageDataModule,
    ImageFolder,
    ImageNet,
    ImageTable,
)
from resnet_pl.data.typed_kwargs import CIFARArgs, ImageDataModuleArgs, ImageFolderArgs

PROJECT = Path(__file__).parents[2]
MODULES = [CIFAR10, CIFAR100, Digits, Flowers, ImageFolder, ImageNet, ImageTable, HFDataset]
TYPED_KWARGS = {
    CIFAR10: CIFARArgs,
    CIFAR100: CIFARArgs,
    Digits: ImageDataModuleArgs,
    Flowers: ImageFolderArgs,
    ImageFolder: ImageDataModuleArgs,
    ImageNet: ImageFolderArgs,
    ImageTable: ImageFolderArgs,
    HFDataset: ImageFolderArgs,
}


def command_line_defaults(kind: type[ImageDataModule]) -> dict[str, object]:
    """Returns the arguments that jsonargparse finds, with their defaults."""
    parser = ArgumentParser()
    parser.add_class_arguments(kind, "data")
    return vars(parser.get_defaults().data)


def typed_arguments(kind: type[ImageDataModule]) -> dict[str, object]:
    """Returns the arguments that a type checker finds, with their types."""
    types = get_type_hints(kind.__init__)
    named = [name for name, each in inspect.signature(kind).parameters.items() if each.kind is not each.VAR_KEYWORD]
    passed_on = get_type_hints(TYPED_KWARGS[kind]) if kind in TYPED_KWARGS else {}
    return {name: types[name] for name in named} | passed_on


@pytest.mark.parametrize("kind", MODULES)
def test_typed_arguments_are_complete(kind: type[ImageDataModule]) -> None:
    typed = typed_arguments(kind)
    assert typed.keys() == command_line_defaults(kind).keys()
    base = typed_arguments(ImageDataModule)
    assert {name: typed[name] for name in base} == base


@pytest.mark.parametrize("kind", [Flowers, ImageNet])
def test_subclasses_of_image_folder_have_its_arguments(kind: type[ImageFolder]) -> None:
    folder = typed_arguments(ImageFolder)
    assert {name: typed_arguments(kind)[name] for name in folder} == folder


@pytest.mark.parametrize("kind", MODULES)
def test_defaults_are_shown_and_used(kind: type[ImageDataModule]) -> None:
    defaults = command_line_defaults(kind)
    for name in ("batch_size", "image_size", "mean", "std", "val_split", "test_split", "num_folds", "on_bad_image"):
        assert getattr(kind(), name) == defaults[name], name


@pytest.mark.slow
def test_pyright_reports_a_misspelled_argument(tmp_path: Path) -> None:
    pytest.importorskip("pyright")
    lines = ["from resnet_pl.data import *"]
    lines += [f"{kind.__name__}(eval_batch_size=8, num_folds=None, image_size=32)" for kind in MODULES]
    lines += [f"{kind.__name__}(batch_sise=3)" for kind in MODULES]
    lines += [f"{kind.__name__}(num_folds='3')" for kind in MODULES]
    (tmp_path / "snippet.py").write_text("\n".join(lines))
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, str(tmp_path / "snippet.py")]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=250, check=False)
    assert done.stdout.count("reportCallIssue") == done.stdout.count("batch_sise") == len(MODULES), done.stdout
    assert done.stdout.count("reportArgumentType") == len(MODULES), done.stdout
    assert f"{2 * len(MODULES)} errors" in done.stdout
