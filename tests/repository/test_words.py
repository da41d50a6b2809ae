"""The project's texts use the terms of PyTorch, Lightning, torchvision, timm and the paper, in American spelling.

`WORDS` lists expressions that are not those of the field. `make lint` searches the project's own texts for them:

    python tests/repository/test_words.py [FILE …]

`make test` checks only the list, and therefore does not depend on modules, configs or pages that you add. `make lint`
skips a README with another title.
"""

from __future__ import annotations

import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
# Each pattern, what to write instead, and a sentence in which it must be found. A line break is a space to a pattern.
WORDS = {
    r"told|tells?|telling": ("report, print, show, say", "The user is told the path."),
    r"anew|afresh|once more": ("again", "The epoch is begun anew."),
    r"(?:go(?:es|ing)?|went|gone) on": ("resume, continue", "An interrupted run goes on."),
    r"(?:leaves?|left|leaving) (?:it |them |this |that )?out": ("skip, exclude, remove", "A broken image is left out."),
    r"left aside": ("ignored", "Other files are left aside."),
    r"(?:broken?|breaks|breaking) off": ("interrupted", "The run was broken off."),
    r"mend(?:s|ed|ing)?": ("fix, repair", "Mends what Lightning gets wrong."),
    r"spoil(?:s|t|ed|ing)?": ("corrupt", "A spoilt checkpoint is named."),
    r"pictures?": ("image, plot, figure", "Draws pictures for TensorBoard."),
    r"nets?": ("network, model", "The net is trained."),
    r"ways? out": ("fix, solution", "The message names a way out."),
    r"kept(?! (?:constant|fixed|in sync|up to date)\b)": ("saved, stored, unchanged", "The last two are kept."),
    r"whole(?! numbers?\b)": ("complete, entire, all", "The whole set is read."),
    r"apart": ("separate, independent of, except", "Validation apart, it is timed."),
    r"(?<!download )mirror(?:ed|ing|s)?": ("horizontal flip", "The image and its mirror image are averaged."),
    r"processors?": ("CPU", "A minute on a processor."),
    r"(?<!how )so many": ("N, a number of", "Written every so many steps."),
    r"(?<!make )(?<!Make )rooms?": ("module", "Imports only rooms below it."),
    r"in words": ("as text", "The size in words."),
    r"(?:put|puts|putting) right": ("fix", "An error that a user can put right."),
    r"(?:lay|lays|laid|lie|lies) over": ("merged on top of", "The recipe is laid over a config."),
    r"beside": ("next to, with", "The metadata is written beside it."),
    r"(?:some|no|any)thing is wrong": ("problems found", "Exits with 1 if something is wrong."),
    r"test it|look at it": ("Evaluate, TensorBoard", "Look at it: tensorboard"),
    r"(?:takes?|took|taking) turns": ("interleaved, alternately", "The two sides take turns."),
    r"as (?:it is|they are)(?= ?[.,:;)]| ?$| and | or | in the )": ("unchanged", "The folder is used as it is."),
    # "There is no file" and "is no longer" are good English; "x is no file" is not.
    r"(?<!there )(?<!There )(?:is|are) no(?! (?:longer|more than|less than|fewer than|later than|larger than)\b)": (
        "is not a",
        "The path is no file.",
    ),
    r"(?:is|are) none of": ("is not one of", "It is none of a, b."),
    r"so long(?! as\b)|so far as": ("how long, as far as", "So long did it take."),
    r"nobody|(?:un)?foreseen": ("say who or what", "Foreseen errors have a message."),
    r"the clock": ("wall time", "Measured by the clock."),
    r"learnt|spelt|burnt": ("learned, spelled", "What was learnt is lost."),
    r"comes? to its own|came to its own|to the digit": ("exactly", "The counts agree to the digit."),
    r"from nothing|in no time": ("from scratch, quickly", "Trained from nothing."),
    r"otherwise than|now and then|hitherto|therein|whereupon": (
        "plainer words",
        "It learns otherwise than before.",
    ),
    r"(?:images?|photos?|pixels?|ms|µs|seconds?|minutes?|hours?|bytes?|values?) an? "
    r"(?:second|step|class|side|epoch|image|photo|batch|minute|pixel|channel|process|core)": (
        "per",
        "It takes 3 ms a step.",
    ),
    r"(?:(?:learning )?rate|loss|error|temperature)s? falls|falling (?:learning )?rate": (
        "decays, drops",
        "The rate falls by a tenth.",
    ),
    r"(?:colou|behaviou|neighbou|favou|flavou)r(?:s|ed|ing|ful|hoods?|able|ite)?": (
        "American spelling",
        "The colours of a class.",
    ),
    r"(?:centre|metre|fibre)[sd]?|centring|grey|artefacts?|catalogues?|licence[sd]?|whilst|analyse[sd]?": (
        "American spelling",
        "Cropped at the centre.",
    ),
    r"(?:un)?(?:label|model|cancel|signal|travel|channel)l(?:ed|ing|er)": (
        "American spelling",
        "Unlabelled images are skipped.",
    ),
    r"(?:\w*(?:normal|initial|optim|visual|serial|synchron|parallel)|organ|recogn|minim|maxim|summar|general|regular|"
    r"custom|util|real|special|standard|emphas|final|token|vector|local|penal|stabil|random)"
    r"is(?:e[sdr]?|ers|ing|ations?)": (
        "American spelling",
        "The optimiser and the normalisation.",
    ),
}
PATTERN = re.compile(
    rf"(?<![\w./-])(?:{'|'.join(f'(?P<w{number}>{word})' for number, word in enumerate(WORDS))})(?![\w/-]|\.\w)",
    re.IGNORECASE,
)
INSTEAD = {f"w{number}": instead for number, (instead, _) in enumerate(WORDS.values())}
CORRECT = [
    "There is no file of this name, and the key is no longer an option.",
    "The size must be a whole number, however many images there are and as long as it is positive.",
    "The image is written as it is read from the download mirror.",
    "Network, ResNet, telling_apart, --beside, left/out, net.py and re-told are not words of prose.",
    "The steps an epoch has; crops an image; make room on the disk; a schedule falls back to its default.",
    "Old name `net`, option {told} and\n```bash\npython cli.py anew\n```\n",
    "The color of the center, normalized, analyzed and labeled by the optimizer; an exercise in precision.",
]
FOLDERS = ("resnet_pl", "configs", "docs", "benchmarks", "examples", "scripts", "tests", ".github")
SUFFIXES = (".py", ".md", ".yaml", ".yml")
OTHERS = ("CHANGELOG.md", "CITATION.cff", "Makefile", "cli.py", "pyproject.toml", ".ci/run")
OTHERS += ("requirements.txt", "requirements-dev.txt", "CONTRIBUTING.md", "SECURITY.md", "Dockerfile", ".dockerignore")
OTHERS += (".pre-commit-config.yaml",)


def project_files() -> list[Path]:
    """Returns the text files of the project, except this one; a README with another title is not the project's."""
    others = [PROJECT / name for name in OTHERS]
    inside = [path for folder in FOLDERS for path in sorted((PROJECT / folder).rglob("*")) if path.suffix in SUFFIXES]
    readme = PROJECT / "README.md"
    if readme.exists() and readme.read_text(encoding="utf-8").startswith("# resnet_pl\n"):
        others.insert(0, readme)
    return [path for path in [*others, *inside] if path.is_file() and path != Path(__file__).resolve()]


def prose(text: str, python: bool) -> Iterator[tuple[int, str]]:
    """Yields line numbers and prose: comments and strings of more than a word in Python, else all but code blocks."""
    if python:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type in (tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", None)):
                content = re.sub(r"^(?:#|\w*(?:\"{3}|'{3}|\"|'))|(?:\"{3}|'{3}|\"|')$", "", token.string)
                lines = content.splitlines() if token.type == tokenize.COMMENT or " " in content else []
                yield from enumerate(lines, token.start[0])
    else:
        code = False
        for number, line in enumerate(text.splitlines(), 1):
            code ^= (fence := line.startswith("```"))
            yield number, "" if code or fence else line


def paragraphs(text: str, python: bool) -> Iterator[tuple[str, list[tuple[int, int]]]]:
    """Yields paragraphs as one line each, with the positions at which their lines begin and the numbers of these."""
    lines: list[tuple[int, str]] = []
    for number, line in [*prose(text, python), (sys.maxsize, "")]:
        words = " ".join(re.sub(r"^\s*(?:[#>*|-] ?)+", "", line).split())
        if lines and (not words or number > lines[-1][0] + 1):
            joined, starts = "", []
            for place, content in lines:
                starts.append((len(joined), place))
                joined += content + " "
            # Code in backticks and values in braces are not prose.
            yield re.sub(r"`[^`]*`|\{[^{}]*\}", lambda found: "¤" * len(found[0]), joined), starts
            lines = []
        if words:
            lines.append((number, words))


def findings(text: str, python: bool = False) -> Iterator[tuple[int, str, str]]:
    """Yields the line, the expression and what to write instead, for each use of an expression of `WORDS`."""
    for paragraph, starts in paragraphs(text, python):
        for found in PATTERN.finditer(paragraph):
            line = max(number for start, number in starts if start <= found.start())
            yield line, found[0], INSTEAD[str(found.lastgroup)]


def main(names: list[str]) -> int:
    """Prints the findings in files, by default in all of the project; returns 1 if there are any."""
    count = 0
    for path in map(Path, names) if names else project_files():
        for line, words, instead in findings(path.read_text(encoding="utf-8"), path.suffix == ".py"):
            place = path.resolve()
            shown = place.relative_to(PROJECT) if place.is_relative_to(PROJECT) else path
            print(f"{shown}:{line}: {words} ({instead})")
            count += 1
    return int(count > 0)


@pytest.mark.parametrize("word", WORDS)
def test_each_expression_is_found_in_its_example(word: str) -> None:
    instead, example = WORDS[word]
    comment = "".join(f"# {each}\n" for each in example.split())  # across all line breaks
    assert instead in [found[2] for found in findings(example)]
    assert instead in [found[2] for found in findings(comment, python=True)]


@pytest.mark.parametrize("text", CORRECT)
def test_correct_text_has_no_findings(text: str) -> None:
    assert not [*findings(text)]


def test_prose_of_python_is_comments_docstrings_and_messages() -> None:
    code = """net = told("net", f"{net} is")  # a net
def kept():
    '''Runs.

    Goes
    on.
    '''
    fail("is no "
         "file")
"""
    found = [(line, words) for line, words, _ in findings(code, python=True)]
    assert found == [(1, "net"), (5, "Goes on"), (8, "is no")]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
