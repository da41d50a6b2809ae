"""Finds image files in folders, by glob patterns and in lists."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from glob import glob
from pathlib import Path

from resnet_pl.data.bad_images import printable_path
from resnet_pl.utils import UserError, expand_path

try:  # an extra: Pillow itself does not read the photos of iPhones
    from pillow_heif import register_heif_opener

    register_heif_opener()
    NEEDS_PLUGIN: frozenset[str] = frozenset()
except ImportError:
    NEEDS_PLUGIN = frozenset({".heic", ".heif"})
_EXTENSIONS = "jpg jpeg jpe jfif png bmp gif webp tif tiff ppm pgm pbm avif heic heif"
IMAGE_EXTENSIONS = frozenset(f".{name}" for name in _EXTENSIONS.split()) - NEEDS_PLUGIN


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
