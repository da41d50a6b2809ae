"""The subcommand `export`: writes a trained network as one file for programs without this project."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import Namespace
from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningArgumentParser

from resnet_pl.classifier import ImageClassifier
from resnet_pl.cli.evaluate import prepare_split
from resnet_pl.data import CenterCrop, ImageDataModule, Letterbox, ResizeCenterCrop
from resnet_pl.data.image_files import find_images
from resnet_pl.data.resizing import height_width
from resnet_pl.evaluation.classify import Preprocessing
from resnet_pl.export.check import compare
from resnet_pl.export.exported import load_onnx, load_pt2
from resnet_pl.export.formats import NAMES, WRITERS, describe
from resnet_pl.export.inference import InferenceModel
from resnet_pl.export.int8 import accuracy_table, check_drop, quantize
from resnet_pl.load import restore
from resnet_pl.reports.tables import print_report
from resnet_pl.types import PositiveInt, UnitInterval
from resnet_pl.utils import UserError, atomic_write, counted, partial_name, prog_name, run_on_rank_zero

if TYPE_CHECKING:
    from resnet_pl.cli.parser import ProjectCLI

INPUT_TYPE = PositiveInt | tuple[PositiveInt, PositiveInt] | None
FORMAT = (
    "File format: onnx for ONNX Runtime and other runtimes, pt2 for torch.export.load, safetensors for the weights"
    " alone; by default that of --output, or onnx."
)
OUTPUT = "File to write; by default model.onnx, model.pt2 or model.safetensors in the run folder of the checkpoint."
PREPROCESSING = (
    "With none, the exported network takes float images (N, 3, S, S) in [0, 1] of its input size. By default it takes"
    " images of any size as decoded from a file, (N, H, W, 3) uint8 RGB, and resizes and crops them as the evaluation"
    " does."
)
INPUT_SIZE = "Size of the network's input, pixels or [height, width]; by default that of the training."
CHECK = "Compare the file with the checkpoint on the test images, and write it only if they agree."
INT8 = (
    "Quantize weights and activations to int8, with ranges from the validation images, and compare the accuracy on the"
    " test images. Networks become about four times smaller, and faster on many CPUs. For --format onnx."
)
MAX_DROP = "Write no file if --int8 lowers the top-1 accuracy by more than this fraction, such as 0.01."
IMAGES = "Image files, folders or glob patterns for --check, in place of the test set."


def add_arguments(parser: LightningArgumentParser) -> None:
    """Adds the options of `export`."""
    parser.add_argument("--format", type=Literal["onnx", "pt2", "safetensors"] | None, default=None, help=FORMAT)
    parser.add_argument("--output", type=str | None, default=None, help=OUTPUT)
    parser.add_argument("--preprocessing", type=Literal["graph", "none"], default="graph", help=PREPROCESSING)
    parser.add_argument("--input_size", type=INPUT_TYPE, default=None, help=INPUT_SIZE)
    parser.add_argument("--check", action="store_true", help=CHECK)
    parser.add_argument("--images", type=str, nargs="+", help=IMAGES)
    parser.add_argument("--int8", action="store_true", help=INT8)
    parser.add_argument("--max_drop", type=UnitInterval | None, default=None, help=MAX_DROP)


def callbacks(cli: ProjectCLI) -> list[Callback]:
    """Returns no callbacks: the Trainer is not used."""
    return []


def run(cli: ProjectCLI) -> None:
    """Writes the file, in the process of rank 0."""
    with _ended_by_sigterm():
        run_on_rank_zero(_export, cli)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Lets SIGTERM end the block with SystemExit, so that no temporary file stays; the Trainer does it elsewhere."""
    if threading.current_thread() is not threading.main_thread():  # signals are for the main thread only
        yield
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _export(cli: ProjectCLI) -> None:
    settings, file, model = cli.config, cli.command_line.checkpoint, cli.model
    if cli.checkpoint is None or file is None:
        raise UserError("export needs a checkpoint\ngive --ckpt_path best, or the path of one")
    if not isinstance(model, ImageClassifier):
        raise UserError(f"export: {type(model).__name__} is not an ImageClassifier\nexport it with torch.export")
    form, path = _target(settings, cli)
    data = cli.datamodule
    is_ours = isinstance(data, ImageDataModule)
    _check_options(settings, form, is_ours)
    restore(model, cli.checkpoint)
    known = Preprocessing.of_data(data) if is_ours else Preprocessing(getattr(data, "image_size", None), None)
    known.image_size = settings["input_size"] or known.image_size
    network, takes = inference_model(model, known, form, settings["preprocessing"] == "none")
    metadata = describe(model, known, file, cli.checkpoint, takes)
    metadata["precision"] = json.dumps("int8" if settings["int8"] else "float32")
    if settings["int8"] or (settings["check"] and not settings["images"]):
        prepare_split(cli, "test")
    _remove_abandoned(path)
    with atomic_write(path) as temporary:
        WRITERS[form](network, temporary, metadata)
        if settings["check"]:
            _check(cli, network, known, form, temporary)
        if settings["int8"]:
            _quantize(cli, network, known, temporary)
    _report(path, form, takes, metadata)


def _remove_abandoned(path: Path) -> None:
    """Removes the temporary files of killed exports; an export that is running has changed its own in the last hour."""
    for left in path.parent.glob(partial_name(path, "[0-9a-f]" * 8)):
        if time.time() - left.stat().st_mtime > 3600:
            left.unlink(missing_ok=True)


def _target(settings: Namespace, cli: ProjectCLI) -> tuple[str, Path]:
    """The format and the file."""
    if settings["output"] is None:
        form = settings["format"] or "onnx"
        return form, cli.output / f"{NAMES[settings['int8']]}.{form}"
    path = Path(settings["output"])
    form = settings["format"] or path.suffix.removeprefix(".")
    if path.suffix != f".{form}" or form not in WRITERS:
        names = f".{settings['format']}" if settings["format"] else "one of ." + ", .".join(WRITERS)
        raise UserError(f"--output {path} has the extension {path.suffix or 'of no format'}\nend its name with {names}")
    return form, path


def inference_model(
    model: ImageClassifier, known: Preprocessing, form: str, prepared: bool
) -> tuple[InferenceModel, str]:
    """Returns the module to export, and what images it takes.

    Args:
        model: the classifier.
        known: its preprocessing, without a size or a crop if it is not known.
        form: the format.
        prepared: whether the images are resized and cropped before.

    Raises:
        UserError: the size or the preprocessing is not known, or cannot be exported.
    """
    if form == "safetensors":
        return InferenceModel(model, known.image_size or 0, None), "float32 (N, C, H, W): (pixels / 255 - mean) / std"
    if known.image_size is None:
        raise UserError(
            "export: the size of the network's input is not known\n"
            "give it with --input_size PIXELS, or use --format safetensors"
        )
    crop, channels = known.eval_crop, known.pixel_format.channels
    if prepared:
        shape = "N, " + ", ".join(map(str, (channels, *height_width(known.image_size))))
        values = "as the data module prepares them" if crop is None else "in [0, 1]"
        return InferenceModel(model, known.image_size, None, channels), f"float32 ({shape}) {values}"
    if channels != 3 or type(crop) not in (ResizeCenterCrop, CenterCrop, Letterbox):
        what = f"preprocessing of images with {counted(channels, 'channel')}"
        if channels == 3:
            what = "the data module's own preprocessing" if crop is None else f"the crop {type(crop).__name__}"
        raise UserError(f"export: {what} cannot be exported\nadd --preprocessing none, and prepare the images yourself")
    return InferenceModel(model, known.image_size, crop), "uint8 (N, H, W, 3) RGB"


def _check(cli: ProjectCLI, network: InferenceModel, known: Preprocessing, form: str, path: Path) -> None:
    """Prints the comparison with the checkpoint; raises UserError if the differences are too large."""
    data: Any = cli.datamodule
    if cli.config["images"]:
        data.set_predict_files(find_images(cli.config["images"], "export"))
        images = data.predict_images
    else:
        images = data.split("test")
    run = load_pt2(path) if form == "pt2" else load_onnx(path)[0]
    comparison = compare(network, run, images, known.function(), data.on_bad_image == "skip")
    print_report(comparison.table())
    if problem := comparison.problem():
        raise UserError(f"--check: the file differs from the checkpoint: {problem}\nno file is written")


def _quantize(cli: ProjectCLI, network: InferenceModel, known: Preprocessing, path: Path) -> None:
    """Quantizes the file and prints the accuracy before and after; raises UserError if it drops too much."""
    data: Any = cli.datamodule
    if network.model.thresholds is not None:
        raise UserError("--int8 is for networks with one label per image\nremove it")
    if "val" not in data.splits:
        raise UserError("--int8 needs validation images for the ranges of the activations; the data has none")
    prepare, size, skip_bad = known.function(), path.stat().st_size, data.on_bad_image == "skip"
    quantize(path, network, data.split("val"), prepare, skip_bad)
    comparison = compare(network, load_onnx(path)[0], data.split("test"), prepare, skip_bad)
    print_report(accuracy_table(comparison, (size, path.stat().st_size)))
    check_drop(comparison, cli.config["max_drop"])


def _check_options(settings: Namespace, form: str, is_ours: bool) -> None:
    """Raises UserError if the options of the check or of the quantization contradict others."""
    if settings["max_drop"] is not None and not settings["int8"]:
        raise UserError("--max_drop is the limit of --int8\nadd it, or remove --max_drop")
    if settings["int8"] and (form != "onnx" or not is_ours):
        raise UserError(f"--int8 is not possible for {'data of your own' if form == 'onnx' else form}\nremove it")
    if settings["images"] and not settings["check"]:
        raise UserError("--images are the images of --check\nadd it, or remove --images")
    if settings["check"] and (form == "safetensors" or not is_ours):
        what = "weights alone" if form == "safetensors" else "data of your own"
        raise UserError(f"--check is not possible for {what}\nremove it")


def _report(path: Path, form: str, takes: str, metadata: Mapping[str, str]) -> None:
    """Prints what the file holds, and how it is used."""
    classes = len(json.loads(metadata["classes"]))
    use = {
        "onnx": f"{prog_name()} predict --ckpt_path {path} --images FILES",
        "pt2": f'torch.export.load("{path}").module()',
        "safetensors": f'safetensors.torch.load_file("{path}")',
    }
    if form == "onnx" and metadata["crop"] == "null":
        use["onnx"] = f'onnxruntime.InferenceSession("{path}")'
    print(f"Saved to {path} ({path.stat().st_size / 1e6:,.1f} MB)")
    print(f"  input:  images, {takes}")
    print(f"  output: probabilities (N, {classes})" if form != "safetensors" else "  holds:  the weights alone")
    print(f"  use:    {use[form]}")
