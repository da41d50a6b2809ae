"""`sweep --grid`: which runs are started, skipped, resumed and tested; failures, interruptions, several processes."""

from __future__ import annotations

import csv
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from resnet_pl._renamed import upgrade_arguments
from resnet_pl.analysis import jobs
from resnet_pl.analysis.grid import SweepRun, make_run, record
from resnet_pl.analysis.jobs import environment
from resnet_pl.cli.main import main
from resnet_pl.command_line import CommandLine
from resnet_pl.run_dir import write_session
from tests.analysis.processes import Processes, processes, write_started
from tests.reports.made import write_run

__all__ = ["processes"]  # a fixture

PROJECT = Path(__file__).parent.parent.parent
GRID = ["--grid", "seed_everything=0,1", "--grid", "model.backbone.depth=20,32", "--grid", "model.backbone=cifar_plain"]
NAMES = [f"seed{seed}-depth{depth}-cifar_plain" for seed in (0, 1) for depth in (20, 32)]


def commands(name: str) -> list[list[str]]:
    """The arguments of `fit` and `test` of a run of GRID."""
    seed, depth = name[4], name.split("-")[1].removeprefix("depth")
    # A class precedes its arguments, regardless of the order of --grid.
    values = ["--seed_everything", seed, "--model.backbone", "cifar_plain", "--model.backbone.depth", depth]
    fit = ["fit", *values, "--name", name, "--trainer.default_root_dir", "runs/s"]
    return [fit, ["test", "--ckpt_path", f"runs/s/{name}/version_0"]]


def fit(name: str) -> list[str]:
    """The arguments of `fit` of a run of GRID."""
    return commands(name)[0]


def comparison(folder: str = "runs/s") -> list[dict[str, str]]:
    """The rows of the table."""
    with Path(folder, "comparison.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def depth_decides(options: dict[str, str]) -> list[float]:
    """The validation top-1 of each epoch: depth 32 is better than depth 20, and seed 1 than seed 0."""
    best = int(options["--model.backbone.depth"]) / 40 + int(options["--seed_everything"]) / 100
    return [best - 0.3, best, best - 0.1]


def test_all_runs_are_trained_and_the_best_setting_is_tested(
    processes: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    processes.val_top1 = depth_decides
    assert main(["sweep", *GRID, "--name", "s"]) == 0
    tests = [commands(name)[1] for name in NAMES if "depth32" in name]
    assert processes.started == [*map(fit, NAMES), *tests]
    assert processes.max_parallel == 1
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "4 runs, 0 already completed, 1 in parallel"
    assert out[1] == f"{NAMES[0]} started" and out[2].startswith(f"{NAMES[0]} finished in ") and "3 left" in out[2]
    assert out[8].endswith("; 0 left")
    assert sum("cifar_plain 20" in line for line in out) == 1
    rows = comparison()
    assert [(row["model"], row["n"], row["chosen"]) for row in rows] == [
        ("cifar_plain 32", "2", "yes"),
        ("cifar_plain 20", "2", "no"),
    ]
    assert [float(rows[0][key]) for key in ("val_top1", "test_top1")] == pytest.approx([0.805, 0.9])
    assert rows[1]["test_top1"] == ""
    log = Path("runs/s/logs/sweep.log").read_text(encoding="utf-8").splitlines()
    assert log[0] == f"$ {shlex.join(['python', 'cli.py', 'sweep', *GRID, '--name', 's'])}"
    assert log[1:13] == out[:12]


def test_validation_ranks_also_if_the_test_would_choose_another_setting(
    processes: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    processes.val_top1, processes.top1 = depth_decides, lambda folder: 0.9 if "depth20" in str(folder) else 0.3
    assert main(["sweep", *GRID, "--name", "s"]) == 0
    assert "Only the chosen runs are tested" in capsys.readouterr().out
    assert not list(Path("runs/s").glob("*depth20*/version_0/results.json"))
    # --test tests the others too. The order does not change.
    assert main(["sweep", *GRID, "--name", "s", "--test"]) == 0
    assert processes.started[6:] == [commands(name)[1] for name in NAMES if "depth20" in name]
    assert [(row["chosen"], float(row["test_top1"])) for row in comparison()] == [("yes", 0.3), ("no", 0.9)]
    capsys.readouterr()
    assert main(["compare", "runs/s", "--output", "other"]) == 0
    assert [row["model"] for row in comparison("other")] == ["cifar_plain 32", "cifar_plain 20"]


def test_a_tie_in_the_validation_is_named(processes: Processes, capsys: pytest.CaptureFixture[str]) -> None:
    processes.val_top1 = lambda options: [0.5, 0.75]
    assert main(["sweep", *GRID, "--name", "s"]) == 0
    said = "Tie in the validation: seed*-depth20-cifar_plain, seed*-depth32-cifar_plain. The first one is chosen"
    assert said in capsys.readouterr().out
    assert [row["chosen"] for row in comparison()] == ["yes", "no"]


def test_without_validation_no_setting_is_chosen_from_the_test(
    processes: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    processes.val_top1 = lambda options: []
    grid = ["sweep", "--grid", "model.backbone.depth=20,32", "--name", "s"]
    line = ["--", "--model.backbone", "cifar_plain", "--seed_everything", "0"]
    assert main([*grid, *line]) == 0
    assert "The runs have no validation, and none is tested without --test." in capsys.readouterr().out
    assert [row["chosen"] for row in comparison()] == ["no", "no"] and len(processes.started) == 2
    assert main([*grid, "--test", *line]) == 0
    assert [row["test_top1"] for row in comparison()] == ["0.9", "0.9"]


def test_completed_runs_are_skipped(processes: Processes, capsys: pytest.CaptureFixture[str]) -> None:
    done = [NAMES[0], NAMES[1]]
    for name in done:
        run = write_run(Path("runs/s") / name / "version_0", command=shlex.join(["python", "cli.py", *fit(name)]))
        write_session(run, {"ended": "now"}, new=False)
    assert main(["sweep", *GRID, "--name", "s"]) == 0
    assert [args for args in processes.started if args[0] == "fit"] == [fit(name) for name in NAMES if name not in done]
    assert "4 runs, 2 already completed, 1 in parallel\n" in capsys.readouterr().out
    processes.started.clear()
    assert main(["sweep", *GRID, "--name", "s"]) == 0
    assert processes.started == [] and "4 already completed" in capsys.readouterr().out


def test_a_run_with_the_home_folder_in_a_value_is_recognized() -> None:
    """A run records its command line as `CommandLine` has expanded it."""
    run = make_run({"data.root": "~/a"}, ["folder"], ["--data.cache=~/b"], Path("runs/s"))
    assert CommandLine(run.args).args == run.args
    assert str(Path.home() / "a") in run.args


def test_runs_with_import_paths_of_this_package_and_negative_numbers_are_recognized() -> None:
    values = {"data": "resnet_pl.data.folder.ImageFolder", "model.optimizer.lr": "-1e-3"}
    run = make_run(values, ["folder"], [], Path("runs/s"))
    assert upgrade_arguments(run.args) == run.args and "--model.optimizer.lr=-1e-3" in run.args


def test_a_setting_that_was_corrected_after_it_diverged_counts(processes: Processes) -> None:
    assert main(["sweep", *GRID, "--name", "s"]) == 0
    run = SweepRun(NAMES[0], fit(NAMES[0]), Path("runs/s"))
    (first,) = run.started()
    record(first, "diverged")
    assert run.pruned()
    shutil.copytree(first, first.with_name("version_1"))
    write_session(first.with_name("version_1"), {"command": f"python cli.py {shlex.join(run.args)}", "ended": "now"})
    assert not run.pruned() and run.trained() == first.with_name("version_1")


def test_other_options_start_new_runs(processes: Processes) -> None:
    assert main(["sweep", *GRID, "--name", "s"]) == 0
    processes.started.clear()
    assert main(["sweep", *GRID, "--name", "s", "--", "--trainer.max_steps", "1000"]) == 0
    assert processes.started[0][:3] == ["fit", "--trainer.max_steps", "1000"]
    assert len(processes.fits) == 4 and processes.started[4][-1].endswith("/version_1")


def test_keep_best_removes_the_checkpoints_of_other_runs(
    processes: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    processes.val_top1 = depth_decides
    processes.fails = {NAMES[0]}
    # The missing run may change what is the best.
    assert main(["sweep", *GRID, "--name", "s", "--keep", "best"]) == 1
    assert "No checkpoints are removed, because runs are missing." in capsys.readouterr().out
    assert len(list(Path("runs/s").rglob("best.ckpt"))) == 3
    processes.fails = set()
    assert main(["sweep", *GRID, "--name", "s", "--keep", "best"]) == 0
    assert "that are not chosen: 1.0 MB\n" in capsys.readouterr().out
    left = {path.parts[2] for path in Path("runs/s").rglob("*.ckpt")}
    assert left == {name for name in NAMES if "depth32" in name}
    assert all((Path("runs/s") / name / "version_0" / "metrics.csv").is_file() for name in NAMES)
    # What was removed is not trained again.
    processes.started.clear()
    assert main(["sweep", *GRID, "--name", "s"]) == 0
    assert processes.started == [] and len(comparison()) == 2
    assert main(["sweep", *GRID, "--name", "s", "--test"]) == 0
    assert "Not tested, because the checkpoints were removed: 2 runs\n" in capsys.readouterr().out
    assert processes.started == []


@pytest.mark.parametrize("diverges", [False, True])
def test_a_setting_that_lost_a_seed_is_not_chosen(
    diverges: bool, processes: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else the setting whose bad seeds fail would be chosen by its lucky ones."""
    processes.val_top1 = depth_decides
    lost = NAMES[1]
    if diverges:
        processes.diverges = lambda options: options["--name"] == lost
    else:
        processes.fails = {lost}
    assert main(["sweep", *GRID, "--name", "s", "--keep", "best"]) == 1
    assert [(row["model"], row["n"], row["chosen"]) for row in comparison()] == [
        ("cifar_plain 32", "1", "no"),
        ("cifar_plain 20", "2", "yes"),
    ]
    removed = {NAMES[1], NAMES[3]} if diverges else set()
    assert {path.parts[2] for path in Path("runs/s").rglob("*.ckpt")} == {*NAMES} - removed - {lost}


def test_an_interrupted_run_is_resumed(processes: Processes, capsys: pytest.CaptureFixture[str]) -> None:
    _, run = write_started(fit(NAMES[0]))
    # Interrupted before its first checkpoint: it cannot be resumed.
    _, lost = write_started(fit(NAMES[1]))
    (lost / "checkpoints" / "last.ckpt").unlink()
    assert main(["sweep", *GRID, "--name", "s"]) == 0
    assert processes.started[0] == ["fit", "--ckpt_path", str(run / "checkpoints" / "last.ckpt")]
    assert processes.started[1:4] == [fit(name) for name in NAMES[1:]]
    assert (Path("runs/s") / NAMES[1] / "version_1").is_dir()
    assert f"{NAMES[0]} resumed" in capsys.readouterr().out
    assert [row["n"] for row in comparison()] == ["2", "2"]


def test_a_failed_run_does_not_stop_the_others_and_is_retried(
    processes: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    processes.fails = {NAMES[1]}
    assert main(["sweep", *GRID, "--name", "s"]) == 1
    assert processes.started[:4] == [fit(name) for name in NAMES]
    out = capsys.readouterr().out
    assert f"{NAMES[1]} failed: the data is gone; see runs/s/logs/{NAMES[1]}.log; 2 left" in out
    assert f"1 of 4 failed: {NAMES[1]}\n" in out
    log = Path(f"runs/s/logs/{NAMES[1]}.log").read_text()
    assert log.startswith(f"$ python cli.py {shlex.join(fit(NAMES[1]))}\n") and "error: the data is gone" in log
    processes.fails, processes.started = set(), []
    assert main(["sweep", *GRID, "--name", "s"]) == 0
    assert processes.started[0] == fit(NAMES[1]) and len(processes.fits) == 1


def test_runs_that_are_missing_in_the_table_are_named(processes: Processes, capsys: pytest.CaptureFixture[str]) -> None:
    """As with `--trainer.logger false`: the processes succeed, but a file is missing."""
    metrics = Path("runs/s") / NAMES[0] / "version_0/metrics.csv"
    processes.interrupt = lambda: metrics.unlink(missing_ok=True)
    processes.fails = {NAMES[1]}
    assert main(["sweep", *GRID, "--name", "s"]) == 1
    reason = f"Skipped: {metrics} cannot be read: No such file or directory"
    page = Path("runs/s/comparison.md").read_text(encoding="utf-8").splitlines()
    for lines in (capsys.readouterr().out.splitlines(), page):
        assert reason in lines and f"Failed: {NAMES[1]}" in lines


def test_a_failed_test_is_repeated(processes: Processes, capsys: pytest.CaptureFixture[str]) -> None:
    processes.val_top1, processes.fails = depth_decides, {f"{NAMES[1]}/version_0"}
    assert main(["sweep", *GRID, "--name", "s"]) == 1
    assert f"Failed: {NAMES[1]}" in capsys.readouterr().out
    processes.fails, processes.started = set(), []
    assert main(["sweep", *GRID, "--name", "s"]) == 0
    assert processes.started == [commands(NAMES[1])[1]]


def test_parallel_runs_share_the_cores(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(jobs, "available_cores", lambda: 8)
    # Each process waits for another one: with fewer than two in parallel none would end.
    processes.barrier = threading.Barrier(2)
    assert main(["sweep", *GRID, "--name", "s", "--jobs", "2"]) == 0
    assert processes.max_parallel == 2
    assert {env["OMP_NUM_THREADS"] for env in processes.environments} == {"4"}
    assert sorted(args for args in processes.started if args[0] == "fit") == sorted(map(fit, NAMES))


def test_parallel_runs_have_one_gpu_each(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [environment(job, 3, ["0", "1"])["CUDA_VISIBLE_DEVICES"] for job in range(3)] == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-ab,")
    processes.barrier = threading.Barrier(2)
    assert main(["sweep", *GRID, "--name", "s", "--jobs", "2"]) == 0
    assert {env["CUDA_VISIBLE_DEVICES"] for env in processes.environments} == {"5", "GPU-ab"}
    # A single run can use all of them.
    assert environment(0, 1, ["5", "GPU-ab"])["CUDA_VISIBLE_DEVICES"] == "5,GPU-ab,"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert environment(0, 2, [])["CUDA_VISIBLE_DEVICES"] == "-1"


def test_print_shows_the_command_lines_and_starts_nothing(
    processes: Processes, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Path("my config.yaml")
    config.write_text("trainer: {max_steps: 5}\n")
    write_run(Path("runs/s") / NAMES[0] / "version_0")  # of another command
    args = ["sweep", "--config", str(config), *GRID, "--name", "s", "--print"]
    options = ["--", "--trainer.max_epochs", "-1"]
    assert main([*args, *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and processes.started == [] and not Path("runs/s/logs").exists()
    words = ["fit", "--config", str(config), "--trainer.max_epochs", "-1", *fit(NAMES[0])[1:]]
    assert lines[0] == f"python cli.py {shlex.join(words)}"


def test_configuration_files_and_lists_are_part_of_the_run_names(
    processes: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        Path(f"{name}.yaml").touch()
    grid = ["--grid", "config=a.yaml,b.yaml", "--grid", "model.schedule.milestones=[1,2],[3]"]
    assert main(["sweep", *grid, "--name", "s", "--print"]) == 0
    names = [line.split("--name ")[1].split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names == ["a-milestones_1_2", "a-milestones_3", "b-milestones_1_2", "b-milestones_3"]


def test_commas_inside_brackets_belong_to_a_value_and_long_values_are_shortened_in_names(
    processes: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    values = ["[{class_path: A, init_args: {x: [1, 2]}}]", f"[{'b, ' * 100}]", "[]"]
    assert (
        main(
            [
                "sweep",
                "--grid",
                f"data.transforms={','.join(values)}",
                "--name",
                "s",
                "--print",
                "--",
                "--data",
                "Digits",
            ]
        )
        == 0
    )
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert [line[line.index("--data.transforms") + 1] for line in lines] == values
    names = [line[line.index("--name") + 1] for line in lines]
    assert names[0] == "transforms_class_path_A_init_args_x_1_2" and len(names[1]) < 80 and names[2] == "transforms"


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
        (["--grid", "config=a/x.yaml,b/x.yaml"], "name x\nremove or rename"),
        (["--grid", "lr=log:0.001:0.3"], "--grid lr=log:0.001:0.3 has a range"),
        (["--grid", "depth=20", "--grid", "depth=32"], "duplicate key"),
        (["--grid", "depth=20", "--", "--name", "x"], "--name is not allowed after --"),
        (["--grid", "depth=20", "--", "--ckpt_path=x"], "--ckpt_path=x is not allowed after --"),
        (["--grid", "depth=20", "--config", "no.yaml"], "no.yaml"),
        (["--grid", "depth=20", "--jobs", "0"], "sweep: "),
        (["--grid", "depth=20", "--pruner", "median"], "--pruner is for a --search"),
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


# `fit` in place of the interpreter: the first process that finds the file `hang` does not end.
CHILD = """#!{python}
import os, sys, time
from pathlib import Path
sys.path.insert(0, {project!r})
from tests.analysis.processes import write_started
args = sys.argv[3:]
with open("started", "a") as file:
    file.write(args[args.index("--name") + 1] + "\\n" if args[0] == "fit" else "")
try:
    os.unlink("hang")
except FileNotFoundError:
    time.sleep(0.1)
else:
    time.sleep(200)
if args[0] == "fit":
    write_started(args)
"""


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="uses PR_SET_PDEATHSIG")
@pytest.mark.parametrize("kind", ["grid", "search"])
def test_two_processes_share_a_sweep_and_a_killed_one_is_replaced(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    values = ["--grid", "model.optimizer.lr=0.1,0.2,0.3"]
    if kind == "search":
        pytest.importorskip("optuna")
        values = ["--search", "model.optimizer.lr=0.0:1.0", "--trials", "3"]
    monkeypatch.chdir(tmp_path)
    child = tmp_path / "child"
    child.write_text(CHILD.format(python=sys.executable, project=str(PROJECT)))
    child.chmod(0o755)
    Path("hang").touch()
    line = ["sweep", *values, "--", "--data", "Digits"]
    start = f"import sys; sys.executable = 'child'; from resnet_pl.cli.main import main; main({line!r})"
    env = {**os.environ, "PYTHONPATH": str(PROJECT), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    with subprocess.Popen([sys.executable, "-c", start], env=env, stdout=subprocess.DEVNULL) as killed:
        deadline = time.monotonic() + 120
        while Path("hang").exists():
            assert killed.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        monkeypatch.setattr(sys, "executable", str(child))
        assert main(line) == 0
        out = capsys.readouterr().out
        names = Path("started").read_text().split()
        assert len(names) == len({*names}) == 3 and f"Other processes still train {names[0]}." in out
        killed.kill()
    # The other process takes the run of the killed one as soon as that has ended.
    while "best val" not in out:
        assert main(line) == 0 and time.monotonic() < deadline
        out = capsys.readouterr().out
    assert Path("started").read_text().split() == [*names, names[0]]
    assert len(comparison("runs/sweep")) == 3


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
    (row,) = comparison("runs/sweep")
    assert (row["model"], row["data"], row["n"]) == ("cifar_plain 8", "Digits", "1")
    assert (row["iterations"], row["parameters"]) == ("2", "75290") and row["test_top1"]
