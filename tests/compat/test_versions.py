"""fit, resume and test work with other versions of Lightning and jsonargparse.

pip installs each version into its own folder, which needs a package index; `PYTHONPATH` gives it precedence.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent.parent
SMALL = ["--model.backbone.depth", "8", "--trainer.limit_train_batches", "6", "--trainer.log_every_n_steps", "2"]
VERSIONS = [
    *[("lightning", version) for version in ("2.6.0", "2.6.1", "2.6.4", "2.6.6")],
    *[("jsonargparse", version) for version in ("4.41.0", "4.50.0", "4.53.0")],
]


def run(folder: Path, packages: Path, *argv: str, code: int = 0) -> str:
    """Runs a command line with other package versions; returns its output."""
    env = {**os.environ, "PYTHONPATH": str(packages), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(PROJECT / "cli.py"), *argv]
    process = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120)
    assert process.returncode == code, process.stdout + process.stderr
    return process.stdout + process.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("package", "version"), VERSIONS)
def test_fit_resume_and_test(package: str, version: str, tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(packages)]
    if subprocess.run([*pip, f"{package}=={version}"], capture_output=True).returncode:
        pytest.skip("needs a package index")
    print_version = f"import {package}; print({package}.__version__)"
    env = {**os.environ, "PYTHONPATH": str(packages)}
    assert subprocess.check_output([sys.executable, "-c", print_version], env=env, text=True).strip() == version

    config = ["--config", str(PROJECT / "configs/digits.yaml"), "--config", str(PROJECT / "configs/recipes/ema.yaml")]
    short = ["--model.backbone", "cifar_resnet", *SMALL]
    run(tmp_path, packages, "fit", *config, *short, "--trainer.max_epochs", "2", "--name", "uninterrupted")
    run(tmp_path, packages, "fit", *config, *short, "--trainer.max_epochs", "1", "--name", "resumed")
    # Both use the schedule of the longer run.
    run(tmp_path, packages, "fit", "--ckpt_path", "last", "--name", "resumed", "--trainer.max_epochs", "2")
    run(tmp_path, packages, "test", "--ckpt_path", "last", "--name", "resumed")
    assert json.loads((tmp_path / "runs/resumed/version_0/results.json").read_text())["images"] == 360
    files = [tmp_path / f"runs/{name}/version_0/metrics.csv" for name in ("uninterrupted", "resumed")]
    steps = [[line.split(",")[:2] for line in file.read_text().splitlines()] for file in files]
    assert steps[0] == steps[1]
    # Every version names the wrong option.
    output = run(tmp_path, packages, "fit", *config, "--model.backbone.depht", "8", code=2)
    assert "model.backbone" in output and "depht" in output and "depth" in output and "Traceback" not in output
    output = run(tmp_path, packages, "fit", *config, "--data.batch_size", "0", code=2)
    assert "data.batch_size" in output and len(output.strip().splitlines()) <= 3
