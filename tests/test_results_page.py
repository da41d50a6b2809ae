"""The page of results is what its script makes of the records, and a study becomes a record."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest

from resnet_pl.reports.results import read_results, write_results
from tests.reports.made import write_run

PROJECT = Path(__file__).parent.parent


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """docs/make_results.py, working on a copy."""
    spec = importlib.util.spec_from_file_location("make_results", PROJECT / "docs" / "make_results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    shutil.copytree(PROJECT / "docs" / "results", tmp_path / "docs" / "results")
    (tmp_path / "docs" / "images").mkdir()
    shutil.copy(PROJECT / "README.md", tmp_path)
    monkeypatch.setattr(module, "DOCS", tmp_path / "docs")
    return module


def test_the_pages_are_made_of_the_records(script: ModuleType, tmp_path: Path) -> None:
    script.main([])
    for page in ("docs/results.md", "README.md"):
        assert (tmp_path / page).read_text(encoding="utf-8") == (PROJECT / page).read_text(encoding="utf-8"), page


def test_a_run_becomes_a_record(script: ModuleType, tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs" / "mine" / "version_0", top1=0.9)
    first = read_results(run / "results.json")
    for other in ({"protocol": "10-crop", "top1": 0.92}, {"checkpoint": "another.ckpt", "top1": 0.5}):
        write_results(first | other, run / "results.json")
    script.main([str(run)])
    page = (tmp_path / "docs" / "results.md").read_text(encoding="utf-8")
    assert "## mine: cifar_resnet 20 on CIFAR10" in page
    assert "The paper reports 91.25% after 64,000 iterations; this run made 20." in page
    assert "looked at otherwise (`test --tta`): 10-crop 92.00%.\n" in page
    assert (tmp_path / "docs" / "images" / "mine_curves.png").exists()
    assert (
        "| cifar_resnet 20 on CIFAR10 | 2 epochs, 3 minutes, 1 × cpu | 90.00% |" in (tmp_path / "README.md").read_text()
    )


def test_a_study_becomes_a_record(script: ModuleType, tmp_path: Path) -> None:
    for seed, top1 in enumerate((0.9, 0.94)):
        write_run(tmp_path / "runs" / "a" / f"version_{seed}", seed=seed, top1=top1)
    write_run(tmp_path / "runs" / "b" / "version_0", "cifar_plain")
    (tmp_path / "runs" / "logs").mkdir()
    (tmp_path / "runs" / "logs" / "sweep.log").write_text("$ python cli.py sweep --grid x=1\n3 runs\n")
    readme = (tmp_path / "README.md").read_text(encoding="utf-8")
    script.main(["--study", "depth", str(tmp_path / "runs")])
    page = (tmp_path / "docs" / "results.md").read_text(encoding="utf-8")
    section = page[page.index("## depth: 3 runs on CIFAR10") :]
    assert "python cli.py sweep --grid x=1\n" in section
    assert "| cifar_resnet 20 (A) | CIFAR10 | 2 | 8.00 ± 2.83 | 6.00 | 8.75 |" in section
    assert "The schedules are short: 20 iterations against the paper's 64,000." in section
    assert "9 minutes of training altogether; commit abc; 1 × cpu (a machine); torch 2." in section
    for picture in ("depth_curves.png", "depth_nets.png"):
        assert f"images/{picture}" in section and (tmp_path / "docs" / "images" / picture).exists()
    rows = json.loads((tmp_path / "docs" / "results" / "depth.json").read_text(encoding="utf-8"))["rows"]
    assert [row["n"] for row in rows] == [1, 2]
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == readme
