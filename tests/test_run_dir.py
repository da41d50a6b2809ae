"""The run folder: versions, best and last checkpoint, sessions, and rows of metrics.csv before a resume."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from resnet_pl import run_dir as runs
from resnet_pl.utils import UserError


def checkpoint(run: Path, which: str, mtime: float = 0) -> Path:
    path = run / "checkpoints" / f"{which}.ckpt"
    path.parent.mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").touch()
    path.touch()
    os.utime(path, (mtime, mtime))
    return path


# ------------------------------------------------------------------------------------ versions


def test_each_run_is_the_next_version(tmp_path):
    created = [runs.create_run_dir(tmp_path, "a") for _ in range(11)]
    assert created == [tmp_path / "a" / f"version_{i}" for i in range(11)]
    assert runs.versions(tmp_path, "a") == list(enumerate(created))
    assert runs.create_run_dir(tmp_path, "b").name == "version_0"


def test_gaps_are_not_filled_and_other_names_are_ignored(tmp_path):
    for name in ("version_3", "version_x", "version_", "version_²", "notes"):
        (tmp_path / "a" / name).mkdir(parents=True)
    assert runs.versions(tmp_path, "a") == [(3, tmp_path / "a" / "version_3")]
    assert runs.create_run_dir(tmp_path, "a").name == "version_4"


def test_concurrent_runs_get_different_versions(tmp_path):
    with ThreadPoolExecutor(16) as pool:
        created = list(pool.map(lambda _: runs.create_run_dir(tmp_path, "a"), range(64)))
    assert len(set(created)) == 64
    assert [number for number, _ in runs.versions(tmp_path, "a")] == list(range(64))


@pytest.mark.parametrize("obstacle", ["file", "link"])
@pytest.mark.parametrize("place", ["runs", "runs/a"])
def test_a_folder_that_cannot_be_created(tmp_path, obstacle, place):
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    if obstacle == "file":
        path.touch()
    else:
        path.symlink_to(tmp_path / "a missing disk")
    with pytest.raises(UserError, match=r"trainer\.default_root_dir") as error:
        runs.create_run_dir(tmp_path / "runs", "a")
    assert str(tmp_path / "runs" / "a" / "version_0") in str(error.value)


# ------------------------------------------------------------------------------------ checkpoints


def test_the_newest_checkpoint_is_that_of_the_last_version_with_one(tmp_path):
    old = checkpoint(tmp_path / "a" / "version_2", "best", mtime=200)
    new = checkpoint(tmp_path / "a" / "version_10", "best", mtime=100)
    checkpoint(tmp_path / "b" / "version_99", "best", mtime=300)
    (tmp_path / "a" / "version_11").mkdir()
    assert runs.newest_checkpoint(tmp_path, "a", "best") == new
    assert runs.newest_checkpoint(tmp_path, None, "best") == tmp_path / "b/version_99/checkpoints/best.ckpt"
    old.with_name("last.ckpt").touch()
    assert runs.newest_checkpoint(tmp_path, "a", "last") == old.with_name("last.ckpt")


def test_best_is_not_taken_from_an_older_run(tmp_path):
    for which in ("best", "last"):
        checkpoint(tmp_path / "a" / "version_0", which, mtime=100)
    new = checkpoint(tmp_path / "a" / "version_1", "last", mtime=200)
    for name in ("a", None):
        with pytest.raises(UserError, match=r"version_1/checkpoints/best\.ckpt.*\n.*--ckpt_path last$"):
            runs.newest_checkpoint(tmp_path, name, "best")
        assert runs.newest_checkpoint(tmp_path, name, "last") == new


@pytest.mark.parametrize(("name", "folder_name"), [("a", "a"), (None, "NAME")])
def test_the_message_names_the_missing_checkpoint(tmp_path, name, folder_name):
    checkpoint(tmp_path / "a" / "version_0", "best")
    with pytest.raises(UserError) as error:
        runs.newest_checkpoint(tmp_path, name, "last")
    assert f"{tmp_path}/{folder_name}/version_N/checkpoints/last.ckpt" in str(error.value)
    assert len(str(error.value).splitlines()) == 2


def test_no_runs(tmp_path):
    with pytest.raises(UserError, match="train first"):
        runs.newest_checkpoint(tmp_path / "runs", None, "last")


def test_the_message_names_a_run_of_a_sweep(tmp_path):
    path = checkpoint(tmp_path / "lr" / "lr0.1-seed0" / "version_0", "best")
    with pytest.raises(UserError, match=f"--ckpt_path {path}$"):
        runs.newest_checkpoint(tmp_path, "lr", "best")


def test_the_run_folder_of_a_checkpoint(tmp_path, monkeypatch):
    path = checkpoint(tmp_path / "a" / "version_0", "best")
    assert runs.run_dir_of(path) == tmp_path / "a" / "version_0"
    monkeypatch.chdir(path.parent)
    assert runs.run_dir_of(Path("best.ckpt")) == tmp_path / "a" / "version_0"
    monkeypatch.chdir(tmp_path)
    assert runs.run_dir_of(Path("a/version_0/checkpoints/best.ckpt")) == Path("a/version_0")


def test_a_checkpoint_outside_a_run(tmp_path):
    path = checkpoint(tmp_path / "a", "best")
    (tmp_path / "a" / "config.yaml").unlink()
    assert runs.run_dir_of(path) is None
    assert runs.run_dir_of(tmp_path / "elsewhere" / "best.ckpt") is None


def test_the_configuration_is_read_back_unchanged(tmp_path):
    config = {"name": "Blümchen", "model": {"lr": 1e-4, "none": None, "list": [1, "a"]}, "data": {"std": [0.5]}}
    runs.write_config(tmp_path, config)
    text = (tmp_path / "config.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(text) == config
    assert "Blümchen" in text
    assert list(yaml.safe_load(text)) == ["name", "model", "data"]


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"class_path": "a.B", "init_args": {"x": 1}}, {"x": 1}),
        ({"init_args": {"x": 1}}, {"x": 1}),
        ({"class_path": "a.B"}, {}),
        ({"class_path": "a.B", "init_args": None}, {}),
        ({"backbone": {"class_path": "a.B"}, "x": 1}, {"backbone": {"class_path": "a.B"}, "x": 1}),
        ({}, {}),
        (None, {}),
        ("a.B", {}),
    ],
)
def test_the_arguments_of_a_section(section, expected):
    assert runs.get_init_args(section) == expected


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"class_path": "a.b.C", "init_args": {}}, "C"),
        ("a.b.C", "C"),
        ("C", "C"),
        ({"class_path": None}, ""),
        ({"x": 1}, ""),
        (None, ""),
    ],
)
def test_the_class_of_a_section(section, expected):
    assert runs.class_name(section) == expected


# ------------------------------------------------------------------------------------ metrics.csv


def rows_before(tmp_path: Path, text: str, step: float) -> list[dict[str, str]]:
    (tmp_path / "metrics.csv").write_bytes(text.encode())
    return runs.read_metrics_before(tmp_path / "metrics.csv", step)


def test_rows_from_the_step_on_are_dropped(tmp_path):
    text = "epoch,step,loss\r\n0,9,0.5\r\n0,10,\r\n1,11,0.25\r\n"
    assert rows_before(tmp_path, text, 10) == [{"epoch": "0", "step": "9", "loss": "0.5"}]
    assert len(rows_before(tmp_path, text, 11)) == 2
    assert len(rows_before(tmp_path, text, float("inf"))) == 3


@pytest.mark.parametrize(
    "incomplete", ["0", "0,10", "0,10,0.", "0,10,0.25", "0,1\x00,\xff", "0,10,0.25,7,8\r\n", "0\r\n"]
)
def test_an_incomplete_line_is_dropped(tmp_path, incomplete):
    assert [row["step"] for row in rows_before(tmp_path, f"epoch,step,loss\r\n0,9,0.5\r\n{incomplete}", 99)] == ["9"]


@pytest.mark.parametrize("text", ["", "\r\n", "epo", "epoch,step", "time,loss\r\n1,2\r\n"])
def test_a_file_without_rows(tmp_path, text):
    assert rows_before(tmp_path, text, 99) == []


def test_the_reader_drops_only_an_incomplete_last_line(tmp_path):
    (tmp_path / "metrics.csv").write_bytes(b"step,loss\r\n1,0.5\r\n2\r\n3,1,2\r\n4,0.")
    rows = list(runs.metrics_reader(tmp_path / "metrics.csv"))
    assert [row["step"] for row in rows] == ["1", "2", "3"]
    assert [runs.is_complete_row(row) for row in rows] == [True, False, False]


def test_no_file(tmp_path):
    assert runs.read_metrics_before(tmp_path / "metrics.csv", 5) == []


def test_a_restarted_torchrun_job_finds_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-7")
    run = runs.create_run_dir(tmp_path, "digits")
    (run / "checkpoints").mkdir()
    (run / "checkpoints/last.ckpt").touch()
    runs.write_session(run, {"launch": runs.job_id(), "command": "fit x"})
    assert runs.find_interrupted_run(tmp_path, "digits", "fit x") == run / "checkpoints/last.ckpt"
    assert (
        runs.find_interrupted_run(tmp_path, "digits", "fit y") is None
        and runs.find_interrupted_run(tmp_path, "other", "fit x") is None
    )
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-8")
    assert runs.find_interrupted_run(tmp_path, "digits", "fit x") is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert runs.job_id() is None and runs.find_interrupted_run(tmp_path, "digits", "fit x") is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-7")
    runs.write_session(run, {"ended": "now"}, new=False)
    assert runs.find_interrupted_run(tmp_path, "digits", "fit x") is None
    assert len(runs.read_sessions(run)) == 1


def test_a_requeued_slurm_job_finds_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    last = checkpoint(tmp_path / "a/version_0", "last")
    runs.write_session(tmp_path / "a/version_0", {"launch": runs.job_id(), "command": "fit x"})
    assert runs.find_interrupted_run(tmp_path, "a", "fit x") is None, "the same command twice in one job"
    for restart_count in ("1", "2"):
        monkeypatch.setenv("SLURM_RESTART_COUNT", restart_count)
        assert runs.find_interrupted_run(tmp_path, "a", "fit x") == last
        runs.write_session(tmp_path / "a/version_0", {"launch": runs.job_id(), "command": "fit x"})
    monkeypatch.setenv("SLURM_JOB_ID", "78")
    assert runs.find_interrupted_run(tmp_path, "a", "fit x") is None
