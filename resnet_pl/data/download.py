"""Downloads with checksums and locks, and safe unpacking of archives."""

import hashlib
import re
import shutil
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait
from http.client import HTTPException
from pathlib import Path, PureWindowsPath
from stat import S_IFDIR, S_IFMT, S_IFREG
from threading import Thread
from typing import Any
from urllib.error import URLError
from urllib.request import Request, build_opener

from resnet_pl.utils import UserError, atomic_write, lock, progress

ANSWER = 6.0  # seconds until a server must answer
TIMEOUT = 20.0  # seconds between two bytes
ATTEMPTS = 3  # per address
PAUSE = 1.0  # seconds between two attempts


class DownloadError(UserError):
    """A file cannot be downloaded."""


def fetch(urls: Sequence[str], path: Path, checksum: str | None = None, what: str = "file", hint: str = "") -> Path:
    """Downloads a file unless it exists. One process downloads; others wait for it.

    Args:
        urls: HTTP and HTTPS addresses of the same file, tried in this order.
        path: destination; the file appears there only when it is complete and verified.
        checksum: `sha256:HEX`, `md5:HEX` or `sha256-prefix:HEX` (first digits, as in the file names of torch.hub).
        what: short description of the file, for messages.
        hint: alternative for the user, added to the error message.

    Returns:
        `path`.

    Raises:
        DownloadError: no address returned a file with this checksum.
        UserError: the file cannot be written.
    """
    if checksum and not re.fullmatch("sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}|sha256-prefix:[0-9a-f]+", checksum):
        raise UserError(
            f"checksum {checksum} has the wrong format\nuse sha256:HEX, md5:HEX or sha256-prefix:HEX, in lower case"
        )
    if path.exists():
        return path
    failures = []
    try:
        with lock(path.with_name(f"{path.name}.lock"), what):
            if path.exists():
                return path
            for url in urls:
                print(f"downloading {what} from {url}", file=sys.stderr)
                try:
                    with atomic_write(path) as temporary:
                        _download(url, temporary, checksum, what)
                    return path
                except DownloadError as error:
                    failures.append(f"{url} ({error})")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}\nfree space there or choose another folder") from error
    advice = f"put the file at {path}" + (f"; {hint}" if hint else "")
    raise DownloadError(f"cannot download {what} {path.name}, tried {', '.join(failures)}\n{advice}")


def _download(url: str, path: Path, checksum: str | None, what: str) -> None:
    kind, digits = (checksum or "sha256:").replace("-prefix", "").split(":")
    for attempt in range(1, ATTEMPTS + 1):
        digest = hashlib.new(kind)
        try:
            with path.open("wb") as file:
                for chunk in _chunks(url, what):
                    file.write(chunk)
                    digest.update(chunk)
        except ConnectionError as error:
            if attempt == ATTEMPTS:
                raise DownloadError(str(error)) from error
            time.sleep(PAUSE)
            continue
        if not digest.hexdigest().startswith(digits):
            raise DownloadError(f"wrong content, {kind}:{digest.hexdigest()}")
        return


def _chunks(url: str, what: str) -> Iterator[bytes]:
    # Raises network errors only; disk errors are raised where the chunks are written.
    try:
        with _open(url) as response:
            if not re.match("https?:", response.url, re.IGNORECASE):  # urllib also opens file and ftp addresses
                raise DownloadError(f"{response.url} is not an http or https address")
            remaining = int(response.headers.get("Content-Length", 0))
            with progress(what, remaining or None, "bytes") as advance:
                while chunk := response.read(1 << 16):
                    yield chunk
                    remaining -= len(chunk)
                    advance(len(chunk))
        if remaining > 0:
            raise ConnectionError(f"connection lost {remaining} bytes before the end")
    except (OSError, HTTPException, ValueError) as error:  # a lost connection is retried
        kind = DownloadError if isinstance(error, URLError | ValueError) else ConnectionError
        raise kind(str(error).partition("\n")[0].strip("<>")) from error


def _open(url: str) -> Any:
    """Opens an address. A thread limits the time: the lookup of a name and a host with many addresses have no limit."""
    answer = Future[Any]()

    def connect() -> None:
        try:
            request = Request(url, headers={"User-Agent": "resnet_pl"})
            answer.set_result(build_opener().open(request, timeout=TIMEOUT))
        except Exception as error:
            answer.set_exception(error)

    Thread(target=connect, daemon=True).start()
    if not wait([answer], ANSWER).done:
        raise URLError(f"no answer within {ANSWER:g} seconds")
    return answer.result()


def extract(archive: Path, folder: Path) -> None:
    """Unpacks a zip or tar archive into a folder, completely or not at all.

    Args:
        archive: `.zip`, or any format that `tarfile` reads, such as `.tar`, `.tar.gz` and `.tgz`.
        folder: destination, created if missing; existing files of the same name are replaced.

    Raises:
        UserError: the archive is damaged, contains a link, a device or a path outside the folder, or a file cannot be
            written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
            _unpack(archive, temporary)
            for source in [path for path in Path(temporary).rglob("*") if path.is_file()]:
                target = folder / source.relative_to(temporary)
                target.parent.mkdir(parents=True, exist_ok=True)
                source.replace(target)
    except Exception as error:  # a damaged archive raises a dozen different types
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(
            f"cannot unpack {archive} to {folder}: {reason}\nif the archive is damaged, delete it"
        ) from error


def _unpack(archive: Path, folder: str) -> None:
    if archive.suffix.lower() == ".zip":
        with zipfile.ZipFile(archive) as package:
            for member in package.infolist():
                _check_member(member.filename, S_IFMT(member.external_attr >> 16) in (0, S_IFREG, S_IFDIR))
            package.extractall(folder)
    else:
        # Not `extractall`: its argument `filter` is missing before Python 3.11.4.
        with tarfile.open(archive) as package:
            members = package.getmembers()
            for member in members:
                _check_member(member.name, member.isreg() or member.isdir())
            for member in members:
                target = Path(folder, member.name)
                if (content := package.extractfile(member)) is None:
                    target.mkdir(parents=True, exist_ok=True)
                else:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with content, target.open("wb") as file:
                        shutil.copyfileobj(content, file)


def _check_member(name: str, is_plain: bool) -> None:
    path = PureWindowsPath(name)  # stricter than POSIX: drives and both separators
    if not is_plain or path.anchor or ".." in path.parts:
        raise ValueError(f"{name} is a link, a special file or outside the folder")


class DownloadMixin:
    """Mixin for data modules that download an archive; list it before the data module in the bases.

    Attributes:
        urls: addresses of the archive.
        checksum: checksum of the archive, see `fetch`.
        root: folder of the images.
        download: whether the archive is downloaded if the images are missing.
        predict_paths: see `ImageDataModule`; nothing is downloaded to predict on other files.
    """

    urls: list[str]
    checksum: str
    root: Path
    download: bool
    predict_paths: list[Path] | None

    def is_downloaded(self) -> bool:
        """Returns whether the images exist."""
        raise NotImplementedError

    def unpack(self, archive: Path) -> None:
        """Unpacks the archive to `root`, completely or not at all; the archive is removed afterwards."""
        raise NotImplementedError

    def prepare_data(self) -> None:
        """Downloads the images if they are needed and missing."""
        if not self.download or self.predict_paths is not None or self.is_downloaded():
            return
        folder, name = self.root.parent, type(self).__name__
        try:
            with lock(folder / f"{self.root.name}.lock", name):
                if not self.is_downloaded():
                    hint = f"or pass the folder of your copy with --data.root FOLDER (not found in {self.root})"
                    archive = fetch(self.urls, folder / Path(self.urls[0]).name, self.checksum, name, hint)
                    self.unpack(archive)
                    archive.unlink()
        except OSError as error:
            raise UserError(f"cannot write to {folder}: {error.strerror}\nchoose another --data.root") from error
