"""The documentation site: navigation, links, and the commands of the pages that only the site has.

The commands are parsed here, without data and without a training; `make test-slow` runs those in blocks too
(tests/repository/test_readme.py), and builds the site.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote

import pytest

import resnet_pl
from resnet_pl import analysis
from resnet_pl.cli.main import SUBCOMMANDS, main
from tests.browser import CHROMIUM, Browser
from tests.repository.readme_commands import PROJECT, SITE_PAGES

DOCS = PROJECT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
SITE = tomllib.loads((PROJECT / "zensical.toml").read_text(encoding="utf-8"))["project"]
CHECKPOINT = str(PROJECT / "tests/pinned_checkpoint/model.ckpt")
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(rf"(?:(?:python|torchrun .*) cli\.py )?((?:{'|'.join([*SUBCOMMANDS, *analysis.COMMANDS])}) .*)")


# ------------------------------------------------------------------------------------ navigation and links
def test_every_page_is_in_the_navigation() -> None:
    entries = [value for entry in SITE["nav"] for value in entry.values()]
    pages = [page for value in entries for page in ([value] if isinstance(value, str) else value)]
    assert sorted(pages) == [page.name for page in PAGES]


def prose(page: Path) -> str:
    """Returns a page without its blocks of code."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """Returns the anchors of the headings of a page, as GitHub and the site make them."""
    titles = re.findall(r"^#+ (.*)", prose(page), re.MULTILINE)
    plain = [re.sub(r"\[(.*?)\]\(.*?\)|[`*]", r"\1", title).strip().lower() for title in titles]
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in plain}


def test_links_lead_to_pages_images_and_headings_of_the_site() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\((?!https?:)([^) ]+)\)", prose(page)):
            file, _, anchor = unquote(link).partition("#")
            target = (DOCS / file).resolve() if file else page
            assert target.is_file() and target.is_relative_to(DOCS), f"{page.name}: {link}: the site has no such file"
            assert not anchor or anchor in anchors(target), f"{page.name}: {link}: no such heading"


def test_files_that_are_named_exist() -> None:
    for page in PAGES:
        for path in re.findall(r"`(?:python )?((?:examples|configs|benchmarks|docs)/[\w./-]*)", prose(page)):
            assert (PROJECT / path).exists(), f"{page.name}: {path}"


# ------------------------------------------------------------------------------------ commands
def commands(page: Path) -> list[str]:
    """Returns the commands of a page, and as one command the options of `fit` that a section names in its text."""
    found = []
    for section in re.split(r"^#+ ", page.read_text(encoding="utf-8"), flags=re.MULTILINE):
        blocks = [match[3] for match in FENCE.finditer(section) if match[2] == "bash"]
        lines = [line.strip().partition("  #")[0] for line in "".join(blocks).replace("\\\n", " ").splitlines()]
        code = re.findall(r"`([^`\n]+)`", FENCE.sub("", section).replace(r"\|", "|"))
        found += [match[1] for line in [*lines, *code] if (match := COMMAND.fullmatch(line)) and "…" not in line]
        if options := [text for text in code if re.match(r"--(model|data|trainer|checkpoint)\.[\w.]+(\+=|\+? )", text)]:
            found.append(f"fit --config configs/folder.yaml {' '.join(options)}")
    return found


# The commands of the others are parsed in `make test-slow` only.
QUICK = ("index", "coming_from")


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[] if page.stem in QUICK else [pytest.mark.slow], id=page.name) for page in SITE_PAGES],
)
def test_commands_are_parsed(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("configs").symlink_to(PROJECT / "configs")
    tested = commands(PROJECT / "README.md")  # by tests/repository/test_readme.py
    for command in dict.fromkeys(command for command in commands(page) if command not in tested):
        words = [CHECKPOINT if re.fullmatch(r"best|last|runs/\S*", word) else word for word in shlex.split(command)]
        if "--data.root" in words and CHECKPOINT in words:
            words += ["--data", "ImageFolder"]  # as in a checkpoint of photos
        if words[0] == "sweep":
            words.insert(1, "--print")
        elif words[0] not in SUBCOMMANDS:
            name = " ".join(words[:2]) if words[0] == "paper" else words[0]
            module = import_module(f"resnet_pl.analysis.{name.split()[-1].replace('-', '_')}")
            monkeypatch.setattr(module, "run", lambda settings: 0)
        elif not re.search(r"help\b|--print_config", command):
            words.append("--print_config")
        assert main(words) == 0, command


@pytest.mark.parametrize("page", SITE_PAGES, ids=lambda page: page.name)
def test_python_is_valid(page: Path) -> None:
    for match in FENCE.finditer(page.read_text(encoding="utf-8")):
        if match[2] == "python":
            compile(match[3], page.name, "exec")


def test_the_page_of_the_api_has_all_public_names() -> None:
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    assert [name for name in resnet_pl.__all__ if name not in page] == ["__version__"]


# ------------------------------------------------------------------------------------ the site
@pytest.mark.slow
def test_the_site_is_built_and_searched_from_the_disk(tmp_path: Path) -> None:
    for name in ("docs", "resnet_pl"):
        shutil.copytree(PROJECT / name, tmp_path / name)
    for name in ("Makefile", "zensical.toml", "requirements-docs.txt"):
        shutil.copy(PROJECT / name, tmp_path)
    build = ["make", "docs", f"PYTHON={sys.executable}", "VENV=venv"]
    subprocess.run(build, cwd=tmp_path, check=True)
    for page in PAGES:
        html = (tmp_path / "site" / page.name).with_suffix(".html").read_text(encoding="utf-8")
        assert not re.findall(r"<(?:script|img|link|iframe)[^>]+(?:src|href)=.https?:[^>]*>", html), page.name
    api = re.sub(r"<.*?>", "", (tmp_path / "site/api.html").read_text(encoding="utf-8"))
    assert "Evaluates a checkpoint on the test set, as the command test does." in api
    if CHROMIUM is not None:
        search(tmp_path / "site", "temperature")

    (tmp_path / "docs/index.md").write_text("# A page\n\n[a link](faq.md#no-such-question)\n", encoding="utf-8")
    assert subprocess.run(build, cwd=tmp_path, stderr=subprocess.DEVNULL).returncode != 0


def search(site: Path, words: str) -> None:
    """Searches in the browser, without a server, until the first result is shown."""
    with Browser((site / "index.html").as_uri()) as browser:
        results = "[...document.querySelectorAll('*')].map(e => e.shadowRoot?.textContent ?? '').join('')"
        browser.wait_for("document.querySelector('.md-search__button') !== null")
        browser.evaluate("document.querySelector('.md-search__button').click()")
        browser.wait_for("[...document.querySelectorAll('*')].some(e => e.shadowRoot?.querySelector('input'))")
        browser.call("Input.insertText", text=words)
        browser.wait_for(f"{results}.includes('Understand a trained network')")
