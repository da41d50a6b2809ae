"""`sweep`: the grid; which runs are started, skipped and resumed; failures and interruptions."""

from __future__ import annotations

import csv
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from resnet_pl.analysis import sweep
from resnet_pl.cli.main import main
from tests.reports.made import write_run, write_test

PROJECT = Path(__file__).parent.parent.parent
GRID = ["--grid", "seed_everything=0,1", "--grid", "model.backbone.depth=20,32", "--grid", "model.backbone=cifar_plain"]
NAMES = [f"seed{seed}-depth{depth}-cifar_plain" for seed in (0, 1) for depth in (20, 32)]


class Processes:
    """Replaces subprocess.Popen: writes the files of `fit` and `test` without running them.

    Attributes:
        started: arguments of each process, in order.
        fails: names of runs whose commands fail.
        environments: environment of each process.
        max_parallel: maximum number of processes at the same time.
        barrier: if set, each process waits here for others.
    """

    def __init__(self) -> None:
        self.started: list[list[str]] = []
        self.fails: set[str] = set()
        self.environments: list[dict[str, str]] = []
        self.max_parallel = self.running = 0
        self.barrier: threading.Barrier | None = None

    def __call__(self, command: list[str], stdout: Any, env: dict[str, str], **_: Any) -> Processes:
        assert command[:3] == [sys.executable, "-m", "resnet_pl"]
        self.started.append(command[3:])
        self.environments.append(env)
        made = type("Process", (), {"wait": lambda _: self.work(command[3:], stdout)})
        return made()

    def work(self, args: list[str], log: Any) -> int:
        self.running += 1
        self.max_parallel = max(self.max_parallel, self.running)
        if self.barrier:
            self.barrier.wait(timeout=30)
        self.running -= 1
        name = next((name for name in [*self.fails] if any(name in arg for arg in args)), None)
        if name:
            log.write(b"warning: nothing\nerror: the data is gone\ntry again\n")
            return 2
        if args[0] == "test":
            write_test(Path(args[2]), 0.9)
        elif "--ckpt_path" not in args:
            options = dict(zip(args[1::2], args[2::2], strict=True))
            folder = Path(options["--trainer.default_root_dir"]) / options["--name"]
            write_run(
                folder / f"version_{len(list(folder.glob('version_*')))}",
                "cifar_plain",
                int(options["--model.backbone.depth"]),
                int(options["--seed_everything"]),
                tested=False,
                command=shlex.join(["python", "cli.py", *args]),
            )
        return 0


@pytest.fixture
def processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Processes:
    """Replaces real processes; the test runs in an empty folder."""
    monkeypatch.chdir(tmp_path)
    made = Processes()
    monkeypatch.setattr(sweep.subprocess, "Popen", made)
    return made


def commands(name: str, version: int = 0) -> list[list[str]]:
    """The arguments of `fit` and `test` of a run of GRID."""
    seed, depth = name[4], name.split("-")[1].removeprefix("depth")
    # A class precedes its arguments, regardless of the order of --grid.
    values = ["--seed_everything", seed, "--model.backbone", "cifar_plain", "--model.backbone.depth", depth]
    fit = ["fit", *values, "--name", name, "--trainer.default_root_dir", "runs/s"]
    return [fit, ["test", "--ckpt_path", f"runs/s/{name}/version_{version}"]]


def test_every_run_is_trained_and_tested_in_order(processes: Processes, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", *GRID, "--name", "s"]) == 0
    assert processes.started == [args for name in NAMES for args in commands(name)]
    assert processes.max_parallel == 1
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("4 runs, 1 in parallel; 4 left")
    assert out[1] == f"{NAMES[0]} started" and out[2].startswith(f"{NAMES[0]} finished in ") and "3 left" in out[2]
    assert out[8].endswith("; 0 left")
    assert sum("cifar_plain 20" in line for line in out) == 1
    with Path("runs/s/comparison.csv").open(newline="", encoding="utf-8") as file:
        assert [(row["model"], row["n"]) for row in csv.DictReader(file)] == [
            ("cifar_plain 20", "2"),
            ("cifar_plain 32", "2"),
        ]
    log = Path("runs/s/logs/sweep.log").read_text(encoding="utf-8").splitlines()
    assert log[0] == f"$ {shlex.join(['python', 'cli.py', 'sweep', *GRID, '--name', 's'])}"
    assert log[1:9] == out[:8]


def test_completed_runs_are_skipped_and_their_time_is_used_for_the_estimate(
    processes: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    done = [NAMES[0], NAMES[1]]
    for name in done:
        fit = commands(name)[0]
        write_run(Path("runs/s") / name / "version_0", command=shlex.join(["python", "cli.py", *fit]))
    assert main(["sweep", *GRID, "--name", "s"]) == 0
    assert processes.started == [args for name in NAMES if name not in done for args in commands(name)]
    # The completed runs took three minutes each.
    assert "4 runs, 2 already completed, 1 in parallel; 2 left, about 6 minutes remaining" in capsys.readouterr().out
    processes.started.clear()
    assert main(["sweep", *GRID, "--name", "s"]) == 0
    assert processes.started == [] and "4 already completed" in capsys.readouterr().out


def test_other_options_start_new_runs(processes: Processes) -> None:
    assert main(["sweep", *GRID, "--name", "s"]) == 0
    processes.started.clear()
    assert main(["sweep", *GRID, "--name", "s", "--", "--trainer.max_steps", "1000"]) == 0
    first = processes.started[:2]
    assert first[0][:3] == ["fit", "--trainer.max_steps", "1000"] and first[1][-1].endswith("/version_1")
    assert len(processes.started) == 8


def test_an_interrupted_run_is_resumed(processes: Processes, capsys: pytest.CaptureFixture[str]) -> None:
    fit, test = commands(NAMES[0])
    run = write_run(
        Path("runs/s") / NAMES[0] / "version_0", tested=False, command=shlex.join(["python", "cli.py", *fit])
    )
    # Interrupted before its first checkpoint: it cannot be resumed.
    lost = Path("runs/s") / NAMES[1] / "version_0"
    write_run(lost, tested=False, command=shlex.join(["python", "cli.py", *commands(NAMES[1])[0]]))
    (lost / "checkpoints" / "last.ckpt").unlink()
    assert main(["sweep", *GRID, "--name", "s"]) == 0
    assert processes.started[:2] == [["fit", "--ckpt_path", str(run / "checkpoints" / "last.ckpt")], test]
    assert processes.started[2:4] == commands(NAMES[1], version=1)
    assert f"{NAMES[0]} resumed" in capsys.readouterr().out


def test_a_failed_run_does_not_stop_the_others_and_is_retried(
    processes: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    processes.fails = {NAMES[1]}
    assert main(["sweep", *GRID, "--name", "s"]) == 1
    fit = commands(NAMES[1])[0]
    assert processes.started == [args for name in NAMES for args in (commands(name) if name != NAMES[1] else [fit])]
    out = capsys.readouterr().out
    assert f"{NAMES[1]} failed: the data is gone; see runs/s/logs/{NAMES[1]}.log; 2 left" in out
    assert f"1 of 4 runs failed: {NAMES[1]}\n" in out
    log = Path(f"runs/s/logs/{NAMES[1]}.log").read_text()
    assert log.startswith(f"$ python cli.py {shlex.join(fit)}\n") and "error: the data is gone" in log
    processes.fails, processes.started = set(), []
    assert main(["sweep", *GRID, "--name", "s"]) == 0
    assert processes.started == commands(NAMES[1])


def test_runs_that_are_missing_in_the_table_are_named(
    processes: Processes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As with `--trainer.logger false`: the processes succeed, but a file is missing."""
    work = processes.work

    def without_metrics(args: list[str], log: Any) -> int:
        code, folder = work(args, log), Path("runs/s") / NAMES[0] / "version_0/metrics.csv"
        folder.unlink(missing_ok=True)
        return code

    monkeypatch.setattr(processes, "work", without_metrics)
    processes.fails = {NAMES[1]}
    assert main(["sweep", *GRID, "--name", "s"]) == 1
    reason = f"Skipped: runs/s/{NAMES[0]}/version_0/metrics.csv cannot be read: No such file or directory"
    page = Path("runs/s/comparison.md").read_text(encoding="utf-8").splitlines()
    for lines in (capsys.readouterr().out.splitlines(), page):
        assert reason in lines and f"Failed: {NAMES[1]}" in lines


def test_after_a_failed_test_the_run_is_resumed_and_tested(processes: Processes) -> None:
    processes.fails = {f"{NAMES[0]}/version_0"}
    assert main(["sweep", *GRID, "--name", "s"]) == 1
    processes.fails, processes.started = set(), []
    assert main(["sweep", *GRID, "--name", "s"]) == 0
    last = f"runs/s/{NAMES[0]}/version_0/checkpoints/last.ckpt"
    assert processes.started == [["fit", "--ckpt_path", last], commands(NAMES[0])[1]]


def test_parallel_runs_share_the_cores(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    # Each process waits for another one: with fewer than two in parallel none would end.
    processes.barrier = threading.Barrier(2)
    assert main(["sweep", *GRID, "--name", "s", "--jobs", "2"]) == 0
    assert processes.max_parallel == 2
    assert {env["OMP_NUM_THREADS"] for env in processes.environments} == {"4"}
    assert sorted(args for args in processes.started) == sorted(args for name in NAMES for args in commands(name))


def test_print_shows_the_command_lines_and_starts_nothing(
    processes: Processes, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Path("my config.yaml")
    config.write_text("trainer: {max_steps: 5}\n")
    write_run(Path("runs/s") / NAMES[0] / "version_0")  # of another command: the next version is 1
    args = ["sweep", "--config", str(config), *GRID, "--name", "s", "--print", "--", "--trainer.max_epochs", "-1"]
    assert main(args) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and processes.started == [] and not Path("runs/s/logs").exists()
    fit, test = commands(NAMES[0], version=1)
    words = ["fit", "--config", str(config), "--trainer.max_epochs", "-1", *fit[1:]]
    assert lines[0] == f"python cli.py {shlex.join(words)} && python cli.py {shlex.join(test)}"


def test_configuration_files_and_lists_are_part_of_the_run_names(
    processes: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        Path(f"{name}.yaml").touch()
    grid = ["--grid", "config=a.yaml,b.yaml", "--grid", "model.schedule.milestones=[1,2],[3]"]
    assert main(["sweep", *grid, "--name", "s", "--print"]) == 0
    names = [line.split("--name ")[1].split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names == ["a-milestones_1_2", "a-milestones_3", "b-milestones_1_2", "b-milestones_3"]


def test_of_a_class_path_the_class_name_is_part_of_the_run_name(
    processes: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", "--grid", "model=mine.A,mine.B", "--name", "s", "--print"]) == 0
    assert [line.split("--name ")[1].split()[0] for line in capsys.readouterr().out.splitlines()] == ["A", "B"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "--grid"),
        (["--grid", "depth"], "--grid depth is not"),
        (["--grid", "depth="], "--grid depth= is not"),
        (["--grid", "depth=20,"], "--grid depth=20, is not"),
        (["--grid", "=20"], "--grid =20 is not"),
        (["--grid", "depth=20,20"], "name depth20"),
        (["--grid", "depth=20", "--grid", "depth=32"], "duplicate key"),
        (["--grid", "depth=20", "--", "--name", "x"], "--name is not allowed after --"),
        (["--grid", "depth=20", "--", "--ckpt_path=x"], "--ckpt_path=x is not allowed after --"),
        (["--grid", "depth=20", "--config", "no.yaml"], "no.yaml"),
        (["--grid", "depth=20", "--jobs", "0"], "sweep: "),
    ],
)
def test_a_wrong_grid_is_an_error_before_anything_starts(
    args: list[str], message: str, processes: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", *args]) == 2
    out, err = capsys.readouterr()
    assert message in err and len(err.strip().splitlines()) <= 2 and out == ""
    assert processes.started == [] and not Path("runs").exists()


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="uses /proc and PR_SET_PDEATHSIG")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_no_process_outlives_the_sweep(number: signal.Signals, code: int, tmp_path: Path) -> None:
    sleeper = tmp_path / "sleeper"
    sleeper.write_text("#!/bin/sh\necho $$ > pid.part\nmv pid.part pid\nexec sleep 200\n")
    sleeper.chmod(0o755)
    start = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        f"sys.executable = {str(sleeper)!r}; from resnet_pl.cli.main import main;"
        "sys.exit(main(['sweep', '--grid', 'seed_everything=0,1', '--', '--data', 'Digits']))"
    )
    env = {**os.environ, "PYTHONPATH": str(PROJECT)}
    with subprocess.Popen(
        [sys.executable, "-c", start], cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True
    ) as run:
        deadline = time.monotonic() + 120
        while not (tmp_path / "pid").exists():
            assert run.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        run.send_signal(number)
        out = run.communicate(timeout=120)[0]
    assert run.returncode == code
    assert ("Interrupted." in out) == (number != signal.SIGKILL)
    assert "seed1" not in out
    stat = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/stat")
    while stat.exists() and stat.read_text().split()[2] != "Z":
        assert time.monotonic() < deadline, "the process still runs"
        time.sleep(0.02)


@pytest.mark.process
@pytest.mark.slow
def test_real_runs_are_trained_tested_compared_and_then_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    args = ["sweep", "--config", str(PROJECT / "configs/digits.yaml"), "--grid", "model.backbone=cifar_plain,nosuch"]
    args += ["--jobs", "2", "--", "--trainer.max_steps", "2", "--model.backbone.depth", "8"]
    assert main(args) == 1
    out = capsys.readouterr().out
    assert "cifar_plain 8 " in out
    assert "nosuch failed: " in out
    # The completed run is recognized.
    assert main([*args[:7], "--print", *args[7:]]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert " --name nosuch " in line
    with Path("runs/sweep/comparison.csv").open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert (row["model"], row["data"], row["n"]) == ("cifar_plain 8", "Digits", "1")
    assert (row["iterations"], row["parameters"]) == ("2", "75290")
