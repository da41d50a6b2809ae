"""Training on two nodes: two connected network namespaces with torchrun in each."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def nodes() -> Iterator[list[str]]:
    """Names of two network namespaces with the addresses 10.77.0.1 and 10.77.0.2."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("needs root and the command ip to create network namespaces")
    names = [f"resnet{os.getpid()}{end}" for end in "ab"]
    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip("link", "add", "eth7", "netns", names[0], "type", "veth", "peer", "name", "eth7", "netns", names[1])
        except subprocess.CalledProcessError as error:
            pytest.skip(f"cannot create network namespaces: {error.stderr.decode().strip()}")
        for number, name in enumerate(names, 1):
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "eth7")
            for device in ("lo", "eth7"):
                ip("-n", name, "link", "set", device, "up")
        yield names
    finally:
        for name in names:
            # torchrun starts its workers in sessions of their own: they survive when a failed test kills torchrun.
            listed = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split()
            for pid in map(int, listed):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def torchrun(node: str, number: int, folder: Path, *options: str) -> subprocess.Popen[bytes]:
    """Starts torchrun on a node, for a training of eight epochs; its output goes to NUMBER.log."""
    launcher = ["--nnodes", "2", "--nproc_per_node", "1", "--max_restarts", "9", "--rdzv_backend", "c10d"]
    launcher += ["--rdzv_id", "test-run", "--rdzv_endpoint", "10.77.0.1:29500", "--local_addr", f"10.77.0.{number}"]
    launcher += ["--rdzv_conf", f"is_host={int(number == 1)},read_timeout=20"]
    fit = ["fit", "--config", str(PROJECT / "configs/digits.yaml"), "--model.backbone.depth", "8"]
    fit += ["--trainer.max_epochs", "8", *options]
    command = ["ip", "netns", "exec", node, sys.executable, "-m", "torch.distributed.run", *launcher]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "eth7"}
    with (folder / f"{number}.log").open("wb") as log:
        return subprocess.Popen(
            [*command, str(PROJECT / "cli.py"), *fit],
            cwd=folder,
            env=env,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def wait_for(path: Path, seconds: float = 900) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} was not written"
        time.sleep(0.1)


def workers(node: str) -> list[int]:
    """PIDs of the training processes in a namespace."""
    listed = subprocess.run(["ip", "netns", "pids", node], capture_output=True, text=True, check=True).stdout.split()
    lines = {}
    for pid in listed:
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended in the meantime
            lines[int(pid)] = Path(f"/proc/{pid}/cmdline").read_bytes()
    return [pid for pid, line in lines.items() if b"cli.py\0fit" in line and b"torch.distributed.run" not in line]


@pytest.mark.process
@pytest.mark.timeout(1200)
@pytest.mark.slow
def test_two_nodes_write_one_run(nodes: list[str], tmp_path: Path) -> None:
    processes = [torchrun(node, number, tmp_path, "--trainer.max_epochs", "2") for number, node in enumerate(nodes, 1)]
    try:
        codes = [process.wait(900) for process in processes]
    finally:
        for process in processes:
            process.kill()
    first, second = ((tmp_path / f"{number}.log").read_text() for number in (1, 2))
    assert codes == [0, 0], first + second
    assert (first + second).count("2 processes") == 1
    assert [path.name for path in (tmp_path / "runs/digits").iterdir()] == ["version_0"]
    checkpoints = tmp_path / "runs/digits/version_0/checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["best.ckpt", "last.ckpt"]


# Slow: workers that torchrun has restarted sometimes look for each other at an old address, and need another restart.
@pytest.mark.slow
@pytest.mark.process
@pytest.mark.timeout(1200)
def test_a_killed_worker_is_restarted_and_resumes(nodes: list[str], tmp_path: Path) -> None:
    processes = [torchrun(node, number, tmp_path) for number, node in enumerate(nodes, 1)]
    try:
        wait_for(tmp_path / "runs/digits/version_0/checkpoints/last.ckpt")
        (worker,) = workers(nodes[1])
        os.kill(worker, signal.SIGKILL)
        codes = [process.wait(900) for process in processes]
    finally:
        for process in processes:
            process.kill()
    output = (tmp_path / "1.log").read_text() + (tmp_path / "2.log").read_text()
    assert codes == [0, 0], output
    assert [path.name for path in (tmp_path / "runs/digits").iterdir()] == ["version_0"]
    run = tmp_path / "runs/digits/version_0"
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert len(json.loads((run / "sessions.json").read_text())) >= 2 and "from step" in output
    with (run / "metrics.csv").open(newline="") as file:
        epochs = [row["epoch"] for row in csv.DictReader(file) if row["val/top1"]]
    assert epochs == [str(epoch) for epoch in range(8)]


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.timeout(1200)
def test_a_lost_connection_ends_in_an_error(nodes: list[str], tmp_path: Path) -> None:
    timeout = [
        "--trainer.strategy",
        "DDPStrategy",
        "--trainer.strategy.timeout",
        "0:00:20",
        "--trainer.max_epochs",
        "999",
    ]
    processes = [torchrun(node, number, tmp_path, *timeout) for number, node in enumerate(nodes, 1)]
    try:
        wait_for(tmp_path / "runs/digits/version_0/checkpoints/last.ckpt")
        ip("-n", nodes[1], "link", "set", "eth7", "down")
        # The training processes end; torchrun itself tries to reconnect for some minutes.
        end = time.monotonic() + 600
        while any(workers(node) for node in nodes):
            assert time.monotonic() < end, "a process is still waiting for the other one"
            time.sleep(0.5)
    finally:
        for process in processes:
            process.kill()
    for number in (1, 2):
        assert "error: " in (tmp_path / f"{number}.log").read_text()
