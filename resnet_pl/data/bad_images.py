"""Image files that cannot be read: the error, the list of skipped files, and how many may be skipped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from resnet_pl.utils import UserError, counted, prog_name

# More unreadable files than both of these are an error: the disk is gone, or it is the wrong data.
MAX_BAD_FRACTION, MIN_BAD_COUNT = 0.1, 10


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

    def __reduce__(self) -> tuple[type[BadImage], tuple[Path | str, str]]:
        return type(self), (self.path, self.reason)


class LargeImage(BadImage):
    """An image with too many pixels."""


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
            f"these are too many to skip; `{prog_name()} check-data FOLDER --decode` lists them all"
        )


def bad_images_error(bad: Sequence[BadImage]) -> UserError:
    """Returns the error for unreadable images that must not be skipped."""
    examples = "; ".join(str(error) for error in bad[:3]) + (" …" if len(bad) > 3 else "")
    return UserError(
        f"{counted(len(bad), 'image')} cannot be read: {examples}\n"
        "repair or remove them, or skip such files with --data.on_bad_image skip"
    )
