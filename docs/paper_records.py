"""Records of `python docs/make_results.py --paper NAME`: the command's plot, its values, and a table of them."""

from __future__ import annotations

import csv
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.report import reproducible, table
from resnet_pl.cli import main as cli
from resnet_pl.reports.run_reader import read_run

# Titles of the sections.
STUDIES = {
    "lesion": "errors without residual blocks (arXiv:1605.06431)",
    "shattering": "autocorrelation of input gradients at initialization (arXiv:1702.08591)",
}


def paper_record(name: str, options: list[str], docs: Path) -> dict[str, Any]:
    """Runs `paper NAME`; returns its record, and keeps its plot in images/ and its values in results/ of a folder."""
    words = ["paper", name, *options]
    with tempfile.TemporaryDirectory() as folder:
        if cli.main([*words, "--output", folder]):
            raise SystemExit(1)
        Image.open(Path(folder, f"{name}.png")).quantize(128).save(docs / "images" / f"{name}.png", optimize=True)
        shutil.copy(Path(folder, f"{name}.csv"), docs / "results" / f"{name}.csv")
    with (docs / "results" / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    body = (lesion_table if name == "lesion" else shattering_table)(rows)
    return {"name": name, "paper": True, "body": reproducible(["python", "cli.py", *words], body)}


def lesion_table(rows: list[dict[str, str]]) -> str:
    """Returns the errors of each network by the number of deleted blocks, and how it was trained."""
    groups: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["deleted"]), []).append(float(row["error"]))
    lines = [
        [*key, len(each), *(f"{value:.2f}" for value in (statistics.mean(each), min(each), max(each)))]
        for key, each in groups.items()
    ]
    facts = []
    for model, checkpoint, images in dict.fromkeys(
        (row["model"], row["checkpoint"], row["measured_on"]) for row in rows
    ):
        run = read_run(Path(checkpoint).parent.parent)
        epochs = len(run.metrics["throughput/epoch_seconds"][0])
        facts.append(f"{model}: {epochs} epochs, seed {run.config['seed_everything']}, n = 1; {images}.")
    head = ["Network", "Deleted blocks", "Choices", "Mean error (%)", "Lowest", "Highest"]
    return "\n".join([table(head, lines), "", *facts])


def shattering_table(rows: list[dict[str, str]]) -> str:
    """Returns the autocorrelation of each network at some lags."""
    lags: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        lags.setdefault((row["network"], row["layers"]), {})[row["lag"]] = (
            f"{round(float(row['autocorrelation']), 2) + 0:.2f}"
        )
    shown = ("1", "5", "15")
    lines = [[kind, "–" if layers == "0" else layers, *map(each.get, shown)] for (kind, layers), each in lags.items()]
    head = ["Network", "Layers", *(f"Lag {lag}" for lag in shown)]
    return f"{table(head, lines)}\n\nMeans over {rows[0]['initializations']} initializations."
