"""Finding, checking and decoding image files."""

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from glob import glob
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from resnet_pl.data.jpeg import decode_jpeg, read_header
from resnet_pl.utils import UserError, expand_path, prog_name

try:  # an extra: Pillow itself does not read the photos of iPhones
    from pillow_heif import register_heif_opener

    register_heif_opener()
    NEEDS_PLUGIN: frozenset[str] = frozenset()
except ImportError:
    NEEDS_PLUGIN = frozenset({".heic", ".heif"})
_EXTENSIONS = "jpg jpeg jpe jfif png bmp gif webp tif tiff ppm pgm pbm avif heic heif"
IMAGE_EXTENSIONS = frozenset(f".{name}" for name in _EXTENSIONS.split()) - NEEDS_PLUGIN
MAX_PIXELS = 89_478_485  # Pillow's own limit, a quarter of a gigabyte in RGB
# More unreadable files than both of these are an error: the disk is gone, or it is the wrong data.
MAX_BAD_FRACTION, MIN_BAD_COUNT = 0.1, 10

# A fixed list: Pillow would otherwise also try formats that run other programs (EPS starts Ghostscript).
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "AVIF", *([] if NEEDS_PLUGIN else ["HEIF"]))
_BITS_PER_SAMPLE = 258  # the TIFF tag
_TRAILERS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}


class BadImage(UserError):
    """An image file that cannot be read.

    Attributes:
        path: the file.
        reason: the problem, in a few words.
    """

    def __init__(self, path: Path | str, reason: str = "") -> None:
        # A DataLoader rebuilds a worker's exception from its message; `path` is then that complete message.
        message = f"cannot read image {printable_path(path)}: {reason}; replace or remove the file"
        super().__init__(message if reason else str(path))
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[type["BadImage"], tuple[Path | str, str]]:
        return type(self), (self.path, self.reason)


def printable_path(path: Path | str) -> str:
    """Returns a path for a message, on one line even if it contains control characters."""
    return str(path) if str(path).isprintable() else repr(str(path))


def log_bad_image(folder: Path | None, image: BadImage) -> None:
    """Adds a skipped file to bad_images.txt in a folder, unless it is already listed; does nothing without a folder."""
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    line = f"{printable_path(image.path)}: {image.reason}"
    with (folder / "bad_images.txt").open("a+", encoding="utf-8") as file:
        file.seek(0)
        if line not in file.read().splitlines():
            file.write(f"{line}\n")


def check_bad_fraction(bad: Sequence[BadImage], total: int) -> None:
    """Raises UserError if more than 10 % (and more than 10) of the images are unreadable."""
    if len(bad) > max(MIN_BAD_COUNT, MAX_BAD_FRACTION * total):
        raise UserError(
            f"{len(bad)} of {total} images cannot be read, "
            f"the last is {printable_path(bad[-1].path)}: {bad[-1].reason}\n"
            f"these are too many to skip; `{prog_name()} check-data FOLDER` lists them all"
        )


def list_images(folder: Path) -> list[Path]:
    """Returns the sorted paths of all images below a folder.

    Symbolic links are followed, except links to a folder above them. Hidden files and folders are ignored. Only names
    are checked: damaged images and dangling links are listed, and `verify_image` finds them.

    Raises:
        UserError: the folder or a subfolder is missing or cannot be opened.
    """
    return [path for path in walk_files(folder) if is_image_name(path.name)]


def is_image_name(name: str) -> bool:
    """Returns whether a file name has the extension of an image format that can be read."""
    return os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS  # noqa: PTH122 - faster for a million names


def walk_files(folder: Path) -> Iterator[Path]:
    """Yields the paths of all visible files below a folder, sorted; see `list_images`."""
    try:
        yield from _walk(Path(folder), frozenset())
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
        # A link to itself, or to a folder without permission.
        with suppress(OSError):
            is_dir = entry.is_dir()
        if is_dir:
            yield from _walk(path, above | {real})
        # Not a pipe or socket: reading it would block.
        elif entry.is_symlink() or entry.is_file():
            yield path


def find_images(patterns: list[str], asked_by: str = "--images") -> list[Path]:
    """Returns the image files of paths, folders, glob patterns and lists, in the given order.

    Args:
        patterns: the paths, folders and patterns; a `.txt` file lists others, one a line, relative to the working
            folder.
        asked_by: option or function that takes them, for the message.

    Raises:
        UserError: a path, folder, pattern or list has no images.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        file = Path(expand_path(pattern))
        if file.suffix.lower() == ".txt" and file.is_file():
            # Bytes, because file names can be in any encoding; Windows may begin a list with a byte order mark.
            lines = file.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines()
            listed = {os.fsdecode(line): number for number, line in enumerate(lines, 1) if line.strip()}
            if not listed:
                raise UserError(f"{asked_by}: {pattern} is empty\nlist one image file a line")
            paths = [path for each, number in listed.items() for path in _match(each, asked_by, f"{pattern}:{number}")]
        else:
            paths = _match(pattern, asked_by)
        found |= dict.fromkeys(paths)
    return list(found)


def _match(pattern: str, asked_by: str, place: str = "") -> list[Path]:
    """Returns the image files of one path, folder or glob pattern; `place` is its line in a list."""
    # A name in a list can contain a dollar sign.
    path = Path(pattern if os.path.lexists(pattern) else expand_path(pattern))
    if not pattern:
        paths = []
    elif path.is_dir():
        paths = list_images(path)
    elif path.is_file():
        paths = [path]
    else:
        matches = sorted(glob(str(path), recursive=True))  # noqa: PTH207 - Path.glob does not take an absolute pattern
        paths = [Path(match) for match in matches if Path(match).is_file()]
    if not paths:
        fix = "pass image files, folders of images, glob patterns, or a .txt file with one of these a line"
        if place:
            fix = "list one image file a line, relative to the working folder"
        raise UserError(f"{asked_by}: {f'{place}: ' if place else ''}no images found at {printable_path(path)}\n{fix}")
    return paths


class PixelFormat(NamedTuple):
    """What images are converted to.

    Attributes:
        channels: 3 for RGB, 1 for gray; any other number is that of the files.
        max_value: white in 16-bit gray files, such as 4095 for 12 bits; None for the range of the file's type.
    """

    channels: int = 3
    max_value: int | None = None


RGB = PixelFormat()


class EncodedImage:
    """An image file in memory that is not decoded yet.

    Args:
        path: the file.
        pixel_format: what it is converted to.

    Attributes:
        jpeg_size: upright height and width in pixels of a JPEG, which `decode` can reduce; None for any other file.

    Raises:
        BadImage: the file is missing or unreadable.
    """

    def __init__(self, path: Path, pixel_format: PixelFormat = RGB) -> None:
        self.path, self.pixel_format = path, pixel_format
        with _as_bad_image(path):
            self.data = path.read_bytes()
        header = read_header(self.data)
        supported = header and header.channels in (1, 3) and 0 < header.height * header.width <= MAX_PIXELS
        self._header = header if supported and pixel_format.channels in (1, 3) else None
        self.jpeg_size = None if self._header is None else self._header.upright_size

    def decode(self, reduction: int = 1) -> torch.Tensor:
        """Returns the pixels as `read_image` does; a JPEG's height and width can be divided by 2, 4 or 8."""
        if self._header is not None:
            # Pillow reads some files that this decoder does not, and has better error messages.
            with suppress(ValueError):
                return decode_jpeg(self.data, self._header, reduction, self.pixel_format.channels)
        with _as_bad_image(self.path):
            image = _open(io.BytesIO(self.data))
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


def verify_image(path: Path) -> tuple[int, int]:
    """Checks header, size and end marker of an image file.

    A file that does not end like a complete JPEG or PNG is decoded, which is slower.

    Returns:
        Stored width and height in pixels, without EXIF orientation.

    Raises:
        BadImage: see `read_image`.
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
    # A damaged file makes Pillow raise almost anything: SyntaxError, struct.error, IndexError, ...
    except Exception as error:
        raise BadImage(path, str(error) or type(error).__name__) from error
