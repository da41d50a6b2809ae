"""Train residual networks properly with PyTorch Lightning."""

__version__ = "0.1.0"
