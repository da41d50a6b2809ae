"""Progress bars, the program name, atomic file writes, and imports without garbage collection."""

from __future__ import annotations

import gc
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from resnet_pl.utils import (
    EXTRAS,
    UserError,
    atomic_write,
    counted,
    expand_path,
    expand_values,
    expand_words,
    gc_paused,
    prog_name,
    progress,
    require,
    shell_command,
    similar,
)

PROJECT = Path(__file__).parent.parent

# ------------------------------------------------------------------------------------ the terminal


def test_a_progress_bar_is_silent_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("working", 2) as advance:
        advance(2)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [(1, "epoch", "1 epoch"), (0, "epoch", "0 epochs"), (1200, "batch", "1,200 batches"), (2, "class", "2 classes")],
)
def test_a_number_with_its_noun(number: int, noun: str, text: str) -> None:
    assert counted(number, noun) == text


@pytest.mark.parametrize(("unit", "text"), [("items", "2/2"), ("bytes", "2/2 bytes")])
def test_a_progress_bar_on_a_terminal(
    unit: str, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress("some [odd] name", 2, unit) as advance:  # type: ignore[arg-type]
        advance(2)
    out, err = capsys.readouterr()
    assert out == ""
    assert "some [odd] name" in err
    assert text in err


@pytest.mark.parametrize(
    ("started", "name"),
    [
        ("/usr/bin/resnet-pl", "resnet-pl"),
        ("cli.py", "python cli.py"),
        ("/there/resnet_pl/cli.py", "python cli.py"),
        ("/there/resnet_pl/__main__.py", "python -m resnet_pl"),
        ("/there/pytest/__main__.py", "python cli.py"),
    ],
)
def test_the_program_name_is_that_of_the_command(started: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [started, "fit"])
    assert prog_name() == name
    assert shell_command(["fit", "a b"]) == f"{name} fit 'a b'"


def test_the_most_similar_name() -> None:
    assert similar("batch_siz", ["image_size", "batch_size", "fold"]) == ["batch_size"]
    assert similar("xyz", ["image_size", "batch_size"]) == []


# ------------------------------------------------------------------------------------ files


def test_the_new_file_replaces_the_old_one_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_write(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt])
def test_an_error_leaves_only_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), atomic_write(path) as partial:
        partial.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_folders_are_created(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a" / "b" / "c.txt") as partial:
        partial.write_text("content")
    assert (tmp_path / "a" / "b" / "c.txt").read_text() == "content"


def test_a_long_name(tmp_path: Path) -> None:
    path = tmp_path / ("写" * 80 + ".png")  # 244 of at most 255 bytes
    with atomic_write(path) as partial:
        partial.touch()
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_use_separate_temporary_files(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a.txt") as one, atomic_write(tmp_path / "a.txt") as two:
        one.write_text("one")
        two.write_text("two")
    assert (tmp_path / "a.txt").read_text() == "one"  # the block that ends last


@pytest.mark.parametrize("place", ["folder", "file/below"])
def test_a_path_that_cannot_be_written(tmp_path: Path, place: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    path = tmp_path / place
    with pytest.raises(UserError) as error, atomic_write(path):
        pass
    assert str(path) in str(error.value)


# ------------------------------------------------------------------------------------ imports

IMPORTED = """
import gc, sys
collections = []
gc.callbacks.append(lambda phase, _: collections.append("torch" in sys.modules))
from resnet_pl.cli.main import main
main(["summary", "nowhere"])
print(sum(collections), gc.isenabled(), gc.get_freeze_count())
"""


@pytest.mark.process
def test_imports_run_without_garbage_collection() -> None:
    words = [sys.executable, "-c", IMPORTED]
    done = subprocess.run(words, cwd=PROJECT, capture_output=True, text=True, check=True)
    collections, enabled, frozen = done.stdout.split()
    # About a thousand without the pause. The command itself creates objects too.
    assert int(collections) < 100 and enabled == "True" and int(frozen) > 100_000


def test_nothing_changes_if_torch_has_been_imported() -> None:
    import torch  # noqa: F401

    before = gc.get_freeze_count()
    with gc_paused():
        assert gc.isenabled()
    assert (gc.get_freeze_count(), gc.isenabled()) == (before, True)


def test_paths_are_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/users/me")
    monkeypatch.setenv("DISK", "/disk")
    monkeypatch.delenv("NONE", raising=False)
    words = [
        "fit",
        "--data.root=~/x",
        "--output",
        "$DISK/y",
        "--data.delimiter=~",
        "--data.group_pattern=a$",
        "$NONE/z",
    ]
    expanded = ["fit", "--data.root=/users/me/x", "--output", "/disk/y", *words[4:]]
    assert expand_words(words) == expanded
    values = {"data": {"root": "~/x", "list": ["${DISK}/a", "https://a.org//b", 3, None]}, "delimiter": "~"}
    assert expand_values(values)["data"] == {"root": "/users/me/x", "list": ["/disk/a", "https://a.org//b", 3, None]}
    assert expand_values(values)["delimiter"] == "~" and expand_path("~") == "/users/me"


# ------------------------------------------------------------------------------------ optional packages


def test_the_extras_are_those_of_the_installation() -> None:
    extras = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {extra: " ".join(each.partition(">=")[0] for each in packages) for extra, packages in extras.items()}
    assert named == EXTRAS


@pytest.mark.parametrize("installed", [False, True])
def test_a_missing_package_is_named_with_its_command(installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str) -> SimpleNamespace:
        if not installed:
            raise metadata.PackageNotFoundError(name)
        return SimpleNamespace(name=name)

    monkeypatch.setattr("importlib.metadata.distribution", find)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    packages = "'resnet_pl[serve]'" if installed else "starlette uvicorn python-multipart"
    with pytest.raises(UserError) as error:
        require("uvicorn", "serve", "serve")
    assert str(error.value) == f"serve needs the package uvicorn\npip install {packages}"


def test_a_package_that_is_installed_but_broken_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_package.py").write_text("raise ImportError('libfoo.so: no such file')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="broken_package, which cannot be imported: libfoo"):
        require("broken_package", "serve", "serve")
