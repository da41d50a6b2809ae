"""Archives from strangers, unpacked safely."""

import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from typing import IO

from resnet_pl.utils import UserError, progress

MAX_RATIO = 200  # unpacked to packed size; photographs stay near 1, a bomb of zeros reaches 1000
MIN_BOMB = 100_000_000  # bytes; smaller contents are never called a bomb
_CHUNK = 1 << 20
_DAMAGES = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError)


def extract(archive: Path, folder: Path, max_bytes: int = 20_000_000_000) -> None:
    """Unpacks a tar or zip archive into a folder, wholly or not at all.

    Only plain files and folders are taken, without their owners and permissions.

    Args:
        archive: `.zip`, or `.tar`, `.tar.gz`, `.tgz` and what else `tarfile` reads.
        folder: made if missing; files of the same name are replaced, others stay.
        max_bytes: the most that all files together may take.

    Raises:
        UserError: the archive is damaged, too large unpacked, or has a link, a device or a name outside the folder.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
            _unpack(archive, Path(temporary), max_bytes)
            folder.mkdir(exist_ok=True)
            _merge(Path(temporary), folder)
    except _DAMAGES as error:
        raise UserError(f"{archive} is damaged or of an unknown kind ({error}); delete and fetch it again") from error
    except OSError as error:
        raise UserError(f"cannot unpack {archive} to {folder}: {error.strerror or error}") from error


def _unpack(archive: Path, folder: Path, max_bytes: int) -> None:
    limit = min(max_bytes, max(MIN_BOMB, MAX_RATIO * archive.stat().st_size))
    unpacked = 0
    with progress(f"unpacking {archive.name}", unit="bytes") as advance:
        for name, content in _members(archive):
            place = folder.joinpath(*_safe(archive, name))
            if content is None:
                place.mkdir(parents=True, exist_ok=True)
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            with content, place.open("wb") as file:
                while chunk := content.read(_CHUNK):
                    unpacked += len(chunk)
                    if unpacked > limit:
                        raise UserError(f"{archive}: {name} brings it to more than {limit} bytes; not unpacked")
                    file.write(chunk)
                    advance(len(chunk))


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes] | None]]:
    """Yields each member's name and content, None for a folder."""
    if archive.suffix.lower() == ".zip":
        with zipfile.ZipFile(archive) as package:
            for info in package.infolist():
                kind = stat.S_IFMT(info.external_attr >> 16)
                if kind not in (0, stat.S_IFREG, stat.S_IFDIR) or info.flag_bits & 1:
                    raise UserError(f"{archive}: {info.filename} is a link, special or encrypted; not unpacked")
                yield info.filename, None if info.is_dir() else package.open(info)
        return
    with tarfile.open(archive) as package:
        for member in package:
            if not (member.isreg() or member.isdir()):
                raise UserError(f"{archive}: {member.name} is a link or special file; not unpacked")
            yield member.name, package.extractfile(member)


def _safe(archive: Path, name: str) -> tuple[str, ...]:
    # The Windows reading knows drives and both separators, and so is the stricter one everywhere.
    path = PureWindowsPath(name)
    if path.anchor or ".." in path.parts:
        raise UserError(f"{archive}: {name} lies outside the folder; not unpacked")
    return path.parts


def _merge(source: Path, folder: Path) -> None:
    for entry in source.iterdir():
        place = folder / entry.name
        if entry.is_dir() and place.is_dir():
            _merge(entry, place)
        else:
            entry.replace(place)
