"""Writes docs/results.md and README's table from finished runs.

    python docs/make_results.py runs/flowers-scratch/version_0 runs/cifar10/version_0
    python docs/make_results.py --study depth runs/depth

Each run, trained and tested, becomes a record in docs/results/ and a picture of its curves in docs/images/; a study is all
runs of a folder, such as a sweep's, as one record. The pages are then written anew from all records. Without arguments only
the pages are written.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))

from resnet_pl.analysis.curves import training_curves
from resnet_pl.reports.comparison import error_over_depth, group_runs, label_groups, markdown
from resnet_pl.reports.run_reader import PAPER_ITERATIONS, duration, read_run, read_runs
from resnet_pl.utils import UserError

HEAD = """# Results

Written by `python docs/make_results.py RUN …` from the runs' own files. Each row is one run (n = 1) unless it says
otherwise; test images were used for these tests alone, of the checkpoint that did best on the validation images, or of the last
where none are held out.
"""


def record(path: Path) -> dict[str, Any]:
    """What a run's files say of it; raises UserError where one is missing. Draws its curves."""
    run = read_run(path)
    training_curves({run.net: [run]}, DOCS / "images" / f"{run.config['name']}_curves.png")
    results = run.results
    return {
        "name": run.config["name"],
        "net": run.net,
        "data": run.data,
        "epochs": len(run.metrics["throughput/epoch_seconds"][0]),
        "iterations": run.iterations,
        "seconds": round(run.seconds),
        "images_per_second": round(run.images_per_second),
        "top1": results["top1"],
        "loss": results["loss"],
        "calibration_error": results["calibration_error"],
        "images": results["images"],
        "other_views": {
            other["protocol"]: other["top1"]
            for other in results.values()
            if isinstance(other, dict)
            and all(other.get(key) == results[key] for key in ("checkpoint", "data", "split"))
        },
        "checkpoint": f"{results['checkpoint']} of epoch {results['epoch'] + 1}",
        "seed": run.config["seed_everything"],
        "paper_error": run.paper_error,
        **{key: run.sessions[0][key] for key in ("command", "commit", "machine", "device", "versions")},
    }


def record_study(name: str, folder: Path) -> dict[str, Any]:
    """What the files of all runs below a folder say, seeds taken together; draws them."""
    runs, lines = read_runs([folder])
    for line in lines:
        print(line)
    groups = group_runs(runs)
    training_curves(label_groups(groups), DOCS / "images" / f"{name}_curves.png")
    error_over_depth(groups, DOCS / "images" / f"{name}_nets.png")
    sessions, log = [run.sessions[0] for run in runs], folder / "logs" / "sweep.log"
    return {
        "name": name,
        "runs": len(runs),
        "command": log.read_text(encoding="utf-8").splitlines()[0].removeprefix("$ ") if log.is_file() else None,
        "first": sessions[0]["command"],
        "rows": [group.row() for group in groups],
        "table": markdown(groups),
        "seconds": round(sum(run.seconds for run in runs)),
        **{key: _either(session[key] for session in sessions) for key in ("commit", "machine", "device")},
        "versions": sessions[0]["versions"],
    }


def _either(values: Iterable[Any]) -> str:
    return " or ".join(dict.fromkeys(map(str, values)))


def add(facts: dict[str, Any]) -> None:
    """Keeps a record."""
    text = json.dumps(facts, indent=2, ensure_ascii=False)
    (DOCS / "results" / f"{facts['name']}.json").write_text(text + "\n", encoding="utf-8")


def on(facts: dict[str, Any]) -> str:
    """What a record was made on and with."""
    versions = ", ".join(f"{package} {version}" for package, version in facts["versions"].items())
    return f"commit {facts['commit']}; {facts['device']} ({facts['machine']}); {versions}."


def study_section(facts: dict[str, Any]) -> str:
    """A study's part of the page."""
    name, rows, note = facts["name"], facts["rows"], DOCS / "results" / f"{facts['name']}.md"
    most = max(row["iterations"] for row in rows)
    short = ""
    if most < PAPER_ITERATIONS and any(row["paper"] for row in rows):
        short = (
            f"\nThe schedules are short: {most:,} iterations against the paper's {PAPER_ITERATIONS:,}. The errors are "
            "therefore far from the paper's; what can be compared is how the nets stand to one another.\n"
        )
    data = " and ".join(dict.fromkeys(row["data"] for row in rows))
    command = facts["command"] or f"# the first of {facts['runs']} like it\n{facts['first']}"
    return f"""
## {name}: {facts["runs"]} runs on {data}

```bash
{command}
```

{facts["table"]}
Mean ± standard deviation over n seeds (n − 1 in its denominator); training error of the augmented views, over the last epoch's worth of
iterations. {duration(facts["seconds"])} of training altogether; {on(facts)}
{short}
{note.read_text(encoding="utf-8") if note.is_file() else ""}
![Error over iterations](images/{name}_curves.png)

![Error of each net](images/{name}_nets.png)
"""


def section(facts: dict[str, Any]) -> str:
    """A run's part of the page."""
    name, note = facts["name"], DOCS / "results" / f"{facts['name']}.md"
    against = ""
    if facts.get("paper_error"):
        hours = facts["seconds"] / 3600 * PAPER_ITERATIONS / facts["iterations"]
        against = (
            f"\nThe paper reports {1 - facts['paper_error'] / 100:.2%} after {PAPER_ITERATIONS:,} iterations; "
            f"this run made {facts['iterations']:,}. At its speed the whole schedule takes {hours:.1f} hours.\n"
        )
    views = ", ".join(f"{views} {top1:.2%}" for views, top1 in facts.get("other_views", {}).items())
    views = f"\nThe same checkpoint looked at otherwise (`test --tta`): {views}.\n" if views else ""
    return f"""
## {name}: {facts["net"]} on {facts["data"]}

```bash
{facts["command"]}
```

| test top-1 | test images | loss | calibration error | epochs | iterations | training | images/s | seed |
|---|---|---|---|---|---|---|---|---|
| **{facts["top1"]:.2%}** | {facts["images"]:,} | {facts["loss"]:.4f} | {facts["calibration_error"]:.2%} | {facts["epochs"]} \
| {facts["iterations"]:,} | {duration(facts["seconds"])} | {facts["images_per_second"]:,} | {facts["seed"]} |

{facts["checkpoint"]}; {on(facts)}
{views}{against}
{note.read_text(encoding="utf-8") if note.is_file() else ""}
![Error over iterations](images/{name}_curves.png)
"""


def section_of(facts: dict[str, Any]) -> str:
    """A record's part of the page."""
    return study_section(facts) if "rows" in facts else section(facts)


def write_pages() -> None:
    """Writes the page of results and the table in README from all records."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((DOCS / "results").glob("*.json"))]
    (DOCS / "results.md").write_text(HEAD + "".join(map(section_of, records)), encoding="utf-8")
    readme = DOCS.parent / "README.md"
    before, rest = readme.read_text(encoding="utf-8").split("<!-- results:start -->\n")
    after = rest.split("<!-- results:end -->")[1]
    rows = [
        f"| {facts['net']} on {facts['data']} | {facts['epochs']} epochs, {duration(facts['seconds'])}, "
        f"{facts['device']} | {facts['top1']:.2%} |\n"
        for facts in records
        if "rows" not in facts
    ]
    text = f"{before}<!-- results:start -->\n{''.join(rows)}<!-- results:end -->{after}"
    readme.write_text(text, encoding="utf-8")


def main(args: list[str]) -> None:
    """Records what the command line names, then writes the pages."""
    if args[:1] == ["--study"]:
        if len(args) != 3:
            raise UserError("--study needs a name and a folder\nfor example --study depth runs/depth")
        add(record_study(args[1], Path(args[2])))
    else:
        for folder in map(Path, args):
            add(record(folder))
    write_pages()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
