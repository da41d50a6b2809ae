"""Calibrates a finished run, and shows the reliability of its probabilities before and after.

python benchmarks/calibration.py --run runs/flowers-plain/version_0
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
from PIL import Image

from benchmarks.report import PROJECT, command, fill_block, make_parser, reproducible, table
from resnet_pl.cli.main import main as cli
from resnet_pl.reports.plots import save_png
from resnet_pl.reports.results import read_results

PAGE = PROJECT / "docs" / "understand.md"
IMAGE = PAGE.parent / "images" / "reliability.png"
TARGET = 0.9
HEAD = ["Images", "Temperature", "Cross-entropy", "Calibration error, 15 bins of equal width", "of equal numbers"]


def run(*argv: str) -> None:
    """Runs a command, which must succeed."""
    if code := cli(argv):
        raise SystemExit(code)


def calibrate(folder: Path, target: float) -> tuple[dict[str, Any], dict[str, Any], list[np.ndarray]]:
    """Calibrates a copy of a run.

    Args:
        folder: the run folder.
        target: precision of the accepted predictions.

    Returns:
        The calibration, the results of the test, and the reliability diagrams before and after.
    """
    with tempfile.TemporaryDirectory() as place, chdir(place):
        copy = Path(shutil.copytree(folder, "runs/copy/version_0"))
        run("calibrate", "--ckpt_path", str(copy), "--reset")
        diagrams = []
        for options in ([], ["--target_precision", str(target)]):
            if options:
                run("calibrate", "--ckpt_path", str(copy), *options)
            run("test", "--ckpt_path", str(copy), "--output", "test")
            diagrams.append(np.array(Image.open("test/reliability.png").convert("RGB")))
        checkpoint = torch.load(copy / "checkpoints" / "best.ckpt", weights_only=True)
        return checkpoint["resnet_pl"]["calibration"], read_results(Path("test/results.json")), diagrams


def describe(calibration: dict[str, Any], results: dict[str, Any]) -> str:
    """Returns the table, and what the confidence threshold does, as Markdown."""
    rows = []
    for name, images in (("val", calibration["images"]), ("test", results["images"])):
        for when, temperature in (("before", 1), ("after", calibration["temperature"])):
            scores = calibration[name][when]
            errors = (f"{scores[key]:.1%}" for key in ("calibration_error", "adaptive_calibration_error"))
            rows.append([f"{images:,} {name}, {when}", f"{temperature:.2f}", f"{scores['loss']:.3f}", *errors])
    top1 = f"The top-1 accuracy on the test images is {results['top1']:.1%}, before and after."
    return f"{table(HEAD, rows)}\n\n{top1} {_describe_threshold(calibration)} One run (n = 1)."


def _describe_threshold(calibration: dict[str, Any]) -> str:
    target = f"`--target_precision {calibration['target_precision']}`"
    if (threshold := calibration["threshold"]) is None:
        return f"{target} needs no threshold."
    parts = []
    for name in ("val", "test"):
        scores = calibration[name]["accepted"]
        low, high = scores["precision_interval"]
        share = f"{scores['coverage']:.0%} of the {name} images are accepted"
        parts.append(f"{share}, {scores['precision']:.1%} of them right (95 % interval {low:.0%} to {high:.0%})")
    return f"{target} chooses the threshold {threshold:.3f}: {'; '.join(parts)}."


def main(argv: Sequence[str]) -> None:
    """Prints the table; with --record, also writes it and the image into docs/."""
    parser = make_parser(__doc__)
    parser.add_argument("--run", type=Path, required=True, help="run folder of a finished training")
    args = parser.parse_args(argv)
    calibration, results, diagrams = calibrate(args.run.resolve(), TARGET)
    text = reproducible(command(__file__, argv), describe(calibration, results))
    print(text)
    if args.record:
        fill_block(PAGE, "calibration", text)
        save_png(np.concatenate(diagrams, axis=1), IMAGE)


if __name__ == "__main__":
    main(sys.argv[1:])
