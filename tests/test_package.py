"""The wheel and the source distribution work in a new environment, from any folder: `make package` runs this too."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent


def run(*command: object) -> str:
    """Runs a command that must succeed; returns its output."""
    process = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The built files by suffix."""
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    # Builds the source distribution, and the wheel from it.
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, PROJECT)
    return {path.suffix: path for path in folder.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".whl", ".gz"])
def test_an_installed_package_trains_from_any_folder(suffix: str, files: dict[str, Path], tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # The dependencies are those of this environment: their installation would take minutes and 6 GB.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    run(python, "-m", "pip", "install", "--no-deps", "--no-index", "--no-build-isolation", files[suffix])

    command = python.with_name("resnet-pl")
    assert "fit" in run(command, "--help")
    assert str(packages) in run(python, "-c", "import resnet_pl; print(resnet_pl.__file__)")
    run(command, "fit", "--config", "digits", "--config", "recipes/ema", "--trainer.fast_dev_run", "true")
    # Files of the package that are not Python.
    assert (packages / "resnet_pl" / "py.typed").is_file()
    for name in ("configs", "server/static"):
        source = PROJECT / name if name == "configs" else PROJECT / "resnet_pl" / name
        expected = {path.relative_to(source) for path in source.rglob("*") if path.is_file()}
        installed = packages / "resnet_pl" / name
        assert {path.relative_to(installed) for path in installed.rglob("*") if path.is_file()} == expected
