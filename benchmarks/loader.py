"""Loading of JPEG files, images/s per core, compared with torchvision and timm: python benchmarks/loader.py"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import datasets, transforms
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

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
from resnet_pl.data.cache import open_cache
from resnet_pl.data.crops import RandomResizedCrop
from resnet_pl.data.dataset import ImageFileDataset
from resnet_pl.data.decode import read_image
from resnet_pl.data.image_files import list_images
from resnet_pl.data.loader import ImageFileLoader
from resnet_pl.data.samplers import ShardedEpochSampler

SIZE, BATCH = 224, 16
PIL, IO = "torchvision `ImageFolder`, PIL", "torchvision `ImageFolder`, `torchvision.io` and v2 transforms"
OURS, CACHED = "`ImageFileLoader`", "`ImageFileLoader`, `cache: true`"
FULL = f"{OURS}, `scaled_decoding: false`"
FLOAT, DECODING = "`ImageFileLoader`, converted to float32", "decoding only"
REDUCED = f"{CACHED}, `cache_side: {round(SIZE * 256 / 224)}`"
TIMM = "timm `create_loader`"
# Height, width, number and detail (see `synthetic_photo`) of the images of each kind.
KINDS = {
    "500×375": (375, 500, 400, 1.3),
    "4000×3000": (3000, 4000, 16, 1.3),
    "4000×3000, soft": (3000, 4000, 16, 2.0),
}
TARGETS = {
    ("500×375", OURS): "loader",
    ("500×375", CACHED): "cached",
    ("4000×3000", OURS): "large",
    ("4000×3000, soft", OURS): "large, soft",
}
NOTE = """
No workers, one thread; images per second of CPU time, medians of {rounds} interleaved rounds, each measurement in its
own process, with the files in the page cache. In parentheses: relative to torchvision with PIL. {photos}. Each variant
applies RandomResizedCrop to {size} pixels and makes batches of {batch}. Torchvision and timm return float32.
`ImageFileLoader`, the loader of this project, returns uint8, because it leaves the conversion to the device. "Decoding
only" is in full: of the time of `ImageFileLoader` on the smallest images, decoding takes {share:.0%}. {missing}"""


def make_photos(folder: Path, kind: str, count: int | None = None) -> str:
    """Writes JPEGs of a kind, with quality 90, in two class folders; returns a description."""
    height, width, number, slope = KINDS[kind]
    for seed in range(count or number):
        path = folder / str(seed % 2) / f"{seed:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = synthetic_photo(seed, height, width, slope).permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(path, quality=90)
    kilobytes = statistics.mean(path.stat().st_size for path in folder.glob("*/*")) / 1000
    return f"{kind}: {count or number} synthetic JPEGs, quality 90, {kilobytes:,.0f} kB each"


def synthetic_photo(
    seed: int, height: int = 375, width: int = 500, slope: float = 1.3, edges: int = 12
) -> torch.Tensor:
    """Returns an image with the statistics of a photo: smooth noise and straight edges.

    Args:
        seed: seed of the noise.
        height: pixels.
        width: pixels.
        slope: the amplitude decreases with frequency to this power, as in photos.
        edges: number of straight edges.

    Returns:
        `(3, height, width)`, uint8.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.fft.rfft2(torch.randn(3, height, width, generator=generator))
    rows, columns = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None]
    image = torch.fft.irfft2(noise / (rows**2 + columns**2).sqrt().clamp(min=1 / width) ** slope, s=(height, width))
    image = image / image.std()
    # Mostly luminance, as in photos.
    image = image[:1] + 0.3 * image
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    for a, b, c, *color in torch.randn(edges, 6, generator=generator).tolist():
        image = image + 0.3 * (a * y + b * x > c / 2) * torch.tensor(color)[:, None, None]
    return (image / image.std() * 50 + 120).clamp(0, 255).to(torch.uint8)


def project_loader(root: Path, names: list[str], cache: str, variant: str) -> ImageFileLoader:
    """Returns the loader of this project, as the command line configures it on a CPU."""
    scaled = variant != FULL
    photos = ImageFileDataset(root, names, [0] * len(names), SIZE, RandomResizedCrop(), scaled_decoding=scaled)
    if variant in (CACHED, REDUCED):
        photos.cache = open_cache(root, names, round(SIZE * 256 / 224) if variant == REDUCED else None, cache)
    return ImageFileLoader(photos, ShardedEpochSampler(len(photos)), BATCH)


def library_loader(root: Path, variant: str) -> DataLoader:
    """Returns a loader of torchvision or timm."""
    if variant == PIL:
        crop = transforms.Compose([transforms.RandomResizedCrop(SIZE), transforms.ToTensor()])
        return DataLoader(datasets.ImageFolder(str(root), crop), BATCH)
    if variant == IO:
        crop = v2.Compose([v2.RandomResizedCrop(SIZE), v2.ToDtype(torch.float32, scale=True)])
        read = partial(decode_image, mode=ImageReadMode.RGB)
        return DataLoader(datasets.ImageFolder(str(root), crop, loader=read), BATCH)
    from timm.data import create_dataset, create_loader

    options = {"use_prefetcher": False, "num_workers": 0, "hflip": 0, "color_jitter": None, "interpolation": "bilinear"}
    data = create_dataset("", str(root))
    return create_loader(data, (3, SIZE, SIZE), BATCH, is_training=True, scale=(0.08, 1), **options)


def images_per_second(variant: str, root: str, cache: str) -> float:
    """Measures images per second of CPU time; a first pass is a warm-up."""
    torch.set_num_threads(1)
    paths = list_images(Path(root))
    if variant.startswith(OURS):
        loader: Any = project_loader(Path(root), [path.relative_to(root).as_posix() for path in paths], cache, variant)
    elif variant != DECODING:
        loader = library_loader(Path(root), variant)
    seconds = 0.0
    for _ in range(2):
        start = time.process_time()
        if variant == DECODING:
            for path in paths:
                read_image(path)
        else:
            for batch in loader:
                if variant == FLOAT:
                    batch.images.float().div_(255)
        seconds = time.process_time() - start
    return len(paths) / seconds


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and reports."""
    argv = sys.argv[1:] if argv is None else argv
    parser = make_parser(__doc__, rounds=5)
    parser.add_argument("--root", type=Path, help="folder with class folders of JPEGs; synthetic ones by default")
    parser.add_argument("--count", type=int, help="number of synthetic images of each kind")
    parser.add_argument("--state", type=Path, help="file for each measurement; an interrupted benchmark resumes")
    parser.add_argument("--one", type=json.loads, help="a single measurement, printed as JSON")
    options = parser.parse_args(argv)
    if options.one:
        print(json.dumps(images_per_second(**options.one)))
        return
    variants = [PIL, IO, OURS, FULL, FLOAT, CACHED, REDUCED, DECODING]
    if find_spec("timm"):
        variants.append(TIMM)
    kinds = ["photos"] if options.root else list(KINDS)
    speeds, photos = {}, []
    for kind in kinds:
        with tempfile.TemporaryDirectory() as scratch:
            root = options.root or Path(scratch) / "photos"
            photos.append(
                f"{len(list_images(root)):,} photos" if options.root else make_photos(root, kind, options.count)
            )
            common = {"root": str(root), "cache": str(Path(scratch) / "cache")}
            calls = {each: partial(run_in_subprocess, __file__, {"variant": each, **common}) for each in variants}
            setting = f"{kind}, {options.root}, {options.count}, {git_commit()}"
            results = run_interleaved(calls, options.rounds, MeasurementCache(options.state, setting))
        speeds |= {(kind, variant): statistics.median(each) for variant, each in results.items()}
    rows = [[name, *(_cell(speeds[kind, name], speeds[kind, PIL]) for kind in kinds)] for name in variants]
    missing = "" if TIMM in variants else "timm is not installed."
    share = speeds[kinds[0], OURS] / speeds[kinds[0], DECODING]
    note = NOTE.format(
        share=share, rounds=options.rounds, photos="; ".join(photos), size=SIZE, batch=BATCH, missing=missing
    )
    measured = {
        target: f"{speeds[key] / speeds[key[0], PIL]:.2f}" for key, target in TARGETS.items() if not options.root
    }
    if "loader" in measured:
        measured["loader"] += f": {share:.0%} of the time is JPEG decoding"
    report(
        "Loader: " + ("JPEGs of a folder" if options.root else "synthetic JPEGs"),
        ["FOLDER" if word == str(options.root) else word for word in command(__file__, argv)],
        table(["Loader: images/s per core", *kinds], rows) + "\n" + note.rstrip(),
        options.record,
        measured,
    )


def _cell(speed: float, reference: float) -> str:
    return f"{speed:,.{0 if speed >= 100 else 1}f} ({speed / reference:.2f})"


if __name__ == "__main__":
    main()
