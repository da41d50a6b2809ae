"""From an image file to pixels, as a person sees them."""

import io
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from glob import glob
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torchvision.io import ImageReadMode, decode_jpeg

from resnet_pl.utils import UserError, prog_name

IMAGE_EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"}
)
MAX_PIXELS = 89_478_485  # Pillow's own limit, a quarter of a gigabyte in RGB
# More files than this that cannot be read are no accident: the disk has gone, or the data is another.
MAX_BAD_FRACTION, MIN_BAD_COUNT = 0.1, 10

# Named, because Pillow would otherwise also try formats that run other programs (EPS starts Ghostscript).
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
_TRAILERS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}


class BadImage(UserError):
    """An image file that cannot be used.

    Attributes:
        path: the file.
        reason: what is wrong with it, in a few words.
    """

    def __init__(self, path: Path | str, reason: str = "") -> None:
        # A DataLoader builds a worker's exception anew from one text, which is a whole message and no path.
        told = f"cannot read image {printable_path(path)}: {reason}; replace or remove the file"
        super().__init__(told if reason else str(path))
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[type["BadImage"], tuple[Path | str, str]]:
        return type(self), (self.path, self.reason)


def printable_path(path: Path | str) -> str:
    """A path for a message, on one line whatever is in its name."""
    return str(path) if str(path).isprintable() else repr(str(path))


def log_bad_image(folder: Path | None, image: BadImage) -> None:
    """Adds a file that is left out to bad_images.txt in a folder, unless it is listed there or there is no folder."""
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    line = f"{printable_path(image.path)}: {image.reason}"
    with (folder / "bad_images.txt").open("a+", encoding="utf-8") as file:
        file.seek(0)
        if line not in file.read().splitlines():
            file.write(f"{line}\n")


def check_bad_fraction(bad: Sequence[BadImage], of: int) -> None:
    """Refuses to leave out more than a tenth of so many images, which is no accident; a few are always let through."""
    if len(bad) > max(MIN_BAD_COUNT, MAX_BAD_FRACTION * of):
        raise UserError(
            f"{len(bad)} of {of} images cannot be read, the last is {printable_path(bad[-1].path)}: {bad[-1].reason}\n"
            f"that is too many to leave out; `{prog_name()} check-data FOLDER` lists them all"
        )


def list_images(folder: Path) -> list[Path]:
    """Finds all images below a folder, in sorted order.

    Symbolic links are followed, except one that leads back to a folder it lies in. Hidden files and folders are left
    out. Only names are looked at, so a damaged image or a dangling link is listed, for `verify_image` to find.

    Raises:
        UserError: the folder or one below it is missing or cannot be opened.
    """
    try:
        return list(_walk(Path(folder), frozenset()))
    except OSError as error:
        raise UserError(f"cannot list folder {error.filename}: {error.strerror}") from error


def _walk(folder: Path, above: frozenset[Path]) -> Iterator[Path]:
    real = folder.resolve()
    if real in above:
        return
    with os.scandir(folder) as entries:
        visible = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    for entry in visible:
        path = folder / entry.name
        is_dir = False
        # A link that leads to itself, or to where one may not look.
        with suppress(OSError):
            is_dir = entry.is_dir()
        if is_dir:
            yield from _walk(path, above | {real})
        # Neither a file nor a link: a pipe or socket, which would block whoever reads it.
        elif path.suffix.lower() in IMAGE_EXTENSIONS and (entry.is_symlink() or entry.is_file()):
            yield path


def find_images(patterns: list[str]) -> list[Path]:
    """The image files behind paths, folders and patterns, in the order given.

    Raises:
        UserError: something names no image.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        if not pattern:
            paths = []
        elif path.is_dir():
            paths = list_images(path)
        elif path.is_file():
            paths = [path]
        else:
            matches = sorted(glob(pattern, recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
            paths = [Path(match) for match in matches if Path(match).is_file()]
        if not paths:
            raise UserError(f"--images: {pattern} names no image\ngive files, folders of images, or patterns")
        found |= dict.fromkeys(paths)
    return list(found)


def read_image(path: Path) -> torch.Tensor:
    """Reads an image file.

    The content decides about the format, not the file's extension. EXIF orientation is applied, transparency is laid
    on white, 16-bit grey is scaled to 8 bits and of an animation the first frame is taken. Colour profiles are ignored.

    Returns:
        RGB pixels, uint8 `(3, H, W)`, in memory as `(H, W, 3)`.

    Raises:
        BadImage: the file is missing, unreadable, empty, cut short, no image or larger than `MAX_PIXELS`.
    """
    with _as_bad_image(path):
        data = path.read_bytes()
        height, width, channels = jpeg_shape(data) or (0, 0, 0)
        if channels in (1, 3) and 0 < height * width <= MAX_PIXELS:
            # What this decoder refuses, Pillow may still read, and says better what is wrong if it does not.
            with suppress(RuntimeError):
                encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
                return decode_jpeg(encoded, mode=ImageReadMode.RGB, apply_exif_orientation=True)
        image = _open(io.BytesIO(data))
        image.load()
        # Damaged EXIF data spoils no pixels: such an image stays as it lies.
        with suppress(Exception):
            image = ImageOps.exif_transpose(image)
        return torch.from_numpy(np.array(_to_rgb(image))).permute(2, 0, 1)


def jpeg_shape(data: bytes) -> tuple[int, int, int] | None:
    """Height, width and channels of a JPEG of 8 bits as it is stored, from its header; None for anything else."""
    at = 2
    while data[:2] == b"\xff\xd8" and at + 10 <= len(data) and data[at] == 0xFF:
        kind, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4])
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            precision, height, width, channels = struct.unpack(">BHHB", data[at + 4 : at + 10])
            return (height, width, channels) if precision == 8 else None
        at += 2 + length
    return None


def verify_image(path: Path) -> tuple[int, int]:
    """Checks an image file quickly: the header is sound, the size sane, the end there.

    Only a file whose last bytes are not those of a complete JPEG or PNG is decoded.

    Returns:
        Width and height as the file has them, EXIF orientation left aside.

    Raises:
        BadImage: as `read_image`.
    """
    with _as_bad_image(path), Path(path).open("rb") as file:
        image = _open(file)
        trailer = _TRAILERS.get(image.format or "")
        if trailer:
            file.seek(-len(trailer), os.SEEK_END)
            if file.read() == trailer:
                return image.size
    read_image(path)
    return image.size


def _open(file: BinaryIO) -> Image.Image:
    if not file.read(1):
        raise ValueError("the file is empty")
    file.seek(0)
    image = Image.open(file, formats=_FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels are more than {MAX_PIXELS}")
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels have no set range")
    if image.mode.startswith("I"):
        # Pillow cuts 16-bit values off at 255 when it converts them.
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("32-bit pixels have no set range")
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
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
    # A damaged file makes Pillow raise almost anything: SyntaxError, struct.error, IndexError, ...
    except Exception as error:
        raise BadImage(path, str(error) or type(error).__name__) from error
