"""The project uses the terms of PyTorch, Lightning, torchvision, timm and the paper: no private dialect."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
# What to avoid in prose (comments, docstrings, messages, pages), and what the field says instead.
WORDS = {
    r"told|tells?|telling": "report, print, show, say",
    r"anew|once more": "again",
    r"go(es|ing)? on|went on|gone on": "resume, continue",
    r"(leave|leaves|left|leaving) (it |them |out )?out": "skip, exclude, remove",
    r"left aside": "ignored",
    r"broken? off|breaks off": "interrupted",
    r"mends?|mended": "fix, repair",
    r"spoil|spoilt|spoiled": "corrupt",
    r"pictures?": "image, plot, figure",
    r"nets?": "network, model",
    r"ways? out": "fix",
    r"kept": "saved, stored, unchanged",
    r"whole": "complete, entire, all",
    r"apart": "separate, independent of, except",
    r"mirror(ed|ing|s)?|mirror images?": "horizontal flip",
    r"processors?": "CPU",
    r"so many": "N, this number of",
    r"rooms?": "module",
    r"in words": "as text",
    r"put right|puts right": "fix",
    r"laid over|lays over": "merged on top of",
    r"beside": "next to, with",
    r"something is wrong|nothing is wrong": "problems found",
    r"test it|look at it": "Evaluate, TensorBoard",
    r"takes turns|took turns|taking turns": "interleaved",
    r"as it is|as they are": "unchanged",
    r"is no|are no more|is none of": "is not a",
    r"so long|so far as": "how long",
    r"nobody|foreseen|unforeseen": "say who or what",
    r"the clock|by the clock": "wall time",
    r"learnt": "learned",
    r"come to its own|came to its own|to the digit": "exactly",
    r"colour(s|ed|ing)?|centre[sd]?|grey|optimiser[s]?|(normal|initial|optim|organ|recogn)is(e[sd]?|ing|ation)": (
        "American spelling"
    ),
}
PATTERN = re.compile(rf"(?<![\w./-])(?:{'|'.join(f'(?:{word})' for word in WORDS)})(?![\w/-]|\.\w)", re.IGNORECASE)
# The project's own files, in a checkout or in an unpacked archive; recorded states of other versions are data.
FOLDERS = ("resnet_pl", "configs", "docs", "benchmarks", "tests")
SUFFIXES = (".py", ".md", ".yaml")
TOP = ("README.md", "CHANGELOG.md", "Makefile", "cli.py", "pyproject.toml")
HERE = Path(__file__).name


def project_files() -> list[Path]:
    """Every text file that people read."""
    below = [path for folder in FOLDERS for path in sorted((PROJECT / folder).rglob("*")) if path.suffix in SUFFIXES]
    return [path for path in [*(PROJECT / name for name in TOP), *below] if path.is_file() and path.name != HERE]


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers and text that is prose: of Python its comments and strings, of other files everything."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield from enumerate(text.splitlines(), 1)
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING) or token.type == getattr(tokenize, "FSTRING_MIDDLE", -1):
            for offset, line in enumerate(token.string.splitlines()):
                yield token.start[0] + offset, line


def without_code(line: str) -> str:
    """A line without what is between backticks: names and commands."""
    return re.sub(r"`[^`]*`|\{[^}]*\}", "", line)


def findings(path: Path) -> list[str]:
    """Each use of a word to avoid, with its place."""
    return [
        f"{path.relative_to(PROJECT)}:{number}: {found[0]}"
        for number, line in prose(path)
        for found in PATTERN.finditer(without_code(line))
    ]


@pytest.mark.parametrize("folder", ["", *FOLDERS])
def test_only_words_of_the_field(folder: str) -> None:
    files = [path for path in project_files() if (path.relative_to(PROJECT).parent.parts or ("",))[0] == folder]
    found = [line for path in files for line in findings(path)]
    assert files and not found, "\n".join(found)


@pytest.mark.parametrize("word", WORDS)
def test_each_pattern_is_found(word: str, tmp_path: Path) -> None:
    assert PATTERN.search("the net goes on anew") and re.compile(word)


if __name__ == "__main__":
    import sys

    for name in sys.argv[1:] or map(str, project_files()):
        print(*findings(Path(name).resolve()), sep="\n")
