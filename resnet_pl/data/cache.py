"""Decoded images in one file on disk, shared by later epochs and other runs."""

from __future__ import annotations

import hashlib
import os
import shutil
import warnings
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

from resnet_pl.data.bad_images import BadImage
from resnet_pl.data.decode import read_image
from resnet_pl.data.loader import default_num_workers
from resnet_pl.data.resizing import limit_aspect_ratio
from resnet_pl.utils import UserError, atomic_write, in_threads, lock, progress

GB = 10**9
_FORMAT = 1  # version of the file format
_ESTIMATE_SAMPLES = 1000  # image headers read to estimate the size of a cache


class DecodedImageCache:
    """Decoded images, by index.

    Args:
        path: file of uint8 `(H, W, 3)` images, one after another.
        index: `(N, 3)` int64, offset in bytes, height and width of each image; height 0 for an unreadable image.
    """

    def __init__(self, path: Path, index: np.ndarray) -> None:
        self.path, self.index = path, index
        self._pixels = torch.empty(0, dtype=torch.uint8)
        if path.stat().st_size:
            # Read-only: Linux refuses a private mapping that is larger than the memory. torch warns that nothing must
            # be written to it.
            with warnings.catch_warnings(action="ignore"):
                self._pixels = torch.from_numpy(np.memmap(path, mode="r"))

    def __reduce__(self) -> tuple[type[DecodedImageCache], tuple[Path, np.ndarray]]:
        return type(self), (self.path, self.index)

    def __getitem__(self, position: int) -> Tensor | None:
        """Returns the same `(3, H, W)` uint8 as `read_image`; None for an image that could not be read."""
        pixels = self.view(position)
        # A copy: an in-place transform must not change what is read later.
        return None if pixels is None else pixels.clone()

    def view(self, position: int) -> Tensor | None:
        """Returns an image as above, in the memory of the cache, which must not be written to."""
        start, height, width = self.index[position].tolist()
        if not height:
            return None
        pixels = self._pixels[start : start + 3 * height * width]
        return pixels.view(height, width, 3).permute(2, 0, 1)

    def select(self, positions: Sequence[int]) -> DecodedImageCache:
        """Returns a cache of the images at these positions, in the same file."""
        return DecodedImageCache(self.path, self.index[list(positions)])


def open_cache(
    root: Path, names: Sequence[str], side: int | None = None, folder: str | None = None, source: Path | None = None
) -> DecodedImageCache:
    """Opens the cache of a folder's images; decodes them first if the cache is missing or outdated.

    An image counts as changed if its file size or modification time differs. One process decodes; others wait for it.

    Args:
        root: folder that the names are relative to.
        names: path of each image relative to `root`.
        side: maximum shorter side, pixels; larger images are downscaled. None stores the full size.
        folder: folder of the caches; `default_folder()` by default.
        source: what lists the names, such as a table; `root` by default. Each source has one cache of a root: a new one
            replaces it, but not those of other tables, which another run may use.

    Raises:
        UserError: the folder cannot be written to, or has too little free space.
    """
    caches = Path(folder) if folder else default_folder()
    table = [] if source is None or source == root else [str(source.resolve())]
    root_caches = caches / f"{root.resolve().name}-{short_hash(_FORMAT, str(root.resolve()), side, *table)}"
    states = in_threads(lambda name: stat_key(root / name), names)
    key = short_hash(torchvision.__version__, *zip(names, states, strict=True))
    pixels, index = root_caches / f"{key}.pixels", root_caches / f"{key}.npy"
    try:
        # The index is written last: if it exists, the pixels are complete.
        if not index.is_file():
            root_caches.mkdir(parents=True, exist_ok=True)
            with lock(caches / f"{root_caches.name}.lock", f"the images of {root}", "decodes"):
                if not index.is_file():
                    for outdated in root_caches.iterdir():
                        outdated.unlink()
                    _decode(root, names, side, pixels, index)
    except OSError as error:
        raise UserError(
            f"the cache of decoded images cannot be written to {root_caches}: {error.strerror}\n"
            "choose another folder with --data.cache_dir, or disable the cache with --data.cache false"
        ) from error
    return DecodedImageCache(pixels, np.load(index))


def default_folder() -> Path:
    """Returns the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "resnet_pl"


def short_hash(*values: object) -> str:
    """Returns 16 hexadecimal digits, a hash of the values' `repr`."""
    digest = hashlib.blake2b(digest_size=8)
    for value in values:
        digest.update(repr(value).encode())
    return digest.hexdigest()


def stat_key(path: Path) -> tuple[int, int] | None:
    """Returns size in bytes and modification time in nanoseconds; None for a missing file."""
    try:
        stat = path.stat()
    except OSError:  # such as a dangling link, which is reported when it is read
        return None
    return stat.st_size, stat.st_mtime_ns


def _decode(root: Path, names: Sequence[str], side: int | None, pixels: Path, index: Path) -> None:
    needed, free = estimate(root, names, side), shutil.disk_usage(pixels.parent).free
    if needed > free:
        smaller = "smaller images (--data.cache_side), " if side is None else ""
        raise UserError(
            f"{len(names):,} decoded images take about {needed / GB:.1f} GB, "
            f"{pixels.parent} has {free / GB:.1f} GB free\n"
            f"use {smaller}another folder (--data.cache_dir) or no cache (--data.cache false)"
        )
    # Not `rank_zero_print`: any of the processes may be the one that decodes.
    print(f"decoding {len(names):,} images into {pixels.parent}, about {needed / GB:.1f} GB", flush=True)
    write_lock = Lock()

    def append(name: str) -> tuple[int, int, int]:
        try:
            image = resize_shorter_side(read_image(root / name), side)
        except BadImage:  # reported when the image is accessed, and its file read again
            return 0, 0, 0
        data = image.permute(1, 2, 0).contiguous().numpy()
        with write_lock:
            start = file.tell()
            file.write(data.data)
        return start, data.shape[0], data.shape[1]

    with (
        atomic_write(pixels) as partial,
        partial.open("wb") as file,
        ThreadPool(default_num_workers(1)) as pool,
        progress("decoding images", len(names)) as advance,
    ):
        rows = []
        for row in pool.imap(append, names, chunksize=8):
            rows.append(row)
            advance(1)
    with atomic_write(index) as partial, partial.open("wb") as file:
        np.save(file, np.array(rows, dtype=np.int64))


def resize_shorter_side(image: Tensor, side: int | None) -> Tensor:
    """Resizes `(3, H, W)` to a shorter side of at most `side`, in the same way as `ResizeCenterCrop`."""
    if side is None or min(image.shape[-2:]) <= side:
        return image
    return TF.resize(limit_aspect_ratio(image), [side], antialias=True)


def estimate(root: Path, names: Sequence[str], side: int | None) -> int:
    """Returns the estimated size of the decoded images in bytes, from the headers of about a thousand of them."""
    sizes = []
    for name in names[:: -(-len(names) // _ESTIMATE_SAMPLES)]:
        try:
            with Image.open(root / name) as image:
                scale = min(1, (side or image.width) / min(image.size))
                sizes.append(3 * image.width * image.height * scale**2)
        except Exception:
            continue
    return round(sum(sizes) / max(1, len(sizes)) * len(names))
