"""Train residual networks properly with PyTorch Lightning."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["ImageClassifier", "__version__"]


def __getattr__(name: str) -> Any:
    # Importing torch takes seconds, which `--help` should not.
    if name == "ImageClassifier":
        from resnet_pl.classifier import ImageClassifier

        return ImageClassifier
    raise AttributeError(f"module {__name__} has no attribute {name}")
