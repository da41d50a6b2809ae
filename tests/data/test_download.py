"""Downloads from a local server: complete, verified, once, and with clear error messages."""

import hashlib
import io
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer

import pytest

from resnet_pl.data import download
from resnet_pl.data.download import DownloadError, fetch, lock
from resnet_pl.utils import UserError

BODY = bytes(range(256)) * 400
SHA256 = hashlib.sha256(BODY).hexdigest()
MD5 = hashlib.md5(BODY).hexdigest()
NOWHERE = "http://127.0.0.1:1/file"  # no server

Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    server: "Server"

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        self.server.answers[self.path](self)

    def reply(self, status: int, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """Sends the answer for each path and records the paths of all requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, Answer] = {}
        self.requests: list[str] = []

    def url(self, path: str, answer: Answer) -> str:
        self.answers[path] = answer
        return f"http://127.0.0.1:{self.server_port}{path}"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download, "PAUSE", 0.01)
    monkeypatch.setattr(download, "TIMEOUT", 5.0)
    monkeypatch.setattr(download, "ANSWER", 60.0)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
    # Temporary files and locks are always removed.
    remaining = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert remaining <= {"file", "secret"}


@dataclass
class Body:
    """Sends a body, completely or truncated.

    Attributes:
        cuts: for each request, the number of bytes after which the connection is closed; later requests get all.
    """

    content: bytes = BODY
    cuts: list[int] = field(default_factory=list)

    def __call__(self, handler: Handler) -> None:
        handler.reply(200, Content_Length=len(self.content))
        handler.wfile.write(self.content[: self.cuts.pop(0) if self.cuts else None])


@dataclass
class Chunked(Body):
    """Sends the body in chunks, without a content length."""

    def __call__(self, handler: Handler) -> None:
        handler.protocol_version = "HTTP/1.1"
        handler.reply(200, Transfer_Encoding="chunked", Connection="close")
        handler.close_connection = True
        end = self.cuts.pop(0) if self.cuts else None
        for start in range(0, len(self.content[:end]), 10000):
            piece = self.content[start : start + 10000]
            handler.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        if end is None:
            handler.wfile.write(b"0\r\n\r\n")


def status(code: int) -> Answer:
    return lambda handler: handler.reply(code, Content_Length=0)


def redirect(to: str) -> Answer:
    return lambda handler: handler.reply(302, Location=to, Content_Length=0)


def assert_only(path: Path) -> None:
    """The file is complete and the only one in its folder."""
    assert path.read_bytes() == BODY
    assert list(path.parent.iterdir()) == [path]


# ------------------------------------------------------------------------------------ the file
@pytest.mark.parametrize("checksum", [None, f"sha256:{SHA256}", f"md5:{MD5}", f"sha256-prefix:{SHA256[:8]}"])
def test_checksums(checksum: str | None, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new" / "folder" / "file"
    url = server.url("/some-name", Body())
    assert fetch([url], path, checksum, "weights") == path
    assert_only(path)
    out, err = capsys.readouterr()
    assert out == ""
    assert "weights" in err
    assert url in err


def test_body_of_unknown_length(server: Server, tmp_path: Path) -> None:
    fetch([server.url("/file", Chunked())], tmp_path / "file")
    assert_only(tmp_path / "file")


def test_existing_file_is_not_requested(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"mine")
    assert fetch([server.url("/file", Body())], path, f"sha256:{SHA256}") == path
    assert path.read_bytes() == b"mine"
    assert server.requests == []


def test_the_file_appears_only_when_complete(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "file"
    seen = []

    def answer(handler: Handler) -> None:
        handler.reply(200, Content_Length=len(BODY))
        handler.wfile.write(BODY[:-1])
        seen.append(path.exists())
        handler.wfile.write(BODY[-1:])

    fetch([server.url("/file", answer)], path)
    assert seen == [False]
    assert_only(path)


@pytest.mark.parametrize("checksum", [f"sha256:{'0' * 64}", f"md5:{'0' * 32}", f"sha256-prefix:{'0' * 8}"])
def test_wrong_content_is_deleted(checksum: str, server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="wrong content"):
        fetch([server.url("/file", Body())], tmp_path / "file", checksum)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("checksum", ["12345678", "sha1:1234", "sha256:", f"sha256:{SHA256[:8]}", f"md5:{MD5.upper()}"])
def test_checksum_in_the_wrong_format(checksum: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(checksum)):
        fetch([NOWHERE], tmp_path / "file", checksum)


# ------------------------------------------------------------------------------------ addresses
def test_the_next_address_is_tried_after_an_error(server: Server, tmp_path: Path) -> None:
    urls = [
        NOWHERE,
        server.url("/gone", status(404)),
        server.url("/busy", status(503)),
        server.url("/wrong", Body(b"something else")),
        server.url("/right", Body()),
        server.url("/unused", Body()),
    ]
    fetch(urls, tmp_path / "file", f"sha256:{SHA256}")
    assert_only(tmp_path / "file")
    assert server.requests == ["/gone", "/busy", "/wrong", "/right"]


def test_error_names_addresses_reasons_and_fixes(server: Server, tmp_path: Path) -> None:
    urls = [server.url("/gone", status(404)), server.url("/busy", status(503)), NOWHERE]
    path = tmp_path / "file"
    with pytest.raises(DownloadError) as caught:
        fetch(urls, path, what="weights", hint="use weights=None")
    first, second = str(caught.value).splitlines()
    assert "weights" in first
    for url, reason in zip(urls, ("404", "503", "Connection refused"), strict=True):
        assert re.search(re.escape(url) + r" \([^)]*" + reason, first)
    assert str(path) in second
    assert "use weights=None" in second


def test_unknown_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", offline)
    with pytest.raises(DownloadError, match="Name or service not known"):
        fetch(["http://nowhere.invalid/file"], tmp_path / "file")


def test_redirect_is_followed(server: Server, tmp_path: Path) -> None:
    fetch([server.url("/moved", redirect(server.url("/here", Body())))], tmp_path / "file")
    assert_only(tmp_path / "file")


def test_redirect_loop(server: Server, tmp_path: Path) -> None:
    url = server.url("/loop", redirect("/loop"))
    with pytest.raises(DownloadError) as caught:
        fetch([url], tmp_path / "file")
    assert url in str(caught.value)
    assert len(str(caught.value).splitlines()) == 2


class FTPHandler(StreamRequestHandler):
    """The part of FTP that sends a body."""

    codes = {"USER": 331, "PASS": 230, "CWD": 250, "TYPE": 200, "QUIT": 221}

    def handle(self) -> None:
        self.say("220 ready")
        with socket.create_server(("127.0.0.1", 0)) as data:
            for line in self.rfile:
                verb = line.split()[0].decode().upper()
                if verb == "PASV":
                    high, low = divmod(data.getsockname()[1], 256)
                    self.say(f"227 passive (127,0,0,1,{high},{low})")
                elif verb == "RETR":
                    self.say("150 here it comes")
                    connection, _ = data.accept()
                    with connection:
                        connection.sendall(BODY)
                    self.say("226 done")
                else:
                    self.say(f"{self.codes.get(verb, 500)} answer")

    def say(self, line: str) -> None:
        self.wfile.write(f"{line}\r\n".encode())


@pytest.fixture
def ftp_url() -> Iterator[str]:
    with ThreadingTCPServer(("127.0.0.1", 0), FTPHandler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"ftp://127.0.0.1:{server.server_address[1]}/file"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("redirected", [False, True])
@pytest.mark.parametrize("kind", ["file", "ftp", "path"])
def test_only_http_is_allowed(kind: str, redirected: bool, server: Server, ftp_url: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(BODY)
    secret = tmp_path / "secret"
    url = {"file": f"file://localhost{secret}", "ftp": ftp_url, "path": str(secret)}[kind]
    url = server.url("/moved", redirect(url)) if redirected else url
    server.answers[str(secret)] = status(404)
    with pytest.raises(DownloadError):
        fetch([url], tmp_path / "file")
    assert list(tmp_path.iterdir()) == [secret]


# ------------------------------------------------------------------------------------ lost connections
@pytest.mark.parametrize("kind", [Body, Chunked])
def test_truncated_body_is_retried(kind: type[Body], server: Server, tmp_path: Path) -> None:
    fetch([server.url("/file", kind(cuts=[30000]))], tmp_path / "file")
    assert_only(tmp_path / "file")
    assert len(server.requests) == 2


@pytest.mark.parametrize("kind", [Body, Chunked])
def test_body_that_is_always_truncated(kind: type[Body], server: Server, tmp_path: Path) -> None:
    url = server.url("/file", kind(cuts=[30000] * 100))
    with pytest.raises(DownloadError, match=re.escape(url)):
        fetch([url], tmp_path / "file")
    assert 1 < len(server.requests) < 10
    assert list(tmp_path.iterdir()) == []


def test_missing_answer_is_retried(server: Server, tmp_path: Path) -> None:
    def answer_second(handler: Handler) -> None:
        if len(server.requests) == 2:
            Body()(handler)

    fetch([server.url("/file", answer_second)], tmp_path / "file")
    assert_only(tmp_path / "file")


def test_timeout(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(handler: Handler) -> None:
        handler.reply(200, Content_Length=len(BODY))
        handler.wfile.write(BODY[:100])
        over.wait(30)

    over = threading.Event()
    monkeypatch.setattr(download, "TIMEOUT", 0.1)
    try:
        with pytest.raises(DownloadError, match="timed out"):
            fetch([server.url("/file", silent)], tmp_path / "file")
    finally:
        over.set()


def test_a_host_that_does_not_answer_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "ANSWER", 0.1)
    monkeypatch.setattr(download, "TIMEOUT", 600.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts connections and answers none
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/file"
        with pytest.raises(DownloadError, match=r"no answer within 0\.1 seconds"):
            fetch([url], tmp_path / "data" / "images" / "file")
        silent.accept()[0].close()
        silent.settimeout(0.1)
        with pytest.raises(TimeoutError):
            silent.accept()
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------ several processes
class Stderr(io.StringIO):
    """A stderr that can wait for a text."""

    def wait_for(self, text: str, count: int) -> None:
        pause = threading.Event()
        for _ in range(3000):
            if self.getvalue().count(text) >= count:
                return
            pause.wait(0.01)
        raise AssertionError(f"not printed {count} times: {text}")


def test_concurrent_downloads_request_the_file_once(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(handler: Handler) -> None:
        stderr.wait_for("waiting", 3)
        Body()(handler)

    monkeypatch.setattr(download, "TIMEOUT", 60.0)
    path = tmp_path / "file"
    url = server.url("/file", answer)
    with redirect_stderr(Stderr()) as stderr, ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: fetch([url], path, what="weights"), range(4))) == [path] * 4
    assert_only(path)
    assert len(server.requests) == 1
    waiting = [line for line in stderr.getvalue().splitlines() if "waiting" in line]
    assert len(waiting) == 3
    assert all("downloads weights" in line for line in waiting)


def test_a_waiting_download_starts_when_the_first_fails(server: Server, tmp_path: Path) -> None:
    def fail_first(handler: Handler) -> None:
        if len(server.requests) == 1:
            stderr.wait_for("waiting", 1)
            handler.reply(503, Content_Length=0)
        else:
            Body()(handler)

    path = tmp_path / "file"
    url = server.url("/file", fail_first)

    def succeeds(_: int) -> bool:
        try:
            return fetch([url], path).exists()
        except DownloadError:
            return False

    with redirect_stderr(Stderr()) as stderr, ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(succeeds, range(2))) == [False, True]
    assert_only(path)


@pytest.mark.process
def test_the_lock_of_a_killed_process_is_released(tmp_path: Path) -> None:
    hold = "import filelock, sys, time; held = filelock.FileLock(sys.argv[1]).acquire(); print('held', flush=True)"
    command = [sys.executable, "-c", f"{hold}; time.sleep(60)", str(tmp_path / "x.lock")]
    with (
        redirect_stderr(Stderr()) as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process,
    ):
        assert process.stdout.readline() == "held\n"
        killer = threading.Thread(target=lambda: (stderr.wait_for("decodes photos", 1), process.kill()))
        killer.start()
        with lock(tmp_path / "x.lock", "photos", "decodes"):
            assert process.wait() != 0
        killer.join()
    assert list(tmp_path.iterdir()) == []


def test_the_lock_is_removed_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), lock(tmp_path / "x.lock", "x"):
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------ the destination
def test_full_disk(server: Server, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Like a full disk: a write fails in the middle of the file.
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(UserError, match=re.escape(str(tmp_path / "file"))) as caught:
            fetch([server.url("/file", Body())], tmp_path / "file")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not isinstance(caught.value, DownloadError)
    assert len(server.requests) == 1
    assert list(tmp_path.iterdir()) == []


def test_destination_folder_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "data" / "file"))):
        fetch([NOWHERE], tmp_path / "data" / "file")
