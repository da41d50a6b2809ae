"""Train residual networks with PyTorch Lightning."""

from importlib import import_module
from typing import Any

__version__ = "0.2.0"

# Where each public name is. Importing torch takes seconds, which `--help` should not: they are imported when used.
_MODULES = {
    "ImageClassifier": "classifier",
    "load_run": "load",
    **dict.fromkeys(["CIFAR10", "CIFAR100", "Digits", "Flowers", "ImageDataModule", "ImageFolder", "ImageNet"], "data"),
    **dict.fromkeys(["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "cifar_resnet"], "models"),
}
__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__} has no attribute {name}")
