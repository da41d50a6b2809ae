"""Photos decoded once, in one file that later epochs and other runs read."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from threading import Lock

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from resnet_pl.data.crops import limit_aspect_ratio
from resnet_pl.data.decode import BadImage, read_image
from resnet_pl.data.download import lock
from resnet_pl.data.loader import default_num_workers
from resnet_pl.utils import UserError, atomic_write, progress

GB = 10**9
_FORMAT = 1  # of the two files
_MEASURED = 1000  # headers read to estimate the size


class DecodedImageCache:
    """Photos in a file of pixels, by position.

    Args:
        path: uint8 `(H, W, 3)` images one after another.
        index: `(N, 3)` int64, offset in bytes, height and width of each photo; height 0 for one that is not there.
    """

    def __init__(self, path: Path, index: np.ndarray) -> None:
        self.path, self.index = path, index
        self._pixels = np.memmap(path, mode="r") if path.stat().st_size else np.empty(0, np.uint8)

    def __reduce__(self) -> tuple[type[DecodedImageCache], tuple[Path, np.ndarray]]:
        return type(self), (self.path, self.index)

    def __getitem__(self, position: int) -> Tensor | None:
        """`(3, H, W)` uint8 as `read_image` gives it; None for a photo that could not be read."""
        start, height, width = self.index[position].tolist()
        if not height:
            return None
        # A copy: a transform in place must not reach the file.
        pixels = np.array(self._pixels[start : start + 3 * height * width])
        return torch.from_numpy(pixels).view(height, width, 3).permute(2, 0, 1)

    def select(self, positions: Sequence[int]) -> DecodedImageCache:
        """The photos at these positions."""
        return DecodedImageCache(self.path, self.index[list(positions)])


def open_cache(
    root: Path, names: Sequence[str], side: int | None = None, folder: str | None = None
) -> DecodedImageCache:
    """Opens the cache of a folder's photos; decodes them first where there is none or the folder has changed.

    Of several processes one decodes while the others wait. A photo is another one when its size or time of change is.

    Args:
        root: folder that the names start from.
        names: path of each photo relative to `root`.
        side: length that a longer shorter side is resized to, pixels; null keeps every photo's own.
        folder: where caches are; see `default_folder`.

    Raises:
        UserError: the folder cannot be written to, or its disk has too little room.
    """
    place = Path(folder) if folder else default_folder()
    own = place / f"{root.resolve().name}-{short_hash(_FORMAT, str(root.resolve()), side)}"
    key = short_hash(torchvision.__version__, *((name, stat_key(root / name)) for name in names))
    pixels, index = own / f"{key}.pixels", own / f"{key}.npy"
    try:
        # Written last: where it is, the pixels are whole.
        if not index.is_file():
            own.mkdir(parents=True, exist_ok=True)
            with lock(place / f"{own.name}.lock", f"the photos of {root}", "decodes"):
                if not index.is_file():
                    for older in own.iterdir():
                        older.unlink()
                    _decode(root, names, side, pixels, index)
    except OSError as error:
        raise UserError(
            f"the cache of decoded photos cannot be written to {own}: {error.strerror}\n"
            "choose another place with --data.cache_dir, or go without with --data.cache null"
        ) from error
    return DecodedImageCache(pixels, np.load(index))


def default_folder() -> Path:
    """The user's folder for caches."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "resnet_pl"


def short_hash(*parts: object) -> str:
    """16 hexadecimal digits of things that say what they are."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(repr(part).encode())
    return digest.hexdigest()


def stat_key(path: Path) -> tuple[int, int] | None:
    """Size in bytes and time of change in nanoseconds; None for a file that is not there."""
    try:
        found = path.stat()
    except OSError:  # such as a dangling link, which reading reports
        return None
    return found.st_size, found.st_mtime_ns


def _decode(root: Path, names: Sequence[str], side: int | None, pixels: Path, index: Path) -> None:
    needed, free = estimate(root, names, side), shutil.disk_usage(pixels.parent).free
    if needed > free:
        smaller = "with fewer pixels (--data.cache_side), " if side is None else ""
        raise UserError(
            f"{len(names):,} decoded photos take about {needed / GB:.1f} GB, "
            f"{pixels.parent} has {free / GB:.1f} GB free\n"
            f"keep them {smaller}elsewhere (--data.cache_dir) or not at all (--data.cache null)"
        )
    # Not by `tell`: any one of the processes decodes.
    print(f"decoding {len(names):,} photos into {pixels.parent}, about {needed / GB:.1f} GB", flush=True)
    turn = Lock()

    def keep(name: str) -> tuple[int, int, int]:
        try:
            image = resize_shorter_side(read_image(root / name), side)
        except BadImage:  # read again, and reported, when it is asked for
            return 0, 0, 0
        data = image.permute(1, 2, 0).contiguous().numpy()
        with turn:
            start = file.tell()
            file.write(data)
        return start, data.shape[0], data.shape[1]

    with (
        atomic_write(pixels) as partial,
        partial.open("wb") as file,
        ThreadPool(default_num_workers(1)) as pool,
        progress("decoding photos", len(names)) as advance,
    ):
        rows = []
        for row in pool.imap(keep, names, chunksize=8):
            rows.append(row)
            advance(1)
    with atomic_write(index) as partial, partial.open("wb") as file:
        np.save(file, np.array(rows, dtype=np.int64))


def resize_shorter_side(image: Tensor, side: int | None) -> Tensor:
    """`(3, H, W)` with a shorter side of at most `side`, resized as `ResizeCenterCrop` does it."""
    if side is None or min(image.shape[-2:]) <= side:
        return image
    return TF.resize(limit_aspect_ratio(image), [side], antialias=True)


def estimate(root: Path, names: Sequence[str], side: int | None) -> int:
    """Bytes that the decoded photos take, from the headers of about a thousand of them."""
    sizes = []
    for name in names[:: -(-len(names) // _MEASURED)]:
        try:
            with Image.open(root / name) as image:
                scale = min(1, (side or image.width) / min(image.size))
                sizes.append(3 * image.width * image.height * scale**2)
        except Exception:
            continue
    return round(sum(sizes) / max(1, len(sizes)) * len(names))
