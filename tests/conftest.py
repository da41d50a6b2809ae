"""Fixtures and small data sets for all tests. Each test runs in an empty working directory of its own."""

from __future__ import annotations

import colorsys
import importlib.util
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import count as count_up
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

PROJECT = Path(__file__).resolve().parent.parent
NUMBERS = count_up()
FILES = pytest.StashKey[set[str]]()
LEFT = pytest.StashKey[list[str]]()
MakePhotos = Callable[..., Path]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell ignores SIGINT in the background processes that it starts, but the tests send it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def load_docs_script(name: str) -> ModuleType:
    """Returns a new module object of a script in docs/."""
    spec = importlib.util.spec_from_file_location(name, PROJECT / "docs" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _handler_of_ctrl_c() -> Iterator[None]:
    """Restores the handler of SIGINT: `litdata.optimize` leaves its own, which ends the process."""
    yield
    signal.signal(signal.SIGINT, signal.default_int_handler)


def project_files() -> set[str]:
    """Returns the project's files, except hidden and ignored ones, and sources, which may be edited meanwhile."""
    found = set()
    for folder, folders, files in os.walk(PROJECT):
        parent = Path(folder).relative_to(PROJECT)
        ignored = {name for name in folders if name.startswith((".", "__pycache__")) or name.endswith(".egg-info")}
        ignored |= {name for name in folders if Path(folder, name, "pyvenv.cfg").exists()}
        # Output folders are listed, but not what is in them: a training may run at the same time.
        output = {"runs", "data", "build", "dist"} if folder == str(PROJECT) else set()
        found |= {f"{name}/" for name in output & set(folders)}
        folders[:] = sorted(set(folders) - ignored - output)
        found |= {
            (parent / name).as_posix()
            for name in files
            if not name.startswith(".") and not name.endswith((".py", ".pyc", ".md", "~"))
        }
    return found


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Records the files of the project before the first test, except in a worker of pytest-xdist."""
    if not hasattr(session.config, "workerinput"):
        session.config.stash[FILES] = project_files()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fails the test run if the tests wrote files into the project."""
    if FILES in session.config.stash:
        session.config.stash[LEFT] = sorted(project_files() - session.config.stash[FILES])
        if session.config.stash[LEFT] and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Prints the files that the tests wrote into the project."""
    if left := config.stash.get(LEFT, []):
        terminalreporter.write_line(f"error: the tests wrote files into {PROJECT}: {', '.join(left)}", red=True)


@pytest.fixture(scope="session", autouse=True)
def working_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yields the working directory of fixtures that several tests share."""
    before, root = Path.cwd(), tmp_path_factory.mktemp("cwd")
    os.chdir(root)
    yield root
    os.chdir(before)


@pytest.fixture(autouse=True)
def working_directory(working_root: Path) -> Iterator[Path]:
    """Runs the test in an empty directory, not in `tmp_path`: some tests list the files that they wrote there."""
    folder = working_root / str(next(NUMBERS))
    folder.mkdir()
    os.chdir(folder)
    yield folder
    os.chdir(working_root)
    if not any(folder.iterdir()):
        folder.rmdir()


@pytest.fixture(autouse=True)
def no_global_seed() -> Iterator[None]:
    """Removes the seed that a command line stores in the environment: it would affect the data of the next test."""
    os.environ.pop("PL_GLOBAL_SEED", None)
    yield
    os.environ.pop("PL_GLOBAL_SEED", None)


def write_photos(
    folder: Path, classes: Sequence[str] = ("ant", "bee", "cat"), count: int = 10, first: int = 0, size: int = 24
) -> Path:
    """Writes `count` JPEGs per class, numbered from `first`. Each class has a hue, and each image a brightness."""
    for position, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(first, first + count):
            shade = colorsys.hsv_to_rgb(position / len(classes), 1.0, 1 - (number % 100) / 150)
            color = tuple(round(255 * value) for value in shade)
            image = Image.new("RGB", (size + number % 7, size), color)
            # Two brightness values can be rounded to the same color; the corner makes each image unique.
            image.paste(Image.new("RGB", (8, 8), (number % 256, number // 256, 17 * position)), (0, 0))
            image.save(folder / name / f"{number:04d}.jpg", quality=95)
    return folder


@pytest.fixture
def make_photos() -> MakePhotos:
    """Returns `write_photos`."""
    return write_photos


@pytest.fixture
def photo_folder(tmp_path: Path) -> Path:
    """Returns a folder with three class folders of ten JPEGs each."""
    return write_photos(tmp_path / "photos")


@dataclass
class FileServer:
    """A local HTTP server.

    Attributes:
        address: URL of the served folder.
        requests: path of each request so far.
    """

    address: str
    requests: list[str] = field(default_factory=list)


@pytest.fixture
def serve() -> Iterator[Callable[[Path], FileServer]]:
    """Yields a function that serves the files of a folder until the test ends."""
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
