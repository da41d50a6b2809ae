"""Tries faults by the thousand and writes docs/reliability.md: python tests/faults/campaign.py --record

Each trial is a pure function of section, number and seed; a campaign that was stopped goes on where it was.
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
# Before torch: a process that is forked must have no threads.
os.environ["OMP_NUM_THREADS"] = "1"

from resnet_pl import run_dir as runs  # noqa: E402
from resnet_pl.utils import progress  # noqa: E402

PAGE = PROJECT / "docs" / "reliability.md"
COUNTS = {"kills": 200, "checkpoints": 1000, "configs": 2000, "images": 200}
TITLES = {
    "kills": "Runs killed at random moments",
    "checkpoints": "Damaged and hostile checkpoints",
    "configs": "Spoilt configurations",
    "images": "Broken and unusual images",
}
HEAD = """# Reliability

What a run does when something goes wrong, and how that was tested. The figures below are written by
`tests/faults/campaign.py`: `make faults` produces all of them again, and the test suite runs a few cases of each
section.

- **Ctrl-C, SIGTERM, SLURM's signal.** The run finishes the optimizer step it is in, saves `last.ckpt` and ends with
  exit code 130 or 143; a SLURM job is requeued. A validation that has begun is finished first, so allow for its
  length at the end of a job. A second Ctrl-C ends the run at once and saves nothing.
- **SIGKILL, a power cut, a full disk, any exception.** Nothing is saved at that moment. State is saved only between
  two optimizer steps: at the end of an epoch, every 10 minutes within it (`checkpoint.every_minutes`), and after a
  number of steps if asked for (`checkpoint.every_n_steps`). What came after the last save is repeated. A checkpoint
  file is complete or absent: it is written beside the old one and renamed.
- **Resuming.** `fit --ckpt_path last` gives bit for bit the result of a run that was never stopped: weights,
  optimizer, schedule, averaged weights, best checkpoint, and every row of `metrics.csv` except the times. This holds
  for `last.ckpt`, and on a CPU or with `--trainer.deterministic true`. `best.ckpt` is written during a validation,
  which may lie between accumulated batches.
- **Several processes.** Each step sees the images that one process would see with the whole batch, and an evaluation
  sees every image once. A signal to any process stops all of them together, at the latest one step later; an error in
  one process ends all. BatchNorm uses each process's share of the batch, so a network with BatchNorm trains slightly
  differently than in one process; on GPUs `--trainer.sync_batchnorm true` uses the whole batch.
- **A loss of NaN or infinity.** The run ends at the next logging step, or before the next checkpoint is saved if that
  comes first. The message names the first such step, its learning rate, its images and the last good checkpoint;
  `bad_batches.csv` in the run folder lists all images of that batch. No checkpoint of a state that is not finite is
  saved. Nothing waits for the device between logging steps.
- **Gradients that overflow half precision** (`16-mixed`, on a GPU). The gradient scaler skips the step and lowers its
  scale; training continues. If the scale only falls, the run ends with a message of its own. On a CPU Lightning uses
  `bf16-mixed` instead.
- **An image that cannot be read**, or was removed after the start. `data.on_bad_image: error` stops and names it;
  `skip` leaves it out, counts it and lists it in `bad_images.txt` of the run folder. If more than a tenth of the
  images (and more than ten) cannot be read, the run ends. `check-data FOLDER` finds all of them beforehand.
- **The same run twice.** One seed gives the same losses bit for bit on a CPU, with any number of workers; versions,
  devices, commit and a hash of the data in `sessions.json` tell what was different. On a GPU use
  `--trainer.deterministic true`: cuDNN then selects deterministic algorithms, which can be slower. On a CPU it
  changes nothing and costs nothing.

Known limits:

- SIGKILL within the millisecond between an epoch's `last.ckpt` and that epoch's row of times in `metrics.csv` loses
  this row, but no step.
- SIGKILL while a checkpoint is being written leaves a hidden file `.last.ckpt.*` beside it, which can be deleted.
- Workers that torchrun has restarted sometimes look for each other at the old address, and need another restart.
- SIGTERM to one of several processes in the moment before the first step can abort it, and the others wait until their
  launcher ends them. Nothing is lost.
- MixUp and CutMix choose each image's partner within the process's own share of a batch: several processes train
  differently than one.
- Weights that were changed on purpose are not detected: no checksum covers them.
"""
# Why something is not survived, by words of it.
REASONS: dict[str, str] = {}


def try_all(section: ModuleType, name: str, count: int, seed: int, work: Path) -> list[dict[str, Any]]:
    """Makes the trials that have not been made yet; returns what was found in all of them."""
    log, folder = work / f"{name}-{seed}.jsonl", work / name
    folder.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    left = range(len(rows), count)
    if left:
        shutil.rmtree(folder)
        reference = section.prepare(folder / "reference")
    with progress(name, len(left)) as advance, log.open("a", encoding="utf-8") as file:
        for number in left:
            start = time.perf_counter()
            found = section.trial(reference, random.Random(f"{name} {seed} {number}"), folder / str(number))
            # Where it was tried is of no concern to the page.
            found["failed"] = found["failed"] and found["failed"].replace(f"{folder}/", "")
            found |= {"trial": number, "seconds": round(time.perf_counter() - start, 2)}
            rows.append(found)
            file.write(json.dumps(found) + "\n")
            file.flush()
            advance(1)
    shutil.rmtree(folder)
    return rows[:count]


def written(section: ModuleType, name: str, rows: Sequence[dict[str, Any]], seed: int) -> str:
    """The section of the page: command, figures, and what was not survived, with the reason."""
    failed = Counter(re.sub(r"\s+", " ", row["failed"]).strip() for row in rows if row["failed"])
    told = f"Tried: {len(rows):,}. Survived: {len(rows) - failed.total():,}."
    lost = ["", "Not survived:", ""] if failed else []
    for what, times in failed.most_common():
        reason = next((why for words, why in REASONS.items() if re.search(words, what)), "not mended yet")
        lost.append(f"- {times} × `{what.replace('`', '')[:400]}`: {reason}")
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
    command = f"python tests/faults/campaign.py {name}={len(rows)} --seed {seed} --record"
    lines = ["", f"## {TITLES[name]}", "", "```bash", command, "```", "", told, "", *section.summary(rows), *lost, "",
             f"{machine}, commit {runs.git_commit()}."]  # fmt: skip
    return "\n".join(lines) + "\n"


def record(page: Path, name: str, section: str) -> None:
    """Puts a section into the page, in place of an older one."""
    old = page.read_text(encoding="utf-8") if page.is_file() else ""
    sections = {each: found[0] for each, title in TITLES.items()
                if (found := re.search(rf"\n## {title}\n.*?(?=\n## |\Z)", old, re.DOTALL))}  # fmt: skip
    sections[name] = section.rstrip("\n") + "\n"
    page.write_text(HEAD + "".join(sections[each].rstrip("\n") + "\n" for each in TITLES if each in sections))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the sections asked for; 1 where something was not survived."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sections", nargs="*", help=f"{', '.join(COUNTS)}, each with =COUNT if wanted; all by default")
    parser.add_argument("--seed", type=int, default=0, help="another seed is another campaign")
    parser.add_argument(
        "--work", type=Path, default=PROJECT / "runs" / "faults", help="folder for what was found so far"
    )
    parser.add_argument("--record", action="store_true", help="write the figures into docs/reliability.md")
    options = parser.parse_args(argv)
    import sklearn.datasets  # noqa: F401 - once, here, and not in each process that is forked
    import torch

    import resnet_pl.cli.evaluate
    import resnet_pl.cli.parser
    import resnet_pl.cli.predict
    import resnet_pl.cli.train  # noqa: F401
    from tests.faults import checkpoints, configs, images, kills

    torch.set_num_threads(1)
    modules = {"kills": kills, "checkpoints": checkpoints, "configs": configs, "images": images}
    survived = True
    for word in options.sections or COUNTS:
        name, _, count = word.partition("=")
        if name not in COUNTS:
            parser.error(f"there is no section {name}")
        rows = try_all(modules[name], name, int(count or COUNTS[name]), options.seed, options.work.resolve())
        section = written(modules[name], name, rows, options.seed)
        print(section)
        if options.record:
            record(PAGE, name, section)
        survived &= not any(row["failed"] for row in rows)
    return int(not survived)


if __name__ == "__main__":
    sys.exit(main())
