"""The model card of `report`: Markdown with the front matter of Hugging Face."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resnet_pl.reports.run_report import RunReport
from resnet_pl.run_dir import to_yaml
from resnet_pl.utils import atomic_write, prog_name

MAX_CLASSES = 100  # rows of the table of classes
# Metric of Hugging Face for each of ours.
HUB_METRICS = {"top1": ("accuracy", "Top-1 accuracy"), "map": ("mAP", "mAP"), "f1_macro": ("f1", "Macro F1")}


def write_model_card(report: RunReport, path: Path) -> None:
    """Writes the card; raises UserError if `path` cannot be written."""
    parts = [_introduction, _results, _limits, _use, _data, _recipe]
    text = f"---\n{to_yaml(front_matter(report))}---\n\n" + "\n".join(part(report) for part in parts)
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def front_matter(report: RunReport) -> dict[str, Any]:
    """Returns the metadata that Hugging Face reads; results are fractions."""
    metrics = [
        {"type": kind, "name": name, "value": round(report.results[key], 6)}
        for key, (kind, name) in HUB_METRICS.items()
        if report.results.get(key) is not None
    ]
    kind = report.tested_data.split()[0]
    result = {
        "task": {"type": "image-classification", "name": "Image Classification"},
        "dataset": {"type": kind.lower(), "name": report.tested_data, "split": report.split},
        "metrics": metrics,
    }
    return {
        "license": "unknown",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "pytorch", "lightning", "resnet_pl"],
        "metrics": [metric["type"] for metric in metrics],
        "model-index": [{"name": report.name, "results": [result]}],
    }


def _introduction(report: RunReport) -> str:
    names = ", ".join(map(markdown_text, report.classes[:MAX_CLASSES]))
    more = f" and {len(report.classes) - MAX_CLASSES:,} more" if len(report.classes) > MAX_CLASSES else ""
    title, model, data = map(markdown_text, (report.name, report.model, report.data))
    return f"""# {title}

{model}, trained on {data}. It recognizes {len(report.classes):,} classes: {names}{more}.

The license of the weights is not known: set `license` at the top of this file before you publish them.
"""


def _results(report: RunReport) -> str:
    tested_on, checkpoint = markdown_text(report.tested_on), markdown_text(report.checkpoint)
    return f"""## Results

On {len(report.files):,} images: {tested_on}. One training run (n = 1); {checkpoint}.

{_table(["Metric", "Value", "95 % interval"], report.metric_rows())}
{_table(["Class", "Images", "Precision", "Recall", "F1"], report.class_rows()[:MAX_CLASSES])}"""


def _limits(report: RunReport) -> str:
    lines = [*map(markdown_text, report.calibration_texts())]
    if "accepted" not in report.calibration and report.found is None:
        count = len(report.classes)
        lines.append(f"The answer is always one of the {count:,} classes, also for images of anything else.")
    if report.split != "test":
        lines.append("There was no test set: these images have chosen the checkpoint, so the results are optimistic.")
    lines.append("The results hold for images like those of the test set. Other cameras and places can differ.")
    return "## Limits\n\n" + "".join(f"- {line}\n" for line in lines)


def _use(report: RunReport) -> str:
    return f"""## How to use it

```bash
{prog_name()} predict --ckpt_path best.ckpt --images photo.jpg
```

```python
from resnet_pl import load_model

model = load_model("best.ckpt")
print(model.predict("photo.jpg"))
```
"""


def _data(report: RunReport) -> str:
    data, tested = markdown_text(report.data), markdown_text(report.tested_data)
    text = f"## Data\n\nTrained on {data}, evaluated on {tested}.\n"
    if not report.counts:
        return text
    *rows, totals = report.count_rows()
    return f"{text}\n{_table(['Class', *report.counts], [*rows[:MAX_CLASSES], totals])}"


def _recipe(report: RunReport) -> str:
    return f"## Recipe\n\n{_table(['Option', 'Value'], report.settings())}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([markdown_text(cell) for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) if rows else ""


def markdown_text(text: str) -> str:
    """Returns a text that Markdown shows unchanged, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>|#~&$])", r"\\\1", " ".join(text.split()))
