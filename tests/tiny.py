"""Small data modules, models and trainers for tests."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from resnet_pl.classifier import ImageClassifier
from resnet_pl.data import TensorDataModule
from resnet_pl.data.tensors import TensorImageDataset
from resnet_pl.models import cifar_resnet


class Tiny(TensorDataModule):
    """Random images; their mean depends on their class.

    Args:
        count: total number of images.
        classes: number of classes.
    """

    def __init__(self, count: int = 80, classes: int = 4, **kwargs: Any) -> None:
        settings = {"image_size": 8, "batch_size": 10, "val_split": 20, "test_split": 20} | kwargs
        super().__init__(**settings)
        self.count, self.number = count, classes

    def read(self) -> dict[str, TensorImageDataset]:
        self.classes = [f"class {i}" for i in range(self.number)]
        labels = torch.arange(self.count) % self.number
        shape = (self.count, 3, self.image_size, self.image_size)
        noise = torch.randint(0, 100, shape, generator=torch.Generator().manual_seed(0))
        images = (noise + labels[:, None, None, None] * 150 // self.number).to(torch.uint8)
        return {"train": TensorImageDataset(images, labels, [f"image/{i:03d}" for i in range(self.count)])}


def classifier(**kwargs: Any) -> ImageClassifier:
    torch.manual_seed(0)
    return ImageClassifier(**({"backbone": cifar_resnet(8, num_classes=4)} | kwargs))


def trainer(folder: Path | None = None, **kwargs: Any) -> Trainer:
    """Returns a Trainer on the CPU that prints nothing and writes no files by default."""
    settings = {
        "default_root_dir": folder,
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "num_sanity_val_steps": 0,
        "enable_autolog_hparams": False,
    }
    return Trainer(**settings | kwargs)


def optimizer(**kwargs: Any) -> Any:
    """Returns a factory as the command line creates for `optimizer: {...}`."""
    return lambda parameters: torch.optim.SGD(parameters, **({"lr": 0.1} | kwargs))
