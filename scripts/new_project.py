"""Makes a project of your own from this one: python scripts/new_project.py flower_net ../flower_net

The package, configs, examples, tests and the files of the tools are copied, with the new name in place of resnet_pl.
What describes this repository is not copied: docs, benchmarks, scripts, tests/repository. Checkpoints and configuration
files that resnet_pl wrote still work in the new project. Only files that git knows are copied, as they are now.
"""

from __future__ import annotations

import argparse
import importlib.util
import keyword
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
OLD = "resnet_pl"
NOT_COPIED = ("docs/", "benchmarks/", "scripts/", "tests/repository/", "requirements-docs.txt", "zensical.toml")
NOT_COPIED += ("CONTRIBUTING.md",)
# Paragraphs and lines that need what is not copied.
REMOVED_PARAGRAPHS = {"Makefile": ("docs:", "faults:", "$(VENV)/.installed-docs:")}
# Texts and what replaces them. A longer name makes lines longer; `make format` breaks those of code.
REPLACED = {
    "pyproject.toml": {
        'ignore = ["RUF001"': 'ignore = ["E501", "RUF001"',
        'description = "A PyTorch Lightning template': 'description = "My own project',
    }
}
REMOVED_LINES = {"Makefile": "tests/repository", ".github/workflows/ci.yml": "target: docs"}
README = """# {name}

Trains image classifiers with PyTorch Lightning. Made from resnet_pl {version}{address};
its documentation describes all options.
Paths below `docs/` in comments and messages are pages of resnet_pl.

```bash
make format           # creates .venv; sorts the imports, whose order depends on the name
. .venv/bin/activate
make test             # runs the tests, six to ten minutes on two cores; those of a GPU are skipped without one
pytest --last-failed  # runs the tests that failed
make demo             # trains on scikit-learn's digits for a minute, tests and predicts
python cli.py fit --config configs/folder.yaml --data.root FOLDER_OF_PHOTOS
python cli.py test --ckpt_path best
```

To use another environment, such as that of resnet_pl: `export VENV=PATH` for make, and `. PATH/bin/activate`.

| Where | What |
|---|---|
| `{name}/` | the package; `classifier.py` and `data/base.py` are the LightningModule and the LightningDataModule |
| `configs/` | one file for each task; `recipes/` are merged on top |
| `examples/` | your own dataset, metric and more |
| `tests/` | tests of the package; put yours next to them |
"""
CHANGELOG = "# Changelog\n\n## Unreleased\n\nMade from resnet_pl {version}.\n"


def new_text(text: str, name: str) -> str:
    """Returns the text of a file with the new name of the package, of its command and of its environment variables.

    Links to pages of docs/, which is not copied, become text.
    """
    text = re.sub(r"\[(docs/[^\]]*)\]\(docs/[^)]*\)", r"\1", text)
    for old, new in ((OLD, name), (OLD.replace("_", "-"), name.replace("_", "-")), (OLD.upper(), name.upper())):
        text = text.replace(old, new)
    return text


def check_name(name: str) -> str:
    """Returns the name of a package; raises argparse.ArgumentTypeError if it cannot be one."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise argparse.ArgumentTypeError(
            f"{name} cannot be the name of a package: use a-z, 0-9 and _, such as flower_net"
        )
    if name in ("tests", "configs", "examples", "data", "runs", "cli") or importlib.util.find_spec(name) is not None:
        raise argparse.ArgumentTypeError(f"{name} is the name of another package or folder: choose another one")
    return name


def tracked_files() -> list[str]:
    """Returns the files of this project that are copied."""
    done = subprocess.run(["git", "-C", str(PROJECT), "ls-files", "-z"], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: {PROJECT} is not a clone: {done.stderr.strip()}\nclone the repository with git")
    return [path for path in done.stdout.split("\0") if path and not path.startswith(NOT_COPIED)]


def public_address(url: str) -> str:
    """Returns the URL of a remote without user and password; nothing if it is not one, such as a folder."""
    match = re.fullmatch(r"(https?://)(?:[^/]*@)?(.+)", url.strip())
    return match[1] + match[2] if match else ""


def write(name: str, folder: Path) -> None:
    """Writes the new project."""
    for path in tracked_files():
        source, target = PROJECT / path, folder / path.replace(OLD, name)
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                target.write_text(new_text(source.read_text(encoding="utf-8"), name), encoding="utf-8")
            except UnicodeDecodeError:
                target.write_bytes(source.read_bytes())
            target.chmod(source.stat().st_mode)
    found = re.search(r'__version__ = "(.*)"', (PROJECT / OLD / "__init__.py").read_text(encoding="utf-8"))
    version = found[1] if found else ""
    origin = ["git", "-C", str(PROJECT), "remote", "get-url", "origin"]
    url = public_address(subprocess.run(origin, capture_output=True, text=True, check=False).stdout)
    values = {"name": name, "version": version, "address": f" ({url})" if url else ""}
    for file, text in (("README.md", README), ("CHANGELOG.md", CHANGELOG)):
        (folder / file).write_text(text.format(**values), encoding="utf-8")
    renamed, empty = folder / name / "_renamed.py", "FORMER_PACKAGES: tuple[str, ...] = ()"
    text = renamed.read_text(encoding="utf-8")
    if empty not in text:
        sys.exit(f"error: {renamed} has no line {empty}")
    renamed.write_text(text.replace(empty, f'{empty[:-1]}"{OLD}",)'), encoding="utf-8")
    for file, rules in REMOVED_PARAGRAPHS.items():
        paragraphs = (folder / file).read_text(encoding="utf-8").split("\n\n")
        kept = [each for each in paragraphs if not any(line.startswith(rules) for line in each.splitlines())]
        (folder / file).write_text("\n\n".join(kept), encoding="utf-8")
    for file, texts in REPLACED.items():
        text = (folder / file).read_text(encoding="utf-8")
        for before, after in texts.items():
            if before not in text:
                sys.exit(f"error: {folder / file} has no text {before}")
            text = text.replace(before, after)
        (folder / file).write_text(text, encoding="utf-8")
    for file, part in REMOVED_LINES.items():
        lines = (folder / file).read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / file).write_text("".join(line for line in lines if part not in line), encoding="utf-8")


def sharing_command() -> list[str]:
    """Returns the command by which the new project uses the environment of this one, if there is one."""
    environment = PROJECT / ".venv"
    if not environment.is_dir():
        return []
    use = f"export VENV={shlex.quote(str(environment))} && . $VENV/bin/activate"
    return [f"{use}  # optional: without it, make installs all packages again"]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", type=check_name, help="name of the new package, such as flower_net")
    parser.add_argument("folder", type=Path, help="folder of the new project, which must not exist")
    options = parser.parse_args(argv)
    if options.folder.exists():
        parser.error(f"{options.folder} exists already: give another folder")
    write(options.name, options.folder)
    commands = [f"cd {options.folder}", "git init -b main", *sharing_command()]
    commands += ["make format", "git add .", "git commit -m 'Start'", "make test"]
    print(f"Wrote {options.folder}. Next:\n", *commands, sep="\n  ")


if __name__ == "__main__":
    main()
