"""Records of trained and tested runs: one record for all seeds of a training, its section of a page, its row of README."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from resnet_pl.reports.run_groups import flatten_config
from resnet_pl.reports.run_reader import PAPER_ITERATIONS, Run, duration
from resnet_pl.run_dir import get_init_args
from resnet_pl.utils import UserError

TABLE_HEAD = "| Model and dataset | Training | Test accuracy (top-1) | n |\n|---|---|---|---|\n"
# What differs between the seeds of one training, with its value.
OWN_OPTIONS = re.compile(r" --(?:seed_everything|name)[= ](?:'[^']*'|\S+)")
# Options that name folders of one machine; they do not change the training.
FOLDERS = re.compile(r" --(?:data\.root|trainer\.default_root_dir)[= ](?:'[^']*'|\S+)")


def run_entry(run: Run) -> dict[str, Any]:
    """Returns what is recorded of a run; raises UserError if it was not tested on a test set."""
    results = run.results
    if results.get("split") != "test":
        raise UserError(f"{run.path} was not tested on a test set\nrun test, with data that has a test set")
    same = ("checkpoint", "data", "split")
    others = [other for other in results.values() if isinstance(other, dict)]
    return {
        "seed": run.config["seed_everything"],
        "epochs": len(run.metrics["throughput/epoch_seconds"][0]),
        "iterations": run.iterations,
        "seconds": round(run.seconds),
        "images_per_second": round(run.images_per_second),
        "top1": results["top1"],
        "loss": results["loss"],
        "calibration_error": results["calibration_error"],
        "images": results["images"],
        "other_views": {
            other["protocol"]: other["top1"] for other in others if all(other.get(key) == results[key] for key in same)
        },
        "checkpoint": f"{results['checkpoint']} of epoch {results['epoch'] + 1}",
        "command": FOLDERS.sub("", run.sessions[0]["command"]),
        **{key: run.sessions[0][key] for key in ("commit", "machine", "device", "versions")},
        "config": config_digest(run.config),
    }


def config_digest(config: Mapping[str, Any]) -> str:
    """Returns a digest of the settings that decide the result. A record counts while its command has the same ones."""
    flat = {key: value for key, value in flatten_config(config).items() if key != "ckpt_path"}
    return hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()[:16]


def add_run(record: dict[str, Any], run: Run) -> dict[str, Any]:
    """Returns the record of a training with one more run, which replaces an older one of the same seed.

    Args:
        record: the record of the same name; empty if there is none. Its runs with other options are removed.
        run: the run.
    """
    entry = run_entry(run)
    kept = [each for each in record.get("runs", []) if _training(each["command"]) == _training(entry["command"])]
    runs = [*(each for each in kept if each["seed"] != entry["seed"]), entry]
    return {
        "name": run.config["name"],
        "model": run.model,
        "data": run.data,
        "weights": initial_weights(run.config),
        "paper_error": run.paper_error,
        "runs": sorted(runs, key=lambda each: each["seed"]),
    }


def _training(command: str) -> str:
    """The command without what may differ between the seeds of a training."""
    return OWN_OPTIONS.sub("", command)


def initial_weights(config: Mapping[str, Any]) -> str | None:
    """Returns the pretrained weights of a training: of a checkpoint the name of its run; None from scratch."""
    weights = get_init_args(config["model"]).get("weights")
    checkpoint = re.search(r"([^/]+)/version_\d+/checkpoints/", weights or "")
    return checkpoint[1] if checkpoint else weights


def title(record: dict[str, Any]) -> str:
    """Returns the model and the dataset in their usual spelling, for example `ResNet-20 on CIFAR-10`."""
    model = re.sub(r"^(?:cifar_)?resnet ?(?=\d)", "ResNet-", record["model"])
    return f"{model} on {re.sub(r'^CIFAR(?=10)', 'CIFAR-', record['data'])}"


def full_title(record: dict[str, Any]) -> str:
    """Returns the title and the pretrained weights, if the training started from some."""
    # Older records have no such key; their runs started from scratch.
    weights = record.get("weights")
    return title(record) + (f", from the weights of `{weights}`" if weights else "")


def device(entry: dict[str, Any]) -> str:
    """Returns what a run was trained on, for example `CPU, 2 threads`."""
    return re.sub(r"\b1 threads", "1 thread", re.sub(r"^1 × cpu", "CPU", entry["device"]))


def environment(entry: dict[str, Any]) -> str:
    """Returns the commit, the hardware and the package versions of a run or study."""
    versions = ", ".join(f"{package} {version}" for package, version in entry["versions"].items())
    return f"commit {entry['commit']}; {device(entry)} ({entry['machine']}); {versions}."


def data_note(record: dict[str, Any]) -> str:
    """Returns what a reader must know about the images, as a line; empty if they are the official ones."""
    return f"\nData: {record['data_note']}.\n" if "data_note" in record else ""


def accuracy(values: Sequence[float]) -> str:
    """Returns the mean of fractions in per cent, with the sample standard deviation of several values."""
    if len(values) == 1:
        return f"{values[0]:.2%}"
    return f"{100 * mean(values):.2f} ± {100 * stdev(values):.2f}%"


def section(record: dict[str, Any], note: str) -> str:
    """Returns the section of a training.

    Args:
        record: the record.
        note: text about it, in Markdown; may be empty.
    """
    name, runs = record["name"], record["runs"]
    head = "| seed | test top-1 | loss | calibration error | epochs | iterations | training | images/s | checkpoint |"
    rows = "".join(
        f"| {run['seed']} | {run['top1']:.2%} | {run['loss']:.4f} | {run['calibration_error']:.2%} | {run['epochs']} "
        f"| {run['iterations']:,} | {duration(run['seconds'])} | {run['images_per_second']:,} | {run['checkpoint']} |\n"
        for run in runs
    )
    several = f", mean ± sample standard deviation of {len(runs)} seeds" if len(runs) > 1 else " (n = 1)"
    top1 = accuracy([run["top1"] for run in runs])
    places = "\n".join(dict.fromkeys(environment(run)[0].upper() + environment(run)[1:] for run in runs))
    return f"""
## {name}: {full_title(record)}

```bash
{runs[0]["command"]}
```

Test top-1 on {runs[0]["images"]:,} images{several}: **{top1}**

{head}
{"|---" * head.count(" | ")}|---|
{rows}
{places}
{data_note(record)}{_other_views(runs)}{_paper(record)}
{note}
![Error over iterations](images/{name}_curves.png)
"""


def _other_views(runs: Iterable[dict[str, Any]]) -> str:
    """The accuracies with test-time augmentation, as a paragraph."""
    views: dict[str, list[float]] = {}
    for run in runs:
        for protocol, top1 in run["other_views"].items():
            views.setdefault(protocol, []).append(top1)
    listed = ", ".join(f"{protocol} {accuracy(values)}" for protocol, values in views.items())
    return f"\nTop-1 of the same checkpoints with test-time augmentation (`test --tta`): {listed}.\n" if views else ""


def _paper(record: dict[str, Any]) -> str:
    """The result of the paper, as a paragraph."""
    if not record["paper_error"]:
        return ""
    run = record["runs"][0]
    text = f"The paper reports {1 - record['paper_error'] / 100:.2%} after {PAPER_ITERATIONS:,} iterations."
    if run["iterations"] < PAPER_ITERATIONS:
        hours = run["seconds"] / 3600 * PAPER_ITERATIONS / run["iterations"]
        who, its = ("These runs", "their") if len(record["runs"]) > 1 else ("This run", "its")
        text += f" {who} performed {run['iterations']:,}. At {its} speed the full schedule takes {hours:.1f} hours."
    return f"\n{text}\n"


def readme_rows(records: Iterable[dict[str, Any]]) -> str:
    """Returns the rows of the table in README, those of the most runs first."""
    return "".join(map(_readme_row, sorted(records, key=_support)))


def _support(record: dict[str, Any]) -> tuple[int, str]:
    return -len(record["runs"]), full_title(record)


def _readme_row(record: dict[str, Any]) -> str:
    runs, typical = record["runs"], record["runs"][0]
    epochs = f"{typical['epochs']} epochs"
    paper = ""
    if record["paper_error"] and typical["iterations"] < PAPER_ITERATIONS:
        epochs += f" ({typical['iterations'] / PAPER_ITERATIONS:.0%} of the paper's schedule)"
    elif record["paper_error"]:
        epochs += " (the paper's schedule)"
        paper = f" (paper: {1 - record['paper_error'] / 100:.2%})"
    seconds = mean(run["seconds"] for run in runs)
    note = f" ({record['data_note'].partition(';')[0]})" if "data_note" in record else ""
    top1 = accuracy([run["top1"] for run in runs])
    return f"| {full_title(record)}{note} | {epochs}, {duration(seconds)}, {device(typical)} | {top1}{paper} | {len(runs)} |\n"
