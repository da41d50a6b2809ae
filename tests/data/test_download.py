import errno
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO

import pytest

from resnet_pl.data import download
from resnet_pl.data.download import DownloadError, fetch
from resnet_pl.utils import UserError

BODY = bytes(range(256)) * 400
SHA256 = hashlib.sha256(BODY).hexdigest()
MD5 = hashlib.md5(BODY).hexdigest()
ETAG = '"version 1"'
LEFT = ("", ".part", ".part.version", ".lock")

Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    server: "Server"

    def do_GET(self) -> None:
        self.server.ranges.append(self.headers.get("Range"))
        self.server.answers[self.path](self)

    def reply(self, status: int, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """Plays the answer that belongs to a path and keeps the Range header of every request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, Answer] = {}
        self.ranges: list[str | None] = []

    def url(self, path: str, answer: Answer) -> str:
        self.answers[path] = answer
        return f"http://127.0.0.1:{self.server_port}{path}"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download, "PAUSE", 0.01)
    monkeypatch.setattr(download, "TIMEOUT", 5.0)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
    # Whatever happened: the file, what it is resumed from, and the lock, all in their place.
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()} - {"secret"}
    assert left <= {f"{name}{kind}" for name in ("file", "file.bin", "net.pth") for kind in LEFT}


@dataclass
class Body:
    """Sends a body, perhaps in pieces and perhaps cut short.

    Attributes:
        cuts: for each request after how many bytes to hang up; later requests get everything.
        ranges: whether Range is understood; If-Range is heeded.
        always: cut every answer after the first of `cuts`.
    """

    content: bytes = BODY
    cuts: list[int] = field(default_factory=list)
    ranges: bool = True
    always: bool = False
    etag: str | None = ETAG

    def __call__(self, handler: Handler) -> None:
        start, wanted = 0, handler.headers.get("Range")
        if wanted and self.ranges and handler.headers.get("If-Range") == self.etag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        headers: dict[str, object] = {"Content_Length": len(self.content) - start}
        if self.etag:
            headers["ETag"] = self.etag
        if start >= len(self.content):
            handler.reply(416, Content_Length=0)
            return
        if start:
            headers["Content_Range"] = f"bytes {start}-{len(self.content) - 1}/{len(self.content)}"
        handler.reply(206 if start else 200, **headers)
        cut = (self.cuts[0] if self.always else self.cuts.pop(0)) if self.cuts else None
        handler.wfile.write(self.content[start:][:cut])


def status(code: int) -> Answer:
    return lambda handler: handler.reply(code, Content_Length=0)


def redirect(to: str) -> Answer:
    return lambda handler: handler.reply(302, Location=to, Content_Length=0)


def assert_only(path: Path) -> None:
    """The file is whole and alone: no part, note or lock beside it."""
    assert path.read_bytes() == BODY
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("checksum", [None, f"sha256:{SHA256}", f"md5:{MD5}", f"sha256-prefix:{SHA256[:8]}"])
def test_good(checksum: str | None, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new" / "folder" / "file.bin"
    url = server.url("/file", Body())
    assert fetch([url], path, checksum, "weights") == path
    assert_only(path)
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"downloading weights from {url}\nsaved {path}\n"


def test_chunked_body(server: Server, tmp_path: Path) -> None:
    def answer(handler: Handler) -> None:
        handler.protocol_version = "HTTP/1.1"
        handler.reply(200, Transfer_Encoding="chunked", Connection="close")
        for start in range(0, len(BODY), 10000):
            piece = BODY[start : start + 10000]
            handler.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        handler.wfile.write(b"0\r\n\r\n")

    fetch([server.url("/file", answer)], tmp_path / "file")
    assert_only(tmp_path / "file")


def test_existing_file_is_not_asked_for(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"mine")
    assert fetch([server.url("/file", Body())], path, "sha256:00") == path
    assert path.read_bytes() == b"mine"
    assert server.ranges == []


def test_cut_body_is_resumed(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "file"
    fetch([server.url("/file", Body(cuts=[30000, 20000]))], path, f"sha256:{SHA256}")
    assert_only(path)
    assert server.ranges == [None, "bytes=30000-", "bytes=50000-"]


def test_next_run_resumes(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    url = server.url("/file", Body(cuts=[30000]))
    with pytest.raises(DownloadError, match="broke off after 30000 of 102400 bytes"):
        fetch([url], path)
    assert not path.exists()
    fetch([url], path)
    assert_only(path)
    assert server.ranges == [None, "bytes=30000-"]


@pytest.mark.parametrize("second", [Body(), Body(ranges=False), Body(etag=None), Body(etag='W/"weak"')])
def test_changed_file_starts_afresh(
    second: Body, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    with pytest.raises(DownloadError):
        fetch([server.url("/file", Body(b"x" * 50000, [30000], etag='"version 0"'))], path)
    fetch([server.url("/file", second)], path)
    assert_only(path)
    assert server.ranges == [None, "bytes=30000-"]


def test_server_without_ranges(server: Server, tmp_path: Path) -> None:
    fetch([server.url("/file", Body(cuts=[100], ranges=False))], tmp_path / "file")
    assert_only(tmp_path / "file")
    assert server.ranges == [None, "bytes=100-"]


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_unknown_version_is_not_resumed(etag: str | None, server: Server, tmp_path: Path) -> None:
    fetch([server.url("/file", Body(cuts=[100], etag=etag))], tmp_path / "file")
    assert_only(tmp_path / "file")
    assert server.ranges == [None, None]


def test_part_without_a_note_is_not_trusted(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(b"from who knows where")
    fetch([server.url("/file", Body())], tmp_path / "file")
    assert_only(tmp_path / "file")


def test_refused_range_starts_afresh(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(BODY + b"and more")
    (tmp_path / "file.part.version").write_text(ETAG)
    fetch([server.url("/file", Body())], tmp_path / "file")
    assert_only(tmp_path / "file")
    assert server.ranges == [f"bytes={len(BODY) + 8}-", None]


def test_wrong_range_starts_afresh(server: Server, tmp_path: Path) -> None:
    def answer(handler: Handler) -> None:
        if handler.headers.get("Range"):
            handler.reply(206, Content_Range=f"bytes 0-9/{len(BODY)}", Content_Length=10)
            handler.wfile.write(BODY[:10])
        else:
            Body()(handler)

    (tmp_path / "file.part").write_bytes(BODY[:500])
    (tmp_path / "file.part.version").write_text(ETAG)
    fetch([server.url("/file", answer)], tmp_path / "file")
    assert_only(tmp_path / "file")


def test_always_truncated(server: Server, tmp_path: Path) -> None:
    url = server.url("/file", Body(cuts=[100], ranges=False, always=True))
    with pytest.raises(DownloadError, match=r"broke off after 100 of 102400 bytes, 5 times"):
        fetch([url], tmp_path / "file")
    assert len(server.ranges) == 5
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize("kind", ["sha256", "md5", "sha256-prefix"])
def test_wrong_checksum(kind: str, server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="wrong content"):
        fetch([server.url("/file", Body())], tmp_path / "file", f"{kind}:12345678")
    assert [path.name for path in tmp_path.iterdir()] == ["file.lock"]


def test_next_address_after_wrong_content_or_status(server: Server, tmp_path: Path) -> None:
    urls = [
        server.url("/gone", status(404)),
        server.url("/busy", status(503)),
        server.url("/wrong", Body(b"something else")),
        server.url("/right", Body()),
    ]
    fetch(urls, tmp_path / "file", f"sha256:{SHA256}")
    assert_only(tmp_path / "file")
    assert len(server.ranges) == 4


def test_error_says_what_was_tried_and_what_to_do(server: Server, tmp_path: Path) -> None:
    urls = [server.url("/gone", status(404)), server.url("/busy", status(503)), "http://127.0.0.1:1/file"]
    path = tmp_path / "net.pth"
    with pytest.raises(DownloadError) as caught:
        fetch(urls, path, what="weights", hint="use weights=None")
    first, second = str(caught.value).splitlines()
    assert first.startswith("cannot download weights net.pth, tried ")
    for url, reason in zip(
        urls, ("HTTP 404 Not Found", "HTTP 503 Service Unavailable", "Connection refused"), strict=True
    ):
        assert f"{url} ({reason})" in first
    assert second == f"put the file at {path}; use weights=None"


def test_unknown_host(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise OSError(-2, "Name or service not known")

    monkeypatch.setattr("socket.create_connection", offline)
    with pytest.raises(DownloadError, match="Name or service not known"):
        fetch(["http://nowhere.invalid/file"], tmp_path / "file")


def test_redirect_is_followed_with_its_range(server: Server, tmp_path: Path) -> None:
    target = server.url("/file", Body(cuts=[500]))
    fetch([server.url("/moved", redirect(target))], tmp_path / "file")
    assert_only(tmp_path / "file")
    assert server.ranges == [None, None, "bytes=500-", "bytes=500-"]


def test_redirect_loop(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"HTTP 302 .*infinite loop") as caught:
        fetch([server.url("/loop", redirect("/loop"))], tmp_path / "file")
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize("scheme", ["file", "ftp"])
def test_redirect_to_a_file_is_refused(scheme: str, server: Server, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    with pytest.raises(DownloadError, match=f"HTTP 302 .*{scheme}:"):
        fetch([server.url("/moved", redirect(f"{scheme}://localhost{secret}"))], tmp_path / "file")


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://host/file", "/etc/hostname"])
def test_other_addresses_are_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="not an http or https address"):
        fetch([url], tmp_path / "file")


def test_slow_drip_is_given_up(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def drip(handler: Handler) -> None:
        handler.reply(200, Content_Length=1_000_000)
        while not over.wait(0.02):
            handler.wfile.write(b".")

    over = threading.Event()
    monkeypatch.setattr(download, "SPEED_WINDOW", 0.1)
    monkeypatch.setattr(download, "ATTEMPTS", 2)
    try:
        with pytest.raises(DownloadError, match="slower than 1000 bytes per second, 2 times"):
            fetch([server.url("/file", drip)], tmp_path / "file")
    finally:
        over.set()


def test_silence_is_given_up(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(handler: Handler) -> None:
        handler.reply(200, Content_Length=1_000_000)
        over.wait()

    over = threading.Event()
    monkeypatch.setattr(download, "TIMEOUT", 0.1)
    monkeypatch.setattr(download, "ATTEMPTS", 2)
    try:
        with pytest.raises(DownloadError, match="timed out, 2 times"):
            fetch([server.url("/file", silent)], tmp_path / "file")
    finally:
        over.set()


def test_several_at_once_download_once(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waiting: set[int] = set()
    all_wait = threading.Event()
    try_lock = download._try_lock

    def watched(file: IO[str]) -> bool:
        if not (locked := try_lock(file)):
            waiting.add(threading.get_ident())
        if len(waiting) == 3:
            all_wait.set()
        return locked

    def answer(handler: Handler) -> None:
        assert all_wait.wait(30)
        Body()(handler)

    monkeypatch.setattr(download, "_try_lock", watched)
    monkeypatch.setattr(download, "TIMEOUT", 60.0)
    path = tmp_path / "file"
    url = server.url("/file", answer)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: fetch([url], path, what="weights"), range(4)))
    assert results == [path] * 4
    assert_only(path)
    assert len(server.ranges) == 1
    assert capsys.readouterr().err.count("waiting for another process that downloads weights") == 3


def test_waiting_one_tries_when_the_first_fails(server: Server, tmp_path: Path) -> None:
    def moody(handler: Handler) -> None:
        if len(server.ranges) == 1:
            time.sleep(0.2)
            handler.reply(503, Content_Length=0)
        else:
            Body()(handler)

    path = tmp_path / "file"
    url = server.url("/file", moody)

    def outcome(_: int) -> bool:
        try:
            return fetch([url], path).exists()
        except DownloadError:
            return False

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(outcome, range(2))) == [False, True]
    assert_only(path)


def test_full_disk(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*file: No space left on device\nmake room"):
        fetch([server.url("/file", Body())], tmp_path / "file")
    assert not (tmp_path / "file").exists()


def test_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    with pytest.raises(UserError, match="cannot write"):
        fetch(["http://127.0.0.1:1/file"], tmp_path / "data" / "file")


@pytest.mark.parametrize("checksum", ["12345678", "sha1:1234", "sha256:", "md5:XYZ"])
def test_unreadable_checksum(checksum: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="write sha256:HEX"):
        fetch([], tmp_path / "file", checksum)
