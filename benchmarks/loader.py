"""Photos a second and core: ours with and without cache, torchvision's, timm's, decoding alone: benchmarks/loader.py"""

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
from torch.utils.data import DataLoader
from torchvision import datasets, transforms
from torchvision.io import ImageReadMode, decode_image, decode_jpeg, encode_jpeg, read_file
from torchvision.transforms import v2

from benchmarks.report import alone, arguments, command, report, table, take_turns
from resnet_pl.data.cache import open_cache
from resnet_pl.data.crops import RandomResizedCrop
from resnet_pl.data.dataset import ImageFileDataset
from resnet_pl.data.decode import list_images
from resnet_pl.data.loader import ImageFileLoader, ShardedEpochSampler

SIZE, BATCH = 224, 32
PIL, OURS, CACHED, ALONE = "torchvision ImageFolder, PIL", "ours", "ours, `cache: true`", "decoding alone"
FLOAT, IO = f"{OURS}, made float here", "torchvision ImageFolder, torchvision.io and v2"
REDUCED = f"{CACHED}, `cache_side: {round(SIZE * 256 / 224)}`"
TIMM = "timm create_loader"
NOTE = """
No workers, one thread; images a second of processor time, medians of {rounds} rounds in which the sides take turns,
each in a process of its own, the files in memory. {photos}. Each cuts {size} pixels by RandomResizedCrop and makes
batches of {batch}; torchvision's and timm's end in float32, ours in uint8, as the rest is done on the device, or *made
float here*. Of a photo's time in *ours* decoding takes {share:.0%}: at most {limit:.2f} of torchvision's speed could be
reached with this decoder, torchvision.io. {missing}"""


def make_photos(folder: Path, count: int) -> str:
    """Writes 500×375 JPEGs of quality 90; returns what they are, in words."""
    for number in range(count):
        path = folder / str(number % 2) / f"{number:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_jpeg(photo(number), quality=90).numpy().tobytes())
    kilobytes = statistics.mean(path.stat().st_size for path in folder.glob("*/*")) / 1000
    return f"{count} made JPEGs, 500×375, quality 90, {kilobytes:.0f} kB each: noise as smooth as photos, and edges"


def photo(seed: int, height: int = 375, width: int = 500, slope: float = 1.3, edges: int = 12) -> torch.Tensor:
    """`(3, height, width)` uint8: noise whose amplitude falls with frequency as in photos, cut by straight edges."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.fft.rfft2(torch.randn(3, height, width, generator=generator))
    rows, columns = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None]
    image = torch.fft.irfft2(noise / (rows**2 + columns**2).sqrt().clamp(min=1 / width) ** slope, s=(height, width))
    image = image / image.std()
    # Mostly luminance, as in photos.
    image = image[:1] + 0.3 * image
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    for a, b, c, *colour in torch.randn(edges, 6, generator=generator).tolist():
        image = image + 0.3 * (a * y + b * x > c / 2) * torch.tensor(colour)[:, None, None]
    return (image / image.std() * 50 + 120).clamp(0, 255).to(torch.uint8)


def ours(root: Path, names: list[str], cache: str, side: str) -> ImageFileLoader:
    """Our loader, as the command line has it on a processor."""
    photos = ImageFileDataset(root, names, [0] * len(names), SIZE, RandomResizedCrop())
    if side in (CACHED, REDUCED):
        photos.cache = open_cache(root, names, round(SIZE * 256 / 224) if side == REDUCED else None, cache)
    return ImageFileLoader(photos, ShardedEpochSampler(len(photos)), BATCH)


def theirs(root: Path, side: str) -> DataLoader:
    """The loader of a script."""
    if side == PIL:
        crop = transforms.Compose([transforms.RandomResizedCrop(SIZE), transforms.ToTensor()])
        return DataLoader(datasets.ImageFolder(str(root), crop), BATCH)
    if side == IO:
        crop = v2.Compose([v2.RandomResizedCrop(SIZE), v2.ToDtype(torch.float32, scale=True)])
        read = partial(decode_image, mode=ImageReadMode.RGB)
        return DataLoader(datasets.ImageFolder(str(root), crop, loader=read), BATCH)
    from timm.data import create_dataset, create_loader

    own = {"use_prefetcher": False, "num_workers": 0, "hflip": 0, "color_jitter": None, "interpolation": "bilinear"}
    data = create_dataset("", str(root))
    return create_loader(data, (3, SIZE, SIZE), BATCH, is_training=True, scale=(0.08, 1), **own)


def measured(side: str, root: str, cache: str) -> float:
    """Images a second of processor time; a first pass warms up and is not counted."""
    torch.set_num_threads(1)
    paths = list_images(Path(root))
    if side.startswith(OURS):
        loader: Any = ours(Path(root), [path.relative_to(root).as_posix() for path in paths], cache, side)
    elif side != ALONE:
        loader = theirs(Path(root), side)
    seconds = 0.0
    for _ in range(2):
        start = time.process_time()
        if side == ALONE:
            for path in paths:
                decode_jpeg(read_file(str(path)), mode=ImageReadMode.RGB)
        else:
            for batch in loader:
                if side == FLOAT:
                    batch.images.float().div_(255)
        seconds = time.process_time() - start
    return len(paths) / seconds


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and tells."""
    argv = sys.argv[1:] if argv is None else argv
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--root", type=Path, help="folder of class folders of JPEGs; made ones if not given")
    parser.add_argument("--count", type=int, default=400, help="photos to make")
    parser.add_argument("--one", type=json.loads, help="one measurement, which is printed as JSON")
    options = parser.parse_args(argv)
    if options.one:
        print(json.dumps(measured(**options.one)))
        return
    sides = [PIL, IO, OURS, FLOAT, CACHED, REDUCED, ALONE]
    try:
        import timm  # noqa: F401

        sides.append(TIMM)
    except ImportError:
        pass
    with tempfile.TemporaryDirectory() as scratch:
        root = options.root or Path(scratch) / "photos"
        told = f"{len(list_images(root)):,} photos" if options.root else make_photos(root, options.count)
        ones = {side: {"side": side, "root": str(root), "cache": str(Path(scratch) / "cache")} for side in sides}
        found = take_turns({side: partial(alone, __file__, one) for side, one in ones.items()}, options.rounds)
    speeds = {side: statistics.median(each) for side, each in found.items()}
    rows = [[side, f"{speed:,.0f}", f"{speed / speeds[PIL]:.2f}"] for side, speed in speeds.items()]
    note = NOTE.format(
        rounds=options.rounds,
        photos=told,
        size=SIZE,
        batch=BATCH,
        share=speeds[OURS] / speeds[ALONE],
        limit=speeds[ALONE] / speeds[PIL],
        missing="" if TIMM in sides else "timm is not installed.",
    )
    targets = {} if options.root else {"loader": OURS, "cached": CACHED}
    reached = {name: f"{speeds[side] / speeds[PIL]:.2f}" for name, side in targets.items()}
    if targets and speeds[OURS] / speeds[PIL] < 1.8:
        reached["loader"] += f": {speeds[OURS] / speeds[ALONE]:.0%} of a photo's time is its decoding"
    report(
        "Loader: photos to batches" + (" of a folder" if options.root else ""),
        ["FOLDER" if word == str(options.root) else word for word in command(__file__, argv)],
        table(["loader", "images/s per core", "of torchvision's"], rows) + "\n" + note.rstrip(),
        options.record,
        reached,
    )


if __name__ == "__main__":
    main()
