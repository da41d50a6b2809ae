"""Quantizes an exported ONNX network to int8, and compares its accuracy with that of the checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.table import Table
from torch import Tensor

from resnet_pl.export.check import Comparison, as_input, read_images
from resnet_pl.export.inference import InferenceModel, exporting
from resnet_pl.reports.tables import numbers_table
from resnet_pl.utils import UserError, progress, require

# Layers of the network; the preprocessing and the softmax keep their precision.
LAYERS = ["Conv", "Gemm", "MatMul", "Add", "MaxPool", "Relu"]
# More images change the ranges of the activations little.
MAX_IMAGES = 256


def quantize(
    path: Path, network: InferenceModel, images: Any, prepare: Callable[[Tensor], Tensor], skip_bad: bool = False
) -> None:
    """Replaces an ONNX file by one with int8 weights and activations (static quantization, QDQ format).

    The range of each activation is that on the given images, at most `MAX_IMAGES` of them, evenly distributed.

    Args:
        path: the file that `write_onnx` has written.
        network: the network in it.
        images: the images, a split of an `ImageDataModule`; not those of the test.
        prepare: preprocessing of the checkpoint, see `compare`.
        skip_bad: whether files that cannot be read are skipped.

    Raises:
        UserError: a package is missing, a file is not an image, or the network cannot be quantized.
    """
    quantization = require("onnxruntime.quantization", "export", "export --int8")
    onnx = require("onnx", "export", "export --int8")
    chosen = range(0, len(images), -(-len(images) // MAX_IMAGES))

    with progress("calibrating", len(chosen)) as advance, TemporaryDirectory() as folder:

        class Reader(quantization.CalibrationDataReader):
            def __init__(self) -> None:
                self.remaining = read_images(images, chosen, skip_bad)

            def get_next(self) -> dict[str, Any] | None:
                if (found := next(self.remaining, None)) is None:
                    return None
                advance(1)
                return {"images": as_input(network, found[1], prepare).numpy()}

        before, after = Path(folder, "float32.onnx"), Path(folder, "int8.onnx")
        shutil.copy(path, before)
        with exporting(network.model):
            quantization.quantize_static(
                str(before), str(after), Reader(), per_channel=True, op_types_to_quantize=LAYERS
            )
        result = onnx.load(after)
        del result.metadata_props[:]  # the quantizer has added an entry of its own
        result.metadata_props.extend(onnx.load(before).metadata_props)
        onnx.save(result, path)


def accuracy_table(comparison: Comparison, sizes: tuple[int, int]) -> Table:
    """Returns accuracy and file size before and after the quantization.

    Args:
        comparison: of the checkpoint and the quantized file.
        sizes: of the files before and after, bytes.
    """
    before, after = comparison.accuracies()
    table = numbers_table(f"{len(comparison.labels):,} test images", numbers=["float32", "int8", "difference"])
    table.add_row("top-1 accuracy", f"{before:.2%}", f"{after:.2%}", f"{100 * (after - before):+.2f} points")
    table.add_row("size, MB", *(f"{size / 1e6:,.1f}" for size in sizes), f"{sizes[1] / sizes[0] - 1:+.0%}")
    return table


def check_drop(comparison: Comparison, max_drop: float | None) -> None:
    """Raises UserError if the accuracy drops by more than `max_drop`, a fraction."""
    before, after = comparison.accuracies()
    if max_drop is not None and before - after > max_drop:
        raise UserError(
            f"--int8: the top-1 accuracy drops from {before:.2%} to {after:.2%}, by more than --max_drop {max_drop:g}\n"
            "no file is written; export without --int8, or allow a larger drop"
        )
