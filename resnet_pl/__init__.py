"""Train residual networks with PyTorch Lightning."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resnet_pl.api import fit, load_model, load_run, test
    from resnet_pl.classifier import ImageClassifier
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
    from resnet_pl.models import cifar_resnet, resnet18, resnet34, resnet50, resnet101, resnet152
    from resnet_pl.utils import UserError

__version__ = "0.2.0"

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "Digits",
    "Flowers",
    "HFDataset",
    "ImageClassifier",
    "ImageDataModule",
    "ImageFolder",
    "ImageNet",
    "ImageTable",
    "UserError",
    "__version__",
    "cifar_resnet",
    "fit",
    "load_model",
    "load_run",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "test",
]

# Modules of the public names. Classes that are not listed are in `data`, functions in `models`.
_MODULES = {"ImageClassifier": "classifier", "UserError": "utils"}
_MODULES |= dict.fromkeys(["fit", "load_model", "load_run", "test"], "api")

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Imports a public name on first use: importing torch takes seconds, which `--help` should not wait for."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = _MODULES.get(name, "data" if name[0].isupper() else "models")
        return getattr(import_module(f"{__name__}.{module}"), name)
