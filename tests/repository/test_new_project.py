"""scripts/new_project.py: a project with another name, without what describes this repository, that reads its files."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

PROJECT = Path(__file__).parents[2]
if not (PROJECT / ".git").exists():
    pytest.skip("not a clone", allow_module_level=True)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("new_project", PROJECT / "scripts" / "new_project.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def project(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new project, `flower_net`."""
    folder = tmp_path_factory.mktemp("new") / "project"
    script.main(["flower_net", str(folder)])
    return folder


def test_the_name_is_replaced_in_all_files(project: Path) -> None:
    assert (project / "flower_net" / "classifier.py").is_file() and not (project / "resnet_pl").exists()
    mentioned = {
        path.relative_to(project).as_posix()
        for path in project.rglob("*")
        if path.suffix != ".ckpt" and path.is_file() and b"resnet_pl" in path.read_bytes()
    }
    assert mentioned == {"README.md", "CHANGELOG.md", "flower_net/_renamed.py"}
    pyproject = (project / "pyproject.toml").read_text(encoding="utf-8")
    assert 'name = "flower_net"' in pyproject and 'flower-net = "flower_net.cli.main:main"' in pyproject


def test_the_code_can_be_formatted_with_any_name(script: ModuleType, tmp_path: Path) -> None:
    project = tmp_path / "project"
    script.main(["zoo_classifier_of_animals", str(project)])  # sorted behind `tests`, and longer
    for words in (["check", "--fix"], ["format"], ["check"]):
        done = subprocess.run([sys.executable, "-m", "ruff", *words], cwd=project, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:]


def test_what_describes_this_repository_is_not_copied(project: Path) -> None:
    for name in ("docs", "benchmarks", "scripts", "tests/repository"):
        assert not (project / name).exists()
    for path in ("Makefile", ".github/workflows/ci.yml"):
        text = (project / path).read_text(encoding="utf-8")
        assert not any(word in text for word in ("zensical", "target: docs", "tests/repository", "campaign"))
    assert not [path for path in project.rglob("*.md") if "](docs/" in path.read_text(encoding="utf-8")]
    tests = "".join(path.read_text(encoding="utf-8") for path in (project / "tests").rglob("*.py"))
    assert "from benchmarks" not in tests and "from docs" not in tests and "tests.repository" not in tests


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("https://host.org/me/net.git\n", "https://host.org/me/net.git"),
        ("https://me:secret@host.org/net", "https://host.org/net"),
        ("../net", ""),
        ("", ""),
    ],
)
def test_the_address_of_the_documentation_has_no_password(script: ModuleType, url: str, address: str) -> None:
    assert script.public_address(url) == address


@pytest.mark.parametrize("name", ["Flowers", "my-net", "class", "torch", "tests", "2net"])
def test_a_wrong_name_is_refused(
    name: str, script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        script.main([name, str(tmp_path / "new")])
    assert end.value.code == 2 and name in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_an_existing_folder_is_not_changed(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        script.main(["flower_net", str(tmp_path)])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_clone_of_the_new_project_passes_its_tests(project: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    page = (PROJECT / "docs" / "extend.md").read_text(encoding="utf-8")
    for name, place in (("own_metric.py", "flower_net"), ("test_own_metric.py", "tests")):  # own code, as in the docs
        code = page.partition(f"```python\n# {name}\n")[2].partition("```")[0].replace("petal", "flower_net")
        assert code, name
        (project / place / name).write_text(code, encoding="utf-8")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.com"]
    for words in (["init", "-b", "main"], ["add", "."], ["commit", "-m", "Start"], ["clone", ".", str(clone)]):
        subprocess.run([*git, *words], cwd=project, check=True, capture_output=True)
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name in ("PYTEST_CURRENT_TEST", "PYTEST_XDIST_WORKER"):
        env.pop(name, None)
    checks = (["ruff", "check"], ["ruff", "format", "--check"], ["pytest", "-n", "auto", "--dist", "worksteal"])
    for words in checks:
        command = [sys.executable, "-m", *words]
        done = subprocess.run(command, cwd=clone, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr
