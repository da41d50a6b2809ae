"""requirements.lock: the packages of requirements.txt and all that they need, with hashes."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).parent.parent


def locked() -> list[tuple[Requirement, list[str]]]:
    """The packages of requirements.lock, each with its hashes."""
    text = (PROJECT / "requirements.lock").read_text(encoding="utf-8")
    entries = re.split(r"\n(?=\S)", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).strip())
    lines = [[line.strip() for line in entry.split("\\\n")] for entry in entries]
    return [(Requirement(first), hashes) for first, *hashes in lines]


def test_every_package_is_pinned_and_has_hashes() -> None:
    for requirement, hashes in locked():
        assert re.fullmatch(r"==[\d.]+", str(requirement.specifier)) and requirement.url is None, requirement
        assert hashes and all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", each) for each in hashes), requirement
    # An index or a URL would be that of the machine on which the file was written.
    assert "://" not in (PROJECT / "requirements.lock").read_text(encoding="utf-8")


def test_the_lock_agrees_with_the_other_requirements() -> None:
    versions: dict[str, list[str]] = {}
    for requirement, _ in locked():
        versions.setdefault(canonicalize_name(requirement.name), []).append(str(requirement.specifier)[2:])
    pinned = [Requirement(line) for line in (PROJECT / "requirements.txt").read_text(encoding="utf-8").splitlines()]
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for requirement in [*pinned, *(Requirement(line) for line in project["dependencies"])]:
        found = versions.get(canonicalize_name(requirement.name), [])
        assert found and all(requirement.specifier.contains(version) for version in found), (
            f"run make lock: {requirement}"
        )
