"""Runs exported networks: `.onnx` files with ONNX Runtime, `.pt2` files with torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor
from typing_extensions import override

from resnet_pl.data import ImageDataModule
from resnet_pl.data.batch import Batch
from resnet_pl.data.crops import Crop
from resnet_pl.data.decode import RGB, PixelFormat
from resnet_pl.data.resizing import Size
from resnet_pl.evaluation.classify import known_crop
from resnet_pl.types import NonNegativeInt
from resnet_pl.utils import UserError, require

# Maps images, as the file takes them, to class probabilities `(N, K)`.
Runner = Callable[[Tensor], Tensor]


def load_onnx(path: Path) -> tuple[Runner, dict[str, Any]]:
    """Returns a function that runs an ONNX file on the CPU, and the metadata in it.

    Raises:
        UserError: the file is damaged, or was not written by this project.
    """
    runtime = require("onnxruntime", "export", str(path))
    options = runtime.SessionOptions()
    # As many as torch uses. With one there is no thread pool, which a forked process cannot free.
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of many types
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} cannot be read: {reason}\nexport it again") from error
    metadata = session.get_modelmeta().custom_metadata_map
    if "checkpoint_sha256" not in metadata:
        raise UserError(f"{path} was not written by this project\nuse a file that export --format onnx has written")

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["probabilities"], {"images": images.cpu().numpy()})[0])

    return run, {name: json.loads(value) for name, value in metadata.items()}


def load_pt2(path: Path) -> Runner:
    """Returns a function that runs a file of `torch.export`, which must be from this project."""
    with path.open("rb") as file:
        module = torch.export.load(file).module()
    return torch.no_grad()(module)


class ExportedNetwork(LightningModule):
    """An ONNX file in place of a model, for `predict`.

    Args:
        path: the file.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self.network, metadata = load_onnx(Path(path))
        self.class_names: list[str] = metadata["classes"]
        self.confidence_threshold: float | None = metadata["confidence_threshold"]
        thresholds = metadata["thresholds"]
        self.thresholds = None if thresholds is None else torch.tensor(thresholds)
        self.takes_files = takes_files(metadata)

    @override
    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Returns what `ImageClassifier.predict_step` does."""
        assert isinstance(batch.images, Tensor), "one view per image"
        images = batch.images.permute(0, 2, 3, 1) if self.takes_files else batch.images / 255
        return {"probabilities": self.network(images), "labels": batch.labels.cpu(), "indices": batch.indices.cpu()}


class ExportedImages(ImageDataModule):
    """Image files as an ONNX file takes them, for `predict`.

    Args:
        path: the ONNX file.
        num_workers: processes that load images; null chooses by the number of CPU cores.
        on_bad_image: what happens at an unreadable image file, see `ImageDataModule`.
    """

    def __init__(
        self,
        path: str,
        num_workers: NonNegativeInt | None = None,
        on_bad_image: Literal["error", "skip"] = "error",
    ) -> None:
        _, metadata = load_onnx(Path(path))
        size = metadata["image_size"]
        super().__init__(
            1, None, tuple(size) if isinstance(size, list) else size, num_workers=num_workers, on_bad_image=on_bad_image
        )
        self.classes = metadata["folders"] or metadata["classes"]
        self.multi_label = metadata["thresholds"] is not None
        crop = WholeImage() if takes_files(metadata) else known_crop(metadata["crop"] or {"class_path": ""})
        if crop is None:
            raise UserError(
                f"{path}: its images are prepared in a way of your own, which is not in the file\n"
                "run it with ONNX Runtime on images that are prepared as for the evaluation"
            )
        self.eval_crop = crop
        self.pixel_format = PixelFormat(*metadata.get("pixel_format", RGB))

    @override
    def find_splits(self) -> dict[str, Any]:
        raise UserError("predict: an exported file has no test set\nname the images: --images FILES")


class NoData(LightningDataModule):
    """Stands for data that was built in Python, which `export` does not need."""


class WholeImage(Crop):
    """No crop: the exported network resizes and crops the image itself."""

    draws_from_torch_only = True

    @override
    def __call__(self, image: Tensor, size: Size) -> Tensor:
        return image


def takes_files(metadata: dict[str, Any]) -> bool:
    """Whether an exported network takes images of any size, as decoded from a file."""
    return metadata["input"].startswith("uint8")
