"""The files for CI, pre-commit and containers agree with the Makefile and the requirements."""

from __future__ import annotations

import json
import re
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import yaml

PROJECT = Path(__file__).parents[2]
MAKEFILE = (PROJECT / "Makefile").read_text(encoding="utf-8")
WORKFLOWS = sorted((PROJECT / ".github" / "workflows").glob("*.yml"))


def read_yaml(path: str) -> Any:
    return yaml.safe_load((PROJECT / path).read_text(encoding="utf-8"))


def targets(job: dict[str, Any]) -> set[str]:
    """The make targets of a job; its other steps are actions with a version."""
    matrix = job.get("strategy", {}).get("matrix", {})
    values = [*matrix.get("target", []), *(each["target"] for each in matrix.get("include", []))]
    found = set()
    for step in job["steps"]:
        if "uses" in step:
            assert re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"])
            continue
        command = step["run"].removeprefix("make ")
        assert command != step["run"], f"not a make target: {command}"
        found |= {word.split()[0] for word in (values if "matrix.target" in command else [command])}
    return found


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_call_make_targets(path: Path) -> None:
    found = set().union(*(targets(job) for job in read_yaml(str(path))["jobs"].values()))
    assert found and all(f"\n{name}:" in MAKEFILE for name in found), found


def test_pull_requests_are_checked_with_all_python_versions() -> None:
    job = read_yaml(".github/workflows/ci.yml")["jobs"]["make"]
    assert targets(job) >= {"lint", "test", "docs", "package"}
    classifiers = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["classifiers"]
    versions = [match[1] for each in classifiers if (match := re.search(r"Python :: (3\.\d+)", each))]
    assert job["strategy"]["matrix"]["python"] == versions


def test_pre_commit_uses_the_pinned_ruff() -> None:
    (hooks,) = read_yaml(".pre-commit-config.yaml")["repos"]
    pinned = (PROJECT / "requirements-dev.txt").read_text(encoding="utf-8")
    assert f"ruff=={hooks['rev'].removeprefix('v')}\n" in pinned


def test_the_dev_container_installs_by_make() -> None:
    container = json.loads((PROJECT / ".devcontainer/devcontainer.json").read_text(encoding="utf-8"))
    assert f"\n{container['postCreateCommand'].removeprefix('make ')}:" in MAKEFILE


@pytest.mark.parametrize("page", ["Dockerfile", "docs/deploy.md"])
def test_docker_can_copy_its_files(page: str) -> None:
    ignored = (PROJECT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    lines = re.findall(r"^COPY (.+) \S+$", (PROJECT / page).read_text(encoding="utf-8"), re.MULTILINE)
    sources = " ".join(lines).split()
    assert "resnet_pl" in sources and "*" in ignored
    for source in sources:
        assert any(fnmatchcase(source, line[1:]) for line in ignored if line.startswith("!")), f"{source} is ignored"
        assert source.startswith("runs/") or (PROJECT / source).exists(), source
