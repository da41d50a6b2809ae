"""Loading of litdata chunks, images/s per core, compared with a folder and a cache: python benchmarks/streaming.py"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from benchmarks.loader import make_photos
from benchmarks.report import (
    MeasurementCache,
    command,
    git_commit,
    make_parser,
    report,
    run_in_subprocess,
    run_interleaved,
    table,
)
from examples import convert_to_litdata
from examples.streaming import StreamedImages
from resnet_pl import ImageDataModule, ImageFolder

FOLDER, CHUNKS, CACHED = "`ImageFolder`", "`StreamedImages`", "`ImageFolder`, `cache: true`"
BATCH = 16
NOTE = """
The training images of `fit` with its default crop to 224 pixels, in batches of {batch}. No workers, one thread; images
per second of CPU time, medians of {rounds} interleaved rounds, each measurement in its own process, with the files in
the page cache. {photos}."""


def make_data(variant: str, folder: str) -> ImageDataModule:
    """Returns a data module as the command line configures it."""
    options: dict[str, Any] = {"batch_size": BATCH, "num_workers": 0}
    if variant == CHUNKS:
        return StreamedImages(f"{folder}/chunks", **options)
    return ImageFolder(f"{folder}/photos", cache=variant == CACHED, cache_dir=f"{folder}/cache", **options)


def images_per_second(variant: str, folder: str) -> float:
    """Measures images per second of CPU time; a first epoch is a warm-up."""
    torch.set_num_threads(1)
    data = make_data(variant, folder)
    data.setup("fit")
    loader, count, seconds = data.train_dataloader(), 0, 0.0
    for _ in range(2):
        start = time.process_time()
        count = sum(len(batch.images) for batch in loader)
        seconds = time.process_time() - start
    return count / seconds


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and reports."""
    argv = sys.argv[1:] if argv is None else argv
    parser = make_parser(__doc__, rounds=5)
    parser.add_argument("--count", type=int, help="number of synthetic images")
    parser.add_argument("--state", type=Path, help="file for each measurement; an interrupted benchmark resumes")
    parser.add_argument("--one", type=json.loads, help="a single measurement, printed as JSON")
    options = parser.parse_args(argv)
    if options.one:
        print(json.dumps(images_per_second(**options.one)))
        return
    with tempfile.TemporaryDirectory() as folder:
        photos = make_photos(Path(folder) / "photos", "500×375", options.count)
        convert_to_litdata.main([f"{folder}/photos", f"{folder}/chunks"])
        calls = {
            each: partial(run_in_subprocess, __file__, {"variant": each, "folder": folder})
            for each in (FOLDER, CHUNKS, CACHED)
        }
        state = MeasurementCache(options.state, f"{options.count}, {git_commit()}")
        results = run_interleaved(calls, options.rounds, state)
    ratios = {name: [a / b for a, b in zip(each, results[FOLDER], strict=True)] for name, each in results.items()}
    rows = [
        [name, f"{statistics.median(each):,.0f}", f"{statistics.median(ratios[name]):.2f}"]
        for name, each in results.items()
    ]
    report(
        "Streaming: litdata chunks",
        command(__file__, argv),
        table(["Data", "Images/s per core", "Relative to the folder"], rows)
        + "\n"
        + NOTE.format(batch=BATCH, rounds=options.rounds, photos=photos),
        options.record,
    )


if __name__ == "__main__":
    main()
