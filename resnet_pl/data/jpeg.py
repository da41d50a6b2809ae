"""Decoding of 8-bit JPEG files with libjpeg-turbo, in full or at a fraction of their size."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

import simplejpeg
import torch
from PIL import Image
from torch import Tensor

REDUCTIONS = (8, 4, 2)  # libjpeg-turbo has fast inverse DCTs for these; other fractions are hardly faster than 1
# Axes of `(3, H, W)` to flip for each EXIF orientation; from 5 on, height and width are swapped first.
_FLIPS = {2: [2], 3: [1, 2], 4: [1], 6: [2], 7: [1, 2], 8: [1]}
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")  # of a segment; the others have no data of their own
_ORIENTATION = 0x0112  # the EXIF tag


class JpegHeader(NamedTuple):
    """What the header of a JPEG says.

    Attributes:
        height: stored height, pixels.
        width: stored width, pixels.
        channels: 1 for gray, 3 for colors, 4 for CMYK.
        orientation: EXIF orientation, 1 to 8.
    """

    height: int
    width: int
    channels: int
    orientation: int = 1

    @property
    def upright_size(self) -> tuple[int, int]:
        """Height and width after the EXIF orientation is applied, pixels."""
        return (self.width, self.height) if self.orientation > 4 else (self.height, self.width)


def _segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Yields the marker of each segment of a JPEG, and the position of its length; finds them as libjpeg does."""
    at = 2
    while data[:2] == b"\xff\xd8" and (marker := _MARKER.search(data, at)) and marker[0] != b"\xff\xd9":
        yield marker[0][1], marker.end()
        at = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])


def read_header(data: bytes) -> JpegHeader | None:
    """Returns the header of an 8-bit JPEG; None for any other data."""
    orientation = 1
    for kind, at in _segments(data):
        if kind == 0xE1 and data[at + 2 : at + 8] == b"Exif\0\0":
            orientation = _read_orientation(data[at + 2 : at + int.from_bytes(data[at : at + 2])])
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC) and at + 8 <= len(data):
            precision, height, width, channels = struct.unpack(">BHHB", data[at + 2 : at + 8])
            return JpegHeader(height, width, channels, orientation) if precision == 8 else None
    return None


def count_scans(data: bytes) -> int:
    """Returns the number of scans of a JPEG; 0 for any other data.

    A decoder needs a fraction of a second for each scan of a large progressive JPEG, whose scans can be of a few bytes.
    """
    return sum(kind == 0xDA for kind, _ in _segments(data))


def _read_orientation(block: bytes) -> int:
    """Returns the orientation in an EXIF block; 1 if it has none, or if it is damaged."""
    exif, orientation = Image.Exif(), None
    # Pillow raises almost anything for a damaged block.
    with suppress(Exception):
        exif.load(block)
        orientation = exif.get(_ORIENTATION)
    return orientation if orientation in _FLIPS or orientation == 5 else 1


def decode_jpeg(data: bytes, header: JpegHeader, reduction: int = 1, channels: int = 3) -> Tensor:
    """Decodes a JPEG of one or three channels, upright.

    Args:
        data: the file.
        header: its header.
        reduction: 1, or one of `REDUCTIONS`: height and width are divided by it, rounded up. The inverse DCT then
            computes fewer pixels, each the mean of a block of pixels, which takes a fraction of the time.
        channels: 3 for RGB, 1 for gray.

    Returns:
        Pixels, uint8 `(channels, H, W)`, in channels_last memory layout unless they had to be flipped.

    Raises:
        ValueError: the file is damaged, or of a kind that libjpeg-turbo does not read.
    """
    least = [-(-side // reduction) for side in header[:2]] if reduction > 1 else [0, 0]
    pixels = simplejpeg.decode_jpeg(data, "RGB" if channels == 3 else "GRAY", min_height=least[0], min_width=least[1])
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    if header.orientation > 4:
        image = image.transpose(1, 2)
    return image.flip(_FLIPS[header.orientation]) if header.orientation in _FLIPS else image
