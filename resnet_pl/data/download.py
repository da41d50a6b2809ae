"""Files from the network: fetched once, resumed when cut, verified."""

import hashlib
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from typing import IO
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from resnet_pl.utils import UserError, progress

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

TIMEOUT = 20.0  # seconds to connect, and between two bytes
MIN_SPEED = 1000.0  # bytes per second, on average over SPEED_WINDOW
SPEED_WINDOW = 60.0  # seconds
ATTEMPTS = 5  # per address, each going on where the one before broke off
PAUSE = 1.0  # seconds between two attempts, and between two looks at a lock
MAX_REDIRECTS = 5
_CHUNK = 1 << 20
_SCHEMES = ("http://", "https://")
_CHECKSUM = re.compile(r"(?P<kind>sha256|md5)(?P<prefix>-prefix)?:(?P<digits>[0-9a-f]+)")


class DownloadError(UserError):
    """A file could be had from none of its addresses."""


class _Broken(Exception):
    """The connection broke off or stalled; worth another attempt."""


class _Refused(Exception):
    """An address that does not give the file."""


def fetch(urls: Sequence[str], path: Path, checksum: str | None = None, what: str = "file", hint: str = "") -> Path:
    """Downloads a file unless it is there already.

    The file appears under its name only when it is complete and verified. What an interrupted download left behind is
    continued if the server still has the same file. Of several processes one downloads while the others wait.

    Args:
        urls: http and https addresses of the same file, tried in this order.
        path: where the file goes.
        checksum: `sha256:HEX`, `md5:HEX` or `sha256-prefix:HEX` (the first digits, as in the names of torch hub).
        what: the file in words, for messages.
        hint: what else the user could do, added to the error.

    Returns:
        `path`.

    Raises:
        DownloadError: no address gives the file with this checksum.
        UserError: the folder cannot be written to or has no room.
    """
    if path.exists():
        return path
    if checksum and not _CHECKSUM.fullmatch(checksum):
        raise UserError(f"checksum {checksum}: write sha256:HEX, md5:HEX or sha256-prefix:HEX, in small letters")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with lock(path.with_name(path.name + ".lock"), what):
            return path if path.exists() else _fetch(urls, path, checksum, what, hint)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}\nmake room there or choose another folder") from error


def _fetch(urls: Sequence[str], path: Path, checksum: str | None, what: str, hint: str) -> Path:
    part = _Part(path)
    failures = []
    for url in urls:
        try:
            _say(f"downloading {what} from {url}")
            _download(url, part, what)
            part.verify(checksum)
        except _Refused as error:
            failures.append(f"{url} ({error})")
        else:
            part.finish()
            _say(f"saved {path}")
            return path
    advice = f"put the file at {path}" + (f"; {hint}" if hint else "")
    raise DownloadError(f"cannot download {what} {path.name}, tried {', '.join(failures)}\n{advice}")


class _Part:
    """The unfinished file, and beside it a note of the version it is part of: the server's ETag or date."""

    def __init__(self, path: Path) -> None:
        self.target = path
        self.path = path.with_name(path.name + ".part")
        self.note = path.with_name(path.name + ".part.version")

    def request_headers(self) -> dict[str, str]:
        if not (self.path.exists() and self.note.exists()):
            return {}
        return {"Range": f"bytes={self.path.stat().st_size}-", "If-Range": self.note.read_text()}

    def begin(self, version: str | None) -> None:
        self.remove()
        if version:
            self.note.write_text(version)

    def verify(self, checksum: str | None) -> None:
        """Compares the file with its checksum, if there is one; a wrong file is removed and refused."""
        if not (expected := _CHECKSUM.fullmatch(checksum or "")):
            return
        digits = expected["digits"]
        with self.path.open("rb") as file:
            found = hashlib.file_digest(file, expected["kind"]).hexdigest()
        if (found[: len(digits)] if expected["prefix"] else found) != digits:
            self.remove()
            raise _Refused(f"wrong content, {expected['kind']} {found}")

    def finish(self) -> None:
        with self.path.open("rb+") as file:
            os.fsync(file.fileno())
        self.path.replace(self.target)
        self.note.unlink(missing_ok=True)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


def _download(url: str, part: _Part, what: str) -> None:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _receive(url, part, what)
        except _Broken as error:
            if attempt == ATTEMPTS:
                raise _Refused(f"{error}, {ATTEMPTS} times") from error
            time.sleep(PAUSE)


def _receive(url: str, part: _Part, what: str) -> None:
    with _open(url, part) as response:
        start = 0
        if response.status == 206:
            start = part.path.stat().st_size
            if not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                part.remove()
                raise _Broken("another range than asked for")
        else:
            etag = response.headers.get("ETag", "")
            # If-Range takes no weak tags (W/"...").
            part.begin(etag if etag.startswith('"') else response.headers.get("Last-Modified"))
        total = None if response.length is None else start + response.length
        with part.path.open("ab") as file, progress(what, total, "bytes") as advance:
            advance(start)
            for chunk in _chunks(response):
                file.write(chunk)
                advance(len(chunk))


class _Redirects(HTTPRedirectHandler):
    max_redirections = MAX_REDIRECTS

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        if not newurl.lower().startswith(_SCHEMES):
            raise HTTPError(req.full_url, code, f"leads to {newurl}", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(url: str, part: _Part) -> HTTPResponse:
    if not url.lower().startswith(_SCHEMES):
        raise _Refused("not an http or https address")
    headers = {"User-Agent": "resnet_pl", "Accept-Encoding": "identity", **part.request_headers()}
    try:
        return build_opener(_Redirects).open(Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        error.close()
        if error.code == 416 and "Range" in headers:
            part.remove()
            raise _Broken("range refused") from error
        raise _Refused(f"HTTP {error.code} {error.reason}".splitlines()[0]) from error
    except (OSError, HTTPException, ValueError) as error:
        raise _Refused(_reason(error)) from error


def _chunks(response: HTTPResponse) -> Iterator[bytes]:
    expected = response.length
    received = recent = 0
    since = time.monotonic()
    try:
        # read1 returns what has come; read would sit on a dripping line, each drop starting the timeout anew.
        while chunk := response.read1(_CHUNK):
            yield chunk
            received += len(chunk)
            recent += len(chunk)
            elapsed = time.monotonic() - since
            if elapsed > SPEED_WINDOW:
                if recent < MIN_SPEED * elapsed:
                    raise _Broken(f"slower than {MIN_SPEED:g} bytes per second")
                recent, since = 0, time.monotonic()
    except (OSError, HTTPException) as error:
        raise _Broken(_reason(error)) from error
    if expected is not None and received < expected:
        raise _Broken(f"broke off after {received} of {expected} bytes")


def _reason(error: Exception) -> str:
    cause = getattr(error, "reason", error)
    return (str(getattr(cause, "strerror", None) or cause) or type(cause).__name__).splitlines()[0]


@contextmanager
def lock(path: Path, what: str, does: str = "downloads") -> Iterator[None]:
    """Holds a file's lock for the block; another process waits, and says once what for."""
    with path.open("a") as file:
        if not _try_lock(file):
            print(f"waiting for another process that {does} {what}", file=sys.stderr)
            while not _try_lock(file):
                time.sleep(PAUSE)
        yield
        # Only after a success: whoever still waits for this lock then finds the file. Windows keeps open files.
        with suppress(OSError):
            path.unlink()


def _try_lock(file: IO[str]) -> bool:
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        pass  # a file system without locks: rather two downloads than none
    return True


def _say(line: str) -> None:
    if not sys.stderr.isatty():
        print(line, file=sys.stderr)
