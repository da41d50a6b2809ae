"""Latency of a trained network on the CPU: eager, compiled, ONNX and ONNX int8: python benchmarks/latency.py

The weights are random, which does not change the time. The images have the size of the network's input.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
from torch import Tensor

from benchmarks.report import command, make_parser, report, run_interleaved, table
from resnet_pl import models
from resnet_pl.classifier import ImageClassifier
from resnet_pl.export.formats import write_onnx
from resnet_pl.export.inference import InferenceModel
from resnet_pl.export.int8 import quantize
from resnet_pl.utils import require

EAGER, COMPILED, ONNX, INT8 = "PyTorch", "`torch.compile`", "ONNX Runtime", "ONNX Runtime, int8"
BATCHES = (1, 32)
CLASSES = 10
NOTE = """
Median and 95th percentile of the time of one batch, in milliseconds. The variants ran alternately in one process, with
the same number of threads. Each takes images that are resized and cropped already, and returns probabilities.
"""
Run = Callable[[Tensor], object]


class Noise:
    """Images to calibrate the quantization on.

    Args:
        size: height and width, pixels.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return 8

    def load_full_image(self, index: int) -> Tensor:
        """Returns an image, `(3, H, W)` uint8."""
        generator = torch.Generator().manual_seed(index)
        return torch.randint(0, 256, (3, self.size, self.size), dtype=torch.uint8, generator=generator)


def build(backbone: str, size: int, threads: int) -> dict[str, Run]:
    """Returns a function per variant, which classifies images `(N, 3, S, S)` float in [0, 1].

    Args:
        backbone: a function of `resnet_pl.models`.
        size: image size, pixels.
        threads: threads of ONNX Runtime.
    """
    torch.manual_seed(0)
    model = ImageClassifier(getattr(models, backbone)(num_classes=CLASSES))
    model.configure_model()
    network = InferenceModel(model.eval(), size, None).eval()
    runtime = require("onnxruntime", "export", "benchmarks/latency.py")
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = threads

    def session(path: Path) -> Run:
        opened = runtime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
        return lambda images: opened.run(None, {"images": images.numpy()})

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        write_onnx(network, path, {})
        exported = session(path)
        quantize(path, network, Noise(size), lambda image: image)
        return {
            EAGER: torch.inference_mode()(network),
            COMPILED: torch.inference_mode()(torch.compile(network)),
            ONNX: exported,
            INT8: session(path),
        }


def seconds(run: Run, images: Tensor, calls: int) -> list[float]:
    """Times single calls, after one that is not counted."""
    run(images)
    found = []
    for _ in range(calls):
        start = time.perf_counter()
        run(images)
        found.append(time.perf_counter() - start)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and reports."""
    argv = sys.argv[1:] if argv is None else argv
    parser = make_parser(__doc__, rounds=5)
    parser.add_argument("--backbone", default="resnet18", help="a network of this project")
    parser.add_argument("--size", type=int, default=224, help="image size, pixels")
    parser.add_argument("--calls", type=int, default=20, help="batches per round")
    options = parser.parse_args(argv)
    threads = torch.get_num_threads()
    variants = build(options.backbone, options.size, threads)
    rows = []
    for batch in BATCHES:
        images = torch.rand(batch, 3, options.size, options.size)
        timed = {name: partial(seconds, run, images, options.calls) for name, run in variants.items()}
        results = {
            name: 1000 * np.concatenate(rounds) for name, rounds in run_interleaved(timed, options.rounds).items()
        }
        base = np.median(results[EAGER])
        for name, times in results.items():
            middle, slow = np.percentile(times, [50, 95])
            rows.append([batch, name, f"{middle:.1f}", f"{slow:.1f}", f"{base / middle:.2f}"])
    count = options.rounds * options.calls
    title = f"Latency of {options.backbone} on a CPU, {options.size} pixels"
    head = ["Batch", "Variant", "Median (ms)", "95 % (ms)", "Speed-up"]
    threads_text = f"{threads} thread{'s' if threads > 1 else ''}, n = {count} batches per row."
    report(title, command(__file__, argv), f"{table(head, rows)}\n{NOTE}{threads_text}", options.record)


if __name__ == "__main__":
    main()
