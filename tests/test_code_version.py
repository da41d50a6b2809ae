"""The commit in sessions.json: it is clean only if all code that the run uses is in it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from resnet_pl.code_version import code_version
from tests.cli.commands import SMALL, run

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


def git(*words: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
    subprocess.run(["git", *identity, *words], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of the user, with a configuration file; it is the working folder."""
    folder = tmp_path / "photos of cats"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "mine.yaml").write_text("name: a\n")
    git("init")
    git("add", ".")
    git("commit", "--message", "first")
    return folder


def own(*files: Path) -> str:
    """The version of the repository in the working folder."""
    return str(code_version(files)).rpartition("photos of cats@")[2] or "missing"


def test_untracked_files_that_are_used_make_the_commit_dirty(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (repository / "notes.py").touch()  # not used
    config = Path("mine.yaml")
    clean = own(config)
    assert len(clean) == 12 and int(clean, 16)
    shutil.copy(config, "untracked*.yaml")
    assert own(config, Path("untracked*.yaml")) == f"{clean}-dirty"
    (repository / "my_untracked_network.py").touch()
    monkeypatch.syspath_prepend(str(repository))
    __import__("my_untracked_network")
    try:
        assert own(config) == f"{clean}-dirty"
        git("add", "my_untracked_network.py")
        git("commit", "--message", "second")
        assert own(config) not in (clean, "missing") and not own(config).endswith("-dirty")
        config.write_text("name: b\n")
        assert own().endswith("-dirty")
    finally:
        del sys.modules["my_untracked_network"]


@pytest.mark.slow
def test_a_run_records_both_commits(repository: Path) -> None:
    Path("own.yaml").write_text("name: a\n")
    options = ["--config", "own.yaml", "--trainer.max_steps", 1, "--trainer.logger", "false"]
    run("fit", *SMALL, *options)
    (session,) = json.loads(Path("runs/a/version_0/sessions.json").read_text())
    assert session["commit"].rpartition("photos of cats@")[2].endswith("-dirty")


def test_a_module_of_a_folder_without_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.setattr("resnet_pl.code_version.PROJECT", project)
    git("-C", str(project), "init")
    git("-C", str(project), "commit", "--message", "first", "--allow-empty")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.syspath_prepend(str(tmp_path / "work"))
    assert not str(code_version()).endswith("-dirty")
    Path("my_lost_network.py").touch()
    __import__("my_lost_network")
    try:
        assert str(code_version()).endswith("-dirty")
    finally:
        del sys.modules["my_lost_network"]


def test_outside_of_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("resnet_pl.code_version.PROJECT", tmp_path)
    assert code_version([tmp_path / "x.yaml"]) is None
