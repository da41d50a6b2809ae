"""Writes docs/results.md and README's table from finished runs.

    python docs/make_results.py runs/flowers-scratch/version_0 runs/cifar10/version_0

Each run, trained and tested, becomes a record in docs/results/ and a picture of its curves in docs/images/; the
pages are then written anew from all records. Without arguments only the pages are written.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import yaml

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))

from resnet_pl.errors import UserError
from resnet_pl.reports.curves import training_curves
from resnet_pl.reports.results import read_results

HEAD = """# Results

Written by `python docs/make_results.py RUN …` from the runs' own files. Each row is one run (n = 1) unless it says
otherwise; test images were used once, for the checkpoint that did best on the validation images.
"""


# The paper's figure for a net and data set, and the iterations it took (§4.2, Table 6).
PAPER = {("cifar_resnet 20", "CIFAR10"): (0.9125, 64_000)}


def record(run: Path) -> dict[str, Any]:
    """What a run's files say of it; raises UserError where one is missing."""
    results = read_results(run / "results.json")
    sessions = json.loads((run / "sessions.json").read_text(encoding="utf-8"))
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    seconds = sum(float(row["epoch_seconds"]) for row in rows if row.get("epoch_seconds"))
    speeds = sorted(float(row["images_per_second"]) for row in rows if row.get("images_per_second"))
    backbone = config["model"]["backbone"]
    depth = (backbone.get("init_args") or {}).get("depth", "")
    return {
        "name": config["name"],
        "net": f"{backbone['class_path'].rsplit('.', 1)[-1]} {depth}".strip(),
        "data": config["data"]["class_path"].rsplit(".", 1)[-1],
        "epochs": sum(1 for row in rows if row.get("epoch_seconds")),
        "iterations": max(int(row["step"]) for row in rows) + 1,
        "seconds": round(seconds),
        "images_per_second": round(speeds[len(speeds) // 2]),
        "top1": results["top1"],
        "loss": results["loss"],
        "calibration_error": results["calibration_error"],
        "images": results["images"],
        "checkpoint": f"{results['checkpoint']} of epoch {results['epoch'] + 1}",
        "seed": config["seed_everything"],
        **{key: sessions[0][key] for key in ("command", "commit", "machine", "device", "versions")},
    }


def duration(facts: dict[str, Any]) -> str:
    """How long the training took, validation apart."""
    return f"{facts['seconds'] / 60:.0f} minutes" if facts["seconds"] >= 120 else f"{facts['seconds']} seconds"


def add(run: Path) -> None:
    """Keeps a run's record and draws its curves."""
    facts = record(run)
    text = json.dumps(facts, indent=2, ensure_ascii=False)
    (DOCS / "results" / f"{facts['name']}.json").write_text(text + "\n", encoding="utf-8")
    training_curves({facts["net"]: run}, DOCS / "images" / f"{facts['name']}_curves.png")


def section(facts: dict[str, Any]) -> str:
    """A run's part of the page."""
    name, note = facts["name"], DOCS / "results" / f"{facts['name']}.md"
    against = ""
    if (facts["net"], facts["data"]) in PAPER:
        top1, iterations = PAPER[facts["net"], facts["data"]]
        hours = facts["seconds"] / 3600 * iterations / facts["iterations"]
        against = (
            f"\nThe paper reports {top1:.2%} after {iterations:,} iterations; this run made {facts['iterations']:,}. "
            f"At its speed the whole schedule takes {hours:.1f} hours.\n"
        )
    versions = ", ".join(f"{package} {version}" for package, version in facts["versions"].items())
    return f"""
## {name}: {facts["net"]} on {facts["data"]}

```bash
{facts["command"]}
```

| test top-1 | test images | loss | calibration error | epochs | iterations | training | images/s | seed |
|---|---|---|---|---|---|---|---|---|
| **{facts["top1"]:.2%}** | {facts["images"]:,} | {facts["loss"]:.4f} | {facts["calibration_error"]:.2%} | {facts["epochs"]} \
| {facts["iterations"]:,} | {duration(facts)} | {facts["images_per_second"]:,} | {facts["seed"]} |

{facts["checkpoint"]}; commit {facts["commit"]}; {facts["device"]} ({facts["machine"]}); {versions}.
{against}
{note.read_text(encoding="utf-8") if note.is_file() else ""}
![Error over iterations](images/{name}_curves.png)
"""


def write_pages() -> None:
    """Writes the page of results and the table in README from all records."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((DOCS / "results").glob("*.json"))]
    (DOCS / "results.md").write_text(HEAD + "".join(section(facts) for facts in records), encoding="utf-8")
    readme = DOCS.parent / "README.md"
    before, rest = readme.read_text(encoding="utf-8").split("<!-- results:start -->\n")
    after = rest.split("<!-- results:end -->")[1]
    rows = [
        f"| {facts['net']} on {facts['data']} | {facts['epochs']} epochs, {duration(facts)}, "
        f"{facts['device']} | {facts['top1']:.2%} |\n"
        for facts in records
    ]
    text = f"{before}<!-- results:start -->\n{''.join(rows)}<!-- results:end -->{after}"
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    try:
        for folder in sys.argv[1:]:
            add(Path(folder))
        write_pages()
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
