"""Writes a trained classifier as one `.onnx`, `.pt2` or `.safetensors` file, with a description in its metadata."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resnet_pl.checkpoint import METADATA_KEY, versions
from resnet_pl.classifier import ImageClassifier
from resnet_pl.data.crops import Crop, describe_crop
from resnet_pl.evaluation.classify import Preprocessing, known_crop
from resnet_pl.export.inference import InferenceModel, exporting
from resnet_pl.models.weights_file import save_weights
from resnet_pl.run_dir import UNKNOWN, class_name, get_init_args
from resnet_pl.utils import require

# The first version of ONNX with antialiasing in Resize.
OPSET = 18
PT2_METADATA = "resnet_pl.json"
# Names of the files, without and with `--int8`.
NAMES = ("model", "model-int8")


def describe(
    model: ImageClassifier, known: Preprocessing, file: Path, checkpoint: Mapping[str, Any], takes: str
) -> dict[str, str]:
    """Returns the metadata of an exported file, one JSON value each.

    Args:
        model: the classifier.
        known: its preprocessing.
        file: its checkpoint.
        checkpoint: the contents of the checkpoint.
        takes: what images the exported network takes.
    """
    config = checkpoint[METADATA_KEY].get("config") or {}
    backbone = get_init_args(config.get("model")).get("backbone") or model.hparams.get("backbone")
    arguments = get_init_args(backbone)
    facts = {
        "arch": arguments.get("model_name") or class_name(backbone) or type(model.backbone).__name__,
        "arch_args": arguments,
        "classes": class_names(model),
        "folders": (checkpoint[METADATA_KEY].get("data") or {}).get("classes"),
        "input": takes,
        "image_size": known.image_size,
        "crop": _describe_crop(known.eval_crop),
        "pixel_format": known.pixel_format,
        "mean": _numbers(model.normalize.mean),
        "std": _numbers(model.normalize.std),
        "temperature": model.temperature,
        "confidence_threshold": model.confidence_threshold,
        "unknown": UNKNOWN,
        "thresholds": None if model.thresholds is None else model.thresholds.tolist(),
        "checkpoint": file.name,
        "checkpoint_sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "versions": versions(),
    }
    return {name: json.dumps(value) for name, value in facts.items()}


def _describe_crop(crop: Crop | None) -> dict[str, Any] | None:
    """The class and the arguments of a crop of this project, see `known_crop`; None for any other."""
    described = crop and (describe_crop(crop) or {"class_path": "resnet_pl.data.ResizeCenterCrop", "init_args": {}})
    return described if described and known_crop(described) else None


def class_names(model: ImageClassifier) -> list[str]:
    """Returns the name of each class; its index if the training data had no names."""
    return model.class_names or [str(index) for index in range(model.metrics.num_classes)]


def _numbers(statistic: Tensor) -> list[Any]:
    """A mean or standard deviation: one number per channel, or nested lists `(C, H, W)` if it is per pixel."""
    return statistic.flatten().tolist() if statistic.shape[-2:] == (1, 1) else statistic.tolist()


def write_onnx(network: InferenceModel, path: Path, metadata: Mapping[str, str]) -> None:
    """Writes an ONNX file with all weights in it."""
    for package in ("onnx", "onnxscript"):
        require(package, "export", "export --format onnx")
    graph = network.trace()
    with exporting(network.model):
        program = torch.onnx.export(
            graph, opset_version=OPSET, input_names=["images"], output_names=["probabilities"], verbose=False
        )
        assert program is not None  # it is None for the older exporter only
        program.model.metadata_props.update(metadata)
        program.save(path, external_data=False)


def write_pt2(network: InferenceModel, path: Path, metadata: Mapping[str, str]) -> None:
    """Writes a file for `torch.export.load`; the metadata is its extra file resnet_pl.json."""
    graph = network.trace()
    with exporting(network.model), path.open("wb") as file:
        torch.export.save(graph, file, extra_files={PT2_METADATA: json.dumps(dict(metadata))})


def write_safetensors(network: InferenceModel, path: Path, metadata: Mapping[str, str]) -> None:
    """Writes the weights alone, under the names of the backbone's own parameters."""
    save_weights(network.model.backbone, path, metadata)


WRITERS: dict[str, Callable[[InferenceModel, Path, Mapping[str, str]], None]] = {
    "onnx": write_onnx,
    "pt2": write_pt2,
    "safetensors": write_safetensors,
}
