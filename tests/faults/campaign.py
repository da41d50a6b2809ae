"""Runs thousands of fault-injection trials and writes docs/reliability.md: python tests/faults/campaign.py --record

Each trial is a pure function of section, number and seed; an interrupted campaign resumes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

PROJECT = Path(__file__).parents[2]
sys.path.insert(0, str(PROJECT))
# Before torch is imported: a process that forks must not have threads.
os.environ["OMP_NUM_THREADS"] = "1"

from resnet_pl.code_version import git_commit  # noqa: E402
from resnet_pl.utils import progress  # noqa: E402

PAGE = PROJECT / "docs" / "reliability.md"
COUNTS = {"kills": 200, "checkpoints": 1000, "configs": 2000, "images": 200}
TITLES = {
    "kills": "Runs killed at random moments",
    "checkpoints": "Corrupted and malicious checkpoints",
    "configs": "Corrupted configurations",
    "images": "Corrupt and unusual images",
}
# Why a trial is known to fail, by a regular expression that its description matches.
REASONS: dict[str, str] = {}


def try_all(section: ModuleType, name: str, count: int, seed: int, work: Path) -> list[dict[str, Any]]:
    """Runs the trials of a section that have not been run yet.

    Args:
        section: module with `prepare`, `trial` and `summary`.
        name: name of the section.
        count: number of trials.
        seed: of the campaign.
        work: folder of the results and of temporary files.

    Returns:
        The results of all trials, those of earlier runs included.
    """
    log, folder = work / f"{name}-{seed}.jsonl", work / name
    folder.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    remaining = range(len(rows), count)
    if remaining:
        shutil.rmtree(folder)
        reference = section.prepare(folder / "reference")
    with progress(name, len(remaining)) as advance, log.open("a", encoding="utf-8") as file:
        for number in remaining:
            start = time.perf_counter()
            row = section.trial(reference, random.Random(f"{name} {seed} {number}"), folder / str(number))
            # The folder must not get into the page.
            row["failed"] = row["failed"] and row["failed"].replace(f"{folder}/", "")
            row |= {"trial": number, "seconds": round(time.perf_counter() - start, 2)}
            rows.append(row)
            file.write(json.dumps(row) + "\n")
            file.flush()
            advance(1)
    shutil.rmtree(folder)
    return rows[:count]


def format_section(section: ModuleType, name: str, rows: Sequence[dict[str, Any]], seed: int) -> str:
    """Returns a section of the page: command, figures, and the failures with their reasons."""
    failed = Counter(re.sub(r"\s+", " ", row["failed"]).strip() for row in rows if row["failed"])
    result = f"{len(rows) - failed.total():,} of {len(rows):,} trials passed."
    failures = ["", "Failed:", ""] if failed else []
    for description, times in failed.most_common():
        reason = next((why for pattern, why in REASONS.items() if re.search(pattern, description)), "not fixed yet")
        failures.append(f"- {times} × `{description.replace('`', '')[:400]}`: {reason}")
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
    command = f"python tests/faults/campaign.py {name}={len(rows)} --seed {seed} --record"
    head = ["", f"## {TITLES[name]}", "", "```bash", command, "```", "", result, ""]
    return "\n".join([*head, *section.summary(rows), *failures, "", f"{machine}, commit {git_commit()}."]) + "\n"


def record(page: Path, name: str, section: str) -> None:
    """Writes a section into the page, where it replaces the older one; the text before the sections stays."""
    old = page.read_text(encoding="utf-8")
    head = old.partition("\n## ")[0].rstrip("\n") + "\n"
    sections = {each: match[0] for each, title in TITLES.items()
                if (match := re.search(rf"\n## {title}\n.*?(?=\n## |\Z)", old, re.DOTALL))}  # fmt: skip
    sections[name] = section.rstrip("\n") + "\n"
    page.write_text(head + "".join(sections[each].rstrip("\n") + "\n" for each in TITLES if each in sections))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the requested sections; returns 1 if a trial failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sections", nargs="*", help=f"{', '.join(COUNTS)}, optionally with =COUNT; default: all")
    parser.add_argument("--seed", type=int, default=0, help="seed of the campaign")
    parser.add_argument(
        "--work",
        type=Path,
        default=PROJECT / "runs" / "faults",
        help="folder of the results",
    )
    parser.add_argument("--record", action="store_true", help="write the figures into docs/reliability.md")
    options = parser.parse_args(argv)
    import sklearn.datasets  # noqa: F401 - imported here once, not in each forked process
    import torch

    import resnet_pl.cli.evaluate
    import resnet_pl.cli.parser
    import resnet_pl.cli.predict
    import resnet_pl.cli.train  # noqa: F401
    from tests.faults import checkpoints, configs, images, kills

    torch.set_num_threads(1)
    modules = {"kills": kills, "checkpoints": checkpoints, "configs": configs, "images": images}
    passed = True
    for word in options.sections or COUNTS:
        name, _, count = word.partition("=")
        if name not in COUNTS:
            parser.error(f"unknown section {name}; choose from {', '.join(COUNTS)}")
        rows = try_all(modules[name], name, int(count or COUNTS[name]), options.seed, options.work.resolve())
        section = format_section(modules[name], name, rows, options.seed)
        print(section)
        if options.record:
            record(PAGE, name, section)
        passed &= not any(row["failed"] for row in rows)
    return int(not passed)


if __name__ == "__main__":
    sys.exit(main())
