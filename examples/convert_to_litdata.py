"""Packs a folder of class folders into litdata chunks of 64 MB, with the splits that `fit` would make.

python -m examples.convert_to_litdata data/flower_photos data/flower_chunks
"""

import argparse
import json
import random
from collections.abc import Callable, Sequence
from multiprocessing import get_start_method
from pathlib import Path
from typing import Any

import litdata

from resnet_pl import ImageFolder


def read_file(item: tuple[int, str]) -> dict[str, Any]:
    """Returns what a chunk holds of an image: its index in the split, and its file, unchanged."""
    return {"index": item[0], "file": Path(item[1]).read_bytes()}


def write(function: Callable[[Any], Any], inputs: Sequence[Any], output: str, workers: int) -> None:
    """Writes the results of a function as chunks, in order."""
    options = {"num_workers": min(workers, len(inputs)), "start_method": get_start_method()}
    order = {"keep_data_ordered": True, "reorder_files": False}
    litdata.optimize(function, inputs, output, chunk_bytes="64MB", mode="overwrite", verbose=False, **order, **options)


def main(argv: Sequence[str] | None = None) -> None:
    """Writes OUTPUT/train, val and test, and OUTPUT/about: the classes, and the name and label of each image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="folder of the images: CLASS/*, or {train,val,test}/CLASS/*")
    parser.add_argument(
        "output", help="folder of the chunks, or its URL in an object store, such as s3://bucket/flowers"
    )
    parser.add_argument("--val_split", type=float, default=0.1, help="fraction held out, without a val folder")
    parser.add_argument("--test_split", type=float, default=0.1, help="fraction held out, without a test folder")
    parser.add_argument("--split_seed", type=int, default=0, help="seed of the split")
    parser.add_argument("--workers", type=int, default=4, help="processes that read files")
    given = vars(parser.parse_args(argv))
    output, workers = given.pop("output"), given.pop("workers")
    data = ImageFolder(**given, verify_images=True)
    data.setup("test")
    about: dict[str, Any] = {"classes": data.classes}
    for name, split in data.splits.items():
        images = list(zip(split.names, split.labels, strict=True))
        if name == "train":  # an epoch shuffles the chunks, and the images of a chunk, but does not mix all images
            random.Random(0).shuffle(images)
        files = [(index, str(split.root / image)) for index, (image, _) in enumerate(images)]
        write(read_file, files, f"{output}/{name}", workers)
        about[name] = list(zip(*images, strict=True))
    write(str, [json.dumps(about)], f"{output}/about", 1)
    counts = [f"{len(split.names):,} {name}" for name, split in data.splits.items()]
    print(f"Wrote {' + '.join(counts)} images to {output}")


if __name__ == "__main__":
    main()
