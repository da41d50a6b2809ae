"""Photos a second and core: ours with and without cache, torchvision's, timm's, decoding alone: benchmarks/loader.py"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from torch.utils.data import DataLoader
from torchvision import datasets, transforms
from torchvision.io import ImageReadMode, decode_jpeg, encode_jpeg, read_file

from benchmarks.report import report
from resnet_pl.data.cache import decoded
from resnet_pl.data.images import list_images
from resnet_pl.data.loaders import EpochSampler, PhotoLoader
from resnet_pl.data.photos import Photos
from resnet_pl.data.transforms import RandomResizedCrop

SIZE, BATCH = 224, 32
OURS, CACHED = "ours", "ours, `cache: decoded`"
NOTE = """
One process, no workers, one thread; images a second of processor time, the median of {rounds} rounds in which all take
turns, the files in memory. {photos}. Each cuts {size} pixels by RandomResizedCrop and makes batches of {batch};
torchvision's ends with ToTensor, ours in uint8, as the rest is done on the device. Of a photo's time in *ours* decoding
takes {share:.0%}: at most {limit:.2f} of torchvision's speed could be reached with this decoder. {missing}"""


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


def sides(root: Path, cache_dir: str) -> dict[str, Callable[[], int]]:
    """What is measured: each reads every photo once and returns how many."""
    paths = list_images(root)
    names = [path.relative_to(root).as_posix() for path in paths]

    def decode() -> int:
        for path in paths:
            decode_jpeg(read_file(str(path)), mode=ImageReadMode.RGB)
        return len(paths)

    def through(loader: DataLoader | PhotoLoader) -> Callable[[], int]:
        return lambda: sum(len(batch[0]) for batch in loader)

    def ours(side: int | None = None, cached: bool = False) -> Callable[[], int]:
        photos = Photos(root, names, [0] * len(names), SIZE, RandomResizedCrop())
        photos.cache = decoded(root, names, side, cache_dir) if cached else None
        return through(PhotoLoader(photos, EpochSampler(len(photos)), BATCH))

    crop = [transforms.RandomResizedCrop(SIZE), transforms.ToTensor()]
    folder = datasets.ImageFolder(str(root), transforms.Compose(crop))
    found = {
        "torchvision ImageFolder, PIL": through(DataLoader(folder, BATCH)),
        OURS: ours(),
        CACHED: ours(cached=True),
        f"{CACHED}, `cache_side: {round(SIZE * 256 / 224)}`": ours(round(SIZE * 256 / 224), cached=True),
        "decoding alone (torchvision.io)": decode,
    }
    try:
        from timm.data import create_dataset, create_loader
    except ImportError:
        return found
    timm = create_loader(
        create_dataset("", str(root)),
        (3, SIZE, SIZE),
        BATCH,
        is_training=True,
        use_prefetcher=False,
        num_workers=0,
        hflip=0,
        color_jitter=None,
        scale=(0.08, 1),
        interpolation="bilinear",
    )
    return found | {"timm create_loader": through(timm)}


def measure(found: dict[str, Callable[[], int]], rounds: int) -> dict[str, float]:
    """Images a second of processor time, medians; the first round warms up and is not counted."""
    speeds: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(rounds + 1):
        for name, read in found.items():
            start = time.process_time()
            count = read()
            speeds[name].append(count / (time.process_time() - start))
    return {name: statistics.median(each[1:]) for name, each in speeds.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, help="folder of class folders of JPEGs; made ones if not given")
    parser.add_argument("--count", type=int, default=400, help="photos to make")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--record", action="store_true", help="write the table into docs/benchmarks.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        root = options.root or Path(scratch) / "photos"
        told = f"{len(list_images(root))} photos" if options.root else make_photos(root, options.count)
        found = sides(root, str(Path(scratch) / "cache"))
        speeds = measure(found, options.rounds)
    base = next(iter(speeds.values()))
    rows = [f"| {name} | {speed:,.0f} | {speed / base:.2f} |" for name, speed in speeds.items()]
    without = "" if "timm create_loader" in speeds else "timm is not installed."
    decoding = speeds["decoding alone (torchvision.io)"]
    limits = {"share": speeds[OURS] / decoding, "limit": decoding / base}
    note = NOTE.format(**limits, rounds=options.rounds, photos=told, size=SIZE, batch=BATCH, missing=without)
    report(
        "Loader: photos to batches" + (" of a folder" if options.root else ""),
        ["python benchmarks/loader.py", *(["--root", "FOLDER"] if options.root else [])],
        "\n".join(["| loader | images/s per core | of torchvision's |", "|---|---|---|", *rows, note.rstrip()]),
        options.record,
        {}
        if options.root
        else {name: f"{speeds[side] / base:.2f}" for name, side in (("loader", OURS), ("cached", CACHED))},
    )
