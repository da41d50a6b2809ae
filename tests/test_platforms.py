"""What Windows and macOS lack is simulated: signals, `fork`, modules and functions of Linux."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from resnet_pl import checkpoint as ckpt
from resnet_pl.data.loader import default_num_workers
from tests.conftest import PROJECT

SMALL = ["--model.weights", "null", "--model.backbone.width", "8", "--data.image_size", "16", "--data.batch_size", "4"]
SMALL += ["--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1", "--dashboard", "false"]
# Workers import this file too, as the main module of a spawned process.
SCRIPT = """
import multiprocessing.resource_tracker, os, signal, sys
import lightning, matplotlib.pyplot, sklearn, tensorboard  # some need what is removed here
for name in sys.argv[1].split(","):
    delattr(os if hasattr(os, name) else signal, name)
multiprocessing.resource_tracker._HAVE_SIGMASK = hasattr(signal, "pthread_sigmask")  # of Python; not used on Windows
sys.modules["fcntl"] = sys.modules["resource"] = None
if __name__ == "__main__":
    from resnet_pl.cli.main import main
    multiprocessing.set_start_method("spawn")
    sys.exit(main(sys.argv[2:]))
"""
MISSING = {
    "macOS": "sched_getaffinity,sigwaitinfo,sigtimedwait",
    "Windows": "sched_getaffinity,sigwaitinfo,sigtimedwait,pthread_sigmask,sigwait,fork,setsid,killpg,getuid",
}


@pytest.mark.slow
@pytest.mark.parametrize("system", MISSING)
def test_training_with_workers(system: str, photo_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), MISSING[system], "fit"]
    env = {**os.environ, "PYTHONPATH": str(PROJECT)}
    options = ["--config", "folder", "--data.root", str(photo_folder), "--data.num_workers", "2", *SMALL]
    for epochs in ([*options, "--trainer.max_epochs", "1"], ["--ckpt_path", "last", "--trainer.max_epochs", "2"]):
        process = subprocess.run([*command, *epochs], env=env, capture_output=True, text=True, timeout=600)
        assert process.returncode == 0, process.stdout + process.stderr
    assert "epoch 2/2" in process.stdout + process.stderr


def test_workers_for_all_cores_where_the_allowed_ones_are_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert default_num_workers(2) == 3


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs the list of mapped files")
@pytest.mark.parametrize(("system", "mapped"), [("linux", True), ("win32", False)])
def test_a_checkpoint_can_be_replaced_while_it_is_in_use(
    system: str, mapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows does not replace a file that is mapped into memory."""
    path = Path("model.ckpt").absolute()
    torch.save({"pytorch-lightning_version": "2.6.6", "state_dict": {"weight": torch.zeros(100_000)}}, path)
    monkeypatch.setattr(sys, "platform", system)
    checkpoint = ckpt.read(path)
    assert (str(path) in Path("/proc/self/maps").read_text()) is mapped
    assert checkpoint["state_dict"]["weight"].sum() == 0


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs the list of mapped files")
def test_a_calibrated_checkpoint_is_not_mapped_when_it_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    path, save, mapped = Path("model.ckpt").absolute(), torch.save, []
    save({"state_dict": {"weight": torch.zeros(100_000)}, ckpt.METADATA_KEY: {}}, path)
    monkeypatch.setattr(sys, "platform", "win32")

    def watch(value: object, file: object) -> None:
        mapped.append(str(path) in Path("/proc/self/maps").read_text())
        save(value, file)

    monkeypatch.setattr(torch, "save", watch)
    ckpt.update_metadata(path, "calibration", {"temperature": 2.0})
    assert mapped == [False]
