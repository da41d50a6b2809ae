"""Finds images that are nearly the same: another size, compression or brightness, a small crop, black and white."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from imagehash import phash
from PIL import Image

from resnet_pl.data.bad_images import BadImage
from resnet_pl.data.decode import EncodedImage
from resnet_pl.data.jpeg import REDUCTIONS
from resnet_pl.utils import progress

# Of 64 bits. In 3,670 photos of flowers, all 22 pairs up to 6 show the same photo or scene, of the next 8 pairs 6 do.
MAX_DISTANCE = 6
_MIN_SIDE = 64  # pixels; JPEGs are decoded at a fraction of their size that is larger
_MIN_CONTRAST = 5.0  # standard deviation of gray values; the hash of an image of one color is noise
_BLOCK = 50_000_000  # pairs that are compared at once


def perceptual_hash(path: Path) -> np.ndarray | None:
    """Returns the perceptual hash (pHash) of an image file, `(64,)` bool; None for one that is damaged or empty.

    Raises:
        BadImage: the file is missing.
    """
    encoded = EncodedImage(path)
    side = min(encoded.jpeg_size or (0, 0))
    reduction = next((each for each in REDUCTIONS if side >= each * _MIN_SIDE), 1)
    try:
        pixels = encoded.decode(reduction)
    except BadImage:  # only --decode reports it
        return None
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).convert("L")
    if np.asarray(image.resize((32, 32))).std() < _MIN_CONTRAST:
        return None
    return phash(image).hash.flatten()


def find_near_duplicates(
    hashes: Sequence[np.ndarray | None], splits: Sequence[str], digests: Sequence[str]
) -> list[tuple[int, int]]:
    """Returns pairs of images that are nearly the same: each image at most once with an earlier one.

    Args:
        hashes: perceptual hash of each image.
        splits: split of each image. If there are several, only pairs in different ones are returned.
        digests: content hash of each image; pairs with equal contents are not returned.
    """
    known = np.array([index for index, each in enumerate(hashes) if each is not None], dtype=np.int64)
    if len(known) < 2:
        return []
    # The product of two vectors of ±1 is 64 minus twice the number of different bits.
    bits = np.array([hashes[index] for index in known], dtype=np.float32) * 2 - 1
    split = np.unique(np.array(splits)[known], return_inverse=True)[1]
    digest = np.unique(np.array(digests)[known], return_inverse=True)[1]
    pairs = []
    rows = max(1, _BLOCK // len(known))
    with progress("comparing images", len(known)) as advance:
        for start in range(0, len(known), rows):
            later, earlier = slice(start, start + rows), slice(start + rows)
            near = bits[later] @ bits[earlier].T >= 64 - 2 * MAX_DISTANCE
            near &= np.arange(len(known))[later, None] > np.arange(len(known))[earlier]
            near &= digest[later, None] != digest[earlier]
            if split.any():
                near &= split[later, None] != split[earlier]
            found = near.any(axis=1)
            pairs += [(int(known[near[row].argmax()]), int(known[start + row])) for row in np.flatnonzero(found)]
            advance(len(near))
    return pairs
