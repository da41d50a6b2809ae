"""Small data that many tests need: made here, in no time, from nothing."""

import colorsys
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

MakePhotos = Callable[..., Path]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # So a shell starts what it puts in the background, and Ctrl-C is part of what is tested.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def without_a_seed() -> Iterator[None]:
    """A command line's seed stays in the environment; the next test's data must not follow it."""
    os.environ.pop("PL_GLOBAL_SEED", None)
    yield
    os.environ.pop("PL_GLOBAL_SEED", None)


def write_photos(
    folder: Path, classes: Sequence[str] = ("ant", "bee", "cat"), count: int = 10, first: int = 0, size: int = 24
) -> Path:
    """Writes `count` JPEGs for each class, numbered from `first`; each class has a colour and each photo a shade."""
    for position, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(first, first + count):
            shade = colorsys.hsv_to_rgb(position / len(classes), 1.0, 1 - (number % 100) / 150)
            colour = tuple(round(255 * value) for value in shade)
            image = Image.new("RGB", (size + number % 7, size), colour)
            # Shades of different photos may round alike; the corner makes every content its own.
            image.paste(Image.new("RGB", (8, 8), (number % 256, number // 256, 17 * position)), (0, 0))
            image.save(folder / name / f"{number:04d}.jpg", quality=95)
    return folder


@pytest.fixture
def make_photos() -> MakePhotos:
    """The function that writes a folder of class folders of tiny JPEGs."""
    return write_photos


@pytest.fixture
def photo_folder(tmp_path: Path) -> Path:
    """Three class folders of ten JPEGs each."""
    return write_photos(tmp_path / "photos")


@dataclass
class FileServer:
    """A web server on this machine; `requests` holds the path of every request."""

    address: str
    requests: list[str] = field(default_factory=list)


@pytest.fixture
def serve() -> Iterator[Callable[[Path], FileServer]]:
    """Serves the files of a folder until the test ends."""
    servers = []

    def start(folder: Path) -> FileServer:
        class Handler(SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                served.requests.append(self.path)
                super().do_GET()

            def log_message(self, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        served = FileServer(f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return served

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
