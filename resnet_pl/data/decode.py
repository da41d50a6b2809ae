"""Checks and decodes image files."""

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from resnet_pl.data.bad_images import BadImage, LargeImage
from resnet_pl.data.image_files import NEEDS_PLUGIN
from resnet_pl.data.jpeg import decode_jpeg, read_header
from resnet_pl.utils import progress

MAX_PIXELS = 89_478_485  # Pillow's own limit, a quarter of a gigabyte in RGB
# A fixed list: Pillow would otherwise also try formats that run other programs (EPS starts Ghostscript).
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "AVIF", *([] if NEEDS_PLUGIN else ["HEIF"]))
_BITS_PER_SAMPLE = 258  # the TIFF tag
_TRAILERS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}


class PixelFormat(NamedTuple):
    """What images are converted to.

    Attributes:
        channels: 3 for RGB, 1 for gray; any other number is that of the files.
        max_value: white in 16-bit gray files, such as 4095 for 12 bits; None for the range of the file's type.
    """

    channels: int = 3
    max_value: int | None = None


RGB = PixelFormat()


def options_for(channels: int) -> str:
    """Returns the fix for images with another number of channels than RGB: all options that they need."""
    return (
        "read the images as RGB with --data.in_channels 3, or set all of --data.mean channel --data.std channel "
        f"--data.batch_transforms [RandomFlip] --model.backbone.in_channels {channels} --model.weights null"
    )


class EncodedImage:
    """An image file in memory that is not decoded yet.

    Args:
        path: the file.
        pixel_format: what it is converted to.
        data: content of the file; by default it is read.
        max_pixels: largest image that is decoded; `MAX_PIXELS` by default.

    Attributes:
        jpeg_size: upright height and width in pixels of a JPEG, which `decode` can reduce; None for any other file.

    Raises:
        BadImage: the file is missing or unreadable.
    """

    def __init__(
        self, path: Path, pixel_format: PixelFormat = RGB, data: bytes | None = None, max_pixels: int | None = None
    ) -> None:
        self.path, self.pixel_format = path, pixel_format
        self.max_pixels = MAX_PIXELS if max_pixels is None else max_pixels
        with _as_bad_image(path):
            self.data = path.read_bytes() if data is None else data
        header = read_header(self.data)
        supported = header and header.channels in (1, 3) and 0 < header.height * header.width <= self.max_pixels
        self._header = header if supported and pixel_format.channels in (1, 3) else None
        self.jpeg_size = None if self._header is None else self._header.upright_size

    def decode(self, reduction: int = 1) -> torch.Tensor:
        """Returns the pixels as `read_image` does; a JPEG's height and width can be divided by 2, 4 or 8.

        Raises:
            BadImage: see `read_image`; a `LargeImage` if it has more than `max_pixels`.
        """
        if self._header is not None:
            # Pillow reads some files that this decoder does not, and has better error messages.
            with suppress(ValueError):
                return decode_jpeg(self.data, self._header, reduction, self.pixel_format.channels)
        with _as_bad_image(self.path):
            image = _open(io.BytesIO(self.data), self.max_pixels)
            image.load()
            return pil_to_tensor(image, self.pixel_format)


def read_image(path: Path, pixel_format: PixelFormat = RGB) -> torch.Tensor:
    """Decodes an image file.

    The format is detected from the content, not from the file name. EXIF orientation is applied, transparent pixels are
    blended with white, 16-bit gray is scaled to 8 bits, and only the first frame of an animation is read. Color
    profiles are ignored.

    Args:
        path: the file.
        pixel_format: number of channels and range of the pixels; RGB by default.

    Returns:
        Pixels, uint8 `(C, H, W)`, in channels_last memory layout.

    Raises:
        BadImage: the file is missing, unreadable, empty, truncated, not an image or larger than `MAX_PIXELS`.
    """
    return EncodedImage(path, pixel_format).decode()


def pil_to_tensor(image: Image.Image, pixel_format: PixelFormat = RGB) -> torch.Tensor:
    """Converts an image of Pillow as `read_image` does, to uint8 `(C, H, W)`."""
    channels, max_value = pixel_format
    if image.format == "TIFF":
        bits = image.tag_v2.get(_BITS_PER_SAMPLE, ())  # pyright: ignore[reportAttributeAccessIssue] - a TiffImageFile
        max_value = max_value or (4095 if 12 in bits else None)
    # An image with damaged EXIF data is read without rotation.
    with suppress(Exception):
        image = ImageOps.exif_transpose(image)
    if channels not in (1, 3):
        if len(image.getbands()) != channels or image.mode.startswith(("I", "F")):
            raise ValueError(f"it has {len(image.getbands())} channels, not {channels} of 8 bits")
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)
    pixels = np.array(_to_rgb(image, max_value or 65535))
    if channels == 1:  # not `convert` before transparent pixels are blended
        pixels = np.array(Image.fromarray(pixels).convert("L"))[:, :, None]
    return torch.from_numpy(pixels).permute(2, 0, 1)


def to_displayed(image: torch.Tensor) -> torch.Tensor:
    """Returns an image `(C, H, W)` as RGB: gray for one or two channels, the first three of more than three."""
    return image[:1].expand(3, -1, -1) if len(image) < 3 else image[:3]


def to_pixels(image: torch.Tensor) -> np.ndarray:
    """Returns a network input `(C, H, W)` as `(H, W, C)` uint8; values outside [0, 1] are scaled to that range."""
    if image.dtype != torch.uint8:
        image = image.float()
        low, high = image.amin().clamp(max=0), image.amax().clamp(min=1)
        image = ((image - low) / (high - low) * 255).byte()
    return to_displayed(image).permute(1, 2, 0).cpu().numpy()


def thumbnail(image: torch.Tensor) -> np.ndarray:
    """Returns an image `(C, H, W)` as a subsampled copy `(H, W, C)`, so that many large images fit into memory."""
    step = max(1, min(image.shape[1:]) // 320)
    return image[:, ::step, ::step].permute(1, 2, 0).numpy().copy()


def verify_image(path: Path) -> tuple[int, int]:
    """Checks header, size and end marker of an image file.

    A file that does not end like a complete JPEG or PNG is decoded, which is slower.

    Returns:
        Stored width and height in pixels, without EXIF orientation.

    Raises:
        BadImage: see `read_image`.
    """
    with _as_bad_image(path), Path(path).open("rb") as file:
        image = _open(file, MAX_PIXELS)
        trailer = _TRAILERS.get(image.format or "")
        if trailer:
            file.seek(-len(trailer), os.SEEK_END)
            if file.read() == trailer:
                return image.size
    read_image(path)
    return image.size


def verify_images(paths: Sequence[Path]) -> list[BadImage]:
    """Checks many files quickly, see `verify_image`; returns the errors of the bad ones."""
    bad = []
    with progress("checking images", len(paths)) as advance:
        for path in paths:
            try:
                verify_image(path)
            except BadImage as error:
                bad.append(error)
            advance(1)
    return bad


def _open(file: BinaryIO, max_pixels: int) -> Image.Image:
    if not file.read(1):
        raise ValueError("the file is empty")
    file.seek(0)
    image = Image.open(file, formats=_FORMATS)
    if image.width * image.height > max_pixels:
        raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels are more than {max_pixels}")
    return image


def _to_rgb(image: Image.Image, max_value: int) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined range")
    if image.mode.startswith("I"):
        # Pillow's own conversion clips 16-bit values at 255.
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("32-bit pixels have no defined range")
        if values.max() > max_value:
            raise ValueError(f"a pixel has the value {values.max()}, more than {max_value} (data.max_value)")
        image = Image.fromarray(((255 * values + max_value // 2) // max_value).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


@contextmanager
def _as_bad_image(path: Path) -> Iterator[None]:
    try:
        yield
    except (BadImage, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise BadImage(path, "not an image of a known format") from error
    except OSError as error:
        raise BadImage(path, error.strerror or str(error)) from error
    except Image.DecompressionBombError as error:
        raise LargeImage(path, str(error)) from error
    # A damaged file makes Pillow raise almost anything: SyntaxError, struct.error, IndexError, ...
    except Exception as error:
        raise BadImage(path, str(error) or type(error).__name__) from error
