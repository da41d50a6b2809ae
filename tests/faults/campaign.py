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

What a run does when something goes wrong, and how that was tried. The figures below are written by
`tests/faults/campaign.py`: `make faults` makes all of them anew, and the test suite a few of each.

- **Killed, Ctrl-C, SIGTERM, SLURM's requeue signal, a full disk.** `fit --ckpt_path last` goes on, bitwise as if
  nothing had been. A checkpoint is whole or not there.
- **Several processes.** Each step sees the images that one process would see with the whole batch, and an evaluation
  every image once. They stop together; an error in one ends all, and what was learnt is kept. Told to stop within a
  validation, they stop after it: give a job's end as much time. BatchNorm measures each process's share of the batch by
  itself, so a net with it learns a little otherwise than in one process; on GPUs `--trainer.sync_batchnorm true`
  measures the batch as a whole.
- **A loss of NaN or infinity.** With `model.on_bad_loss: stop` the run ends at the next logging step and names the
  first such step, its learning rate, its images and the last good checkpoint: none is written of a net that has gone
  wrong. Nothing waits for the device in between.
- **… now and then.** With `model.on_bad_loss: skip` such a batch is left out, in all processes: weights, optimiser and
  running statistics stay as they were, and its images are named in `bad_batches.csv` of the run folder. Each step then
  waits for its loss. After 20 such batches in a row, or where the weights are not finite, the run ends.
- **Gradients that overflow half precision** (`16-mixed`, on a GPU). The scaler leaves the step out and lowers its
  scale; nothing stops. A scale that only falls ends the run, in words of its own, as does a loss that overflows. On a
  processor Lightning takes `bf16-mixed` instead.
- **An image that cannot be read**, or has vanished since the start. `data.on_bad_image: error` names it, `skip` leaves
  it out, counts it and lists it in `bad_images.txt` of the run folder; more than a tenth of the images (and more than
  ten) are no accident and end the run. `check-data FOLDER` finds all of them before.
- **The same run twice.** One seed gives the same losses bit for bit on a processor, with any number of workers;
  versions, devices, commit and a hash of the data in `sessions.json` tell what was another. On a GPU give
  `--trainer.deterministic true`: cuDNN looks for no faster algorithms and takes those that repeat, which can be slower.
  On a processor that changes no bit and costs nothing.

Not survived, and known:

- SIGKILL in the millisecond between an epoch's `last.ckpt` and its last row of `metrics.csv` loses that row, no step.
- Workers that torchrun has started anew sometimes look for each other at the old address, and need another restart.
- MixUp and CutMix find each image's partner in the process's own share of a batch: there several processes learn
  otherwise than one.
- No checksum tells of weights that were changed on purpose: such a checkpoint is read as it is.
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
             f"{machine}, commit {runs.commit()}."]  # fmt: skip
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
