"""Every command and Python example in README, docs/paper.md and docs/tune.md runs, at small size, without a network.

Those of the other pages of the site run in `make test-slow` only.

Each command is one test in its own working directory, so the tests do not depend on their order. `Prepared` generates
what the commands read: datasets, pretrained weights and finished runs. A working directory has links to the data and a
copy of the runs, because a command may change a run.

A user may edit README or replace it. A command that reads something that only the user has is therefore skipped:
`own_input` returns what that is. Everything that ships with the project can be prepared, so a shipped command fails if
it is wrong: an unknown option, value, subcommand, short class name or file below `configs/`.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

import cmarkgfm
import pytest

from resnet_pl.cli.main import main
from resnet_pl.models.fetch_weights import FROM_SCRATCH
from tests.repository.readme_commands import PROJECT, SITE_PAGES, Prepared, option, own_input, setting, shortened

README, PAPER, TUNE = PROJECT / "README.md", PROJECT / "docs" / "paper.md", PROJECT / "docs" / "tune.md"
PAGES = [path for path in [README, *sorted((PROJECT / "docs").glob("*.md"))] if path.is_file()]


def blocks(page: Path, language: str) -> list[str]:
    """Returns the code blocks of a page in one language."""
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)


COMMANDS = [line for page in (README, PAPER, TUNE) for text in blocks(page, "bash") for line in text.splitlines()]
CLI_COMMANDS = list(dict.fromkeys(line for line in COMMANDS if line.startswith("python cli.py ")))
SITE_LINES = [line.strip() for page in SITE_PAGES for text in blocks(page, "bash") for line in text.splitlines()]
SITE_COMMANDS = sorted({line for line in SITE_LINES if line.startswith("python cli.py ")} - set(CLI_COMMANDS))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """What the commands of this module share."""
    return Prepared(tmp_path_factory.mktemp("prepared"))


@pytest.fixture
def run_command(prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], int]:
    """Runs a command in a new working directory and returns its exit code, or skips it."""
    # Not by TORCH_HOME: the checksum in the file name of torchvision is verified.
    weights = prepared.root / "weights"
    monkeypatch.setattr("resnet_pl.classifier.fetch_weights", lambda url: weights / url.rpartition("/")[2])

    def run(command: str) -> int:
        args = shlex.split(command)[2:]
        if args[0] in ELSEWHERE:
            pytest.skip(f"see {ELSEWHERE[args[0]]}")
        if own := own_input(args, prepared.root):
            pytest.skip(f"reads {own}")
        if setting(args, "model.weights") not in (None, "null"):
            prepared.weights((setting(args, "model.backbone") or "").split(".")[-1])
        monkeypatch.chdir(prepared.root)
        prepared.copy_runs(args, tmp_path)
        monkeypatch.chdir(tmp_path)
        for name in ("configs", "data", "my", "new"):
            (tmp_path / name).symlink_to(prepared.root / name)
        return main(shortened(args))

    return run


# ------------------------------------------------------------------------------------ tests of the commands
# Commands that differ from others only in a large network.
SLOW = "resnet50|convnext"
# Commands that other tests run: the networks that are prepared here have not learned anything.
ELSEWHERE = {name: f"tests/cli/test_{name}.py" for name in ("calibrate", "export", "report", "serve")}


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(each, marks=[pytest.mark.slow] if re.search(SLOW, each) or each in SITE_COMMANDS else [])
        for each in CLI_COMMANDS + SITE_COMMANDS
    ],
    ids=lambda command: command.removeprefix("python cli.py ")[:80],
)
def test_command_runs(command: str, run_command: Callable[[str], int]) -> None:
    assert run_command(command) == 0
    output = Path(option(shlex.split(command), "output") or "-.csv")
    plots = list(output.glob("*.png")) if output.is_dir() else [output]
    if output.suffix in ("", ".png"):
        assert plots and all(plot.stat().st_size > 10_000 for plot in plots)


@pytest.mark.parametrize(
    "wrong",
    [
        "fit --config configs/digit.yaml",
        "fit --config configs/digits.yaml --trainer.epochs 3",
        "evaluate",
        "fit --config configs/digits.yaml --data Digit",
    ],
)
def test_a_wrong_command_fails(wrong: str, run_command: Callable[[str], int]) -> None:
    assert run_command(f"python cli.py {wrong}") == 2


@pytest.mark.parametrize(
    ("command", "own"),
    [
        ("fit --config configs/folder.yaml --data.root my/photos", None),
        ("fit --config configs/digits.yaml --trainer.callbacks+=Freeze", None),
        ("test --ckpt_path best --name mine", None),
        ("fit --config experiments/a.yaml", "experiments/a.yaml"),
        ("fit --config configs/folder.yaml --data.root /datasets/birds", "/datasets/birds"),
        ("fit --config configs/digits.yaml --model.backbone some_package.make_model", "some_package.make_model"),
        ("fit --config configs/digits.yaml --trainer.callbacks+=some_package.Mine", "some_package.Mine"),
        ("fit --config configs/digits.yaml --data torch.nn.Module", "torch.nn.Module"),
        ("fit --config configs/folder.yaml --model.backbone resnet101", "the weights IMAGENET1K_V1 of resnet101"),
        ("test --ckpt_path mine.ckpt", "mine.ckpt"),
        ("fit --model.backbone timm.create_model --model.backbone.pretrained true", "weights that timm downloads"),
    ],
)
def test_what_only_a_user_has_is_recognized(command: str, own: str | None, prepared: Prepared) -> None:
    assert own_input(shlex.split(command), prepared.root) == own


# ------------------------------------------------------------------------------------ tests of the pages
def test_other_commands_and_links_refer_to_existing_files() -> None:
    if not README.read_text(encoding="utf-8").startswith("# resnet_pl\n"):
        pytest.skip("a README of another project can refer to anything")
    makefile = (PROJECT / "Makefile").read_text(encoding="utf-8")
    for command in COMMANDS:
        if command.startswith("make "):
            assert f"\n{command.split()[1]}:" in makefile, command
        for word in command.split():
            if word.startswith(("configs/", "requirements")):
                assert (PROJECT / word).is_file(), command
    for page in PAGES:
        for link in re.findall(r"\]\((?!http|#)([^)#]+)\)", page.read_text(encoding="utf-8")):
            # GitHub's page of a workflow, and its badge.
            link = re.sub(r"^\.\./\.\./actions/(workflows/\w+\.yml)(/badge\.svg)?$", r".github/\1", link)
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_badges_agree_with_the_package() -> None:
    badges = {
        unquote(badge) for badge in re.findall(r"img\.shields\.io/badge/([^)]*)\)", README.read_text(encoding="utf-8"))
    }
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    versions = re.findall(r"Python :: (3\.\d+)", " ".join(project["classifiers"]))
    (lightning,) = [each for each in project["dependencies"] if each.startswith("lightning")]
    expected = {
        f"python-{' | '.join(versions)}-blue",
        f"lightning-{re.findall(r'>=([0-9.]+)', lightning)[0]}-792ee5",
        f"license-{project['license'].replace('-', '--')}-green",
    }
    assert badges in (set(), expected)  # a README of the user may have no badges


def test_the_advice_for_offline_use_is_that_of_the_error_message() -> None:
    for page in (README, PROJECT / "docs" / "faq.md"):
        assert FROM_SCRATCH in page.read_text(encoding="utf-8"), page


def test_configs_in_the_readme_exist() -> None:
    for name in re.findall(r"^\| `(.+?\.yaml)`", README.read_text(encoding="utf-8"), re.MULTILINE):
        assert (PROJECT / "configs" / name).is_file(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_table_is_rendered(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    # A row in the source is a line that starts with a bar, in a list too; the second one has only dashes.
    source = [match[0].splitlines() for match in re.finditer(r"(?:^ *\|.*\n)+", f"{text}\n", re.MULTILINE)]
    html = cmarkgfm.github_flavored_markdown_to_html(text)
    tables = re.findall(r"<table>.*?</table>", html, re.DOTALL)
    assert [table.count("<tr>") for table in tables] == [len(lines) - 1 for lines in source]
    for lines, table in zip(source, tables, strict=True):
        columns = len(re.findall(r"(?<!\\)\|", lines[1])) - 1
        assert {len(re.findall(r"(?<!\\)\|", line)) - 1 for line in lines} == {columns}, lines[0]
        assert len(re.findall("<t[hd]", table)) - table.count("<thead") == columns * (len(lines) - 1), lines[0]


@pytest.mark.parametrize("code", blocks(README, "python"))
def test_python_example_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compile(code, "README", "exec")
    if "Digits()" not in code:
        pytest.skip("reads other data than scikit-learn's digits")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    options = ["--trainer.limit_train_batches", "2", "--trainer.logger", "false"]
    exec(compile(re.sub(r"epochs=\d+", f"epochs=1, args={options}", code), "README", "exec"), names)
    assert getattr(names["model"], "class_names", None) == [str(i) for i in range(10)]
