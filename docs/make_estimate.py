"""Estimates a training on ImageNet from the records in docs/benchmarks.md; writes the table in docs/scale.md.

python docs/make_estimate.py
"""

from __future__ import annotations

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))

from benchmarks.report import fill_block, table

IMAGES, EPOCHS = 1_281_167, 90
GPUS = {1: 2_800, 8: 22_088, 16: 2 * 22_088}  # images/s
GPUS_PER_MACHINE, CORES_PER_GPU = 8, 12
FILE_BYTES, CACHED_BYTES = 138e9 / IMAGES, 256 * 341 * 3
DISK, NETWORK = 5e9, 10e9 / 8  # bytes/s of a machine
FOLDER, CACHE, STORE = "folder on a local SSD", "cache of decoded images on a local SSD", "chunks in an object store"
ASSUMPTIONS = f"""
Nothing in this table was run. It assumes:

- {IMAGES:,} images, {EPOCHS} epochs; files of {FILE_BYTES / 1000:.0f} kB (138 GB in all), cached with `cache_side: 256` as {CACHED_BYTES / 1000:.0f} kB.
- GPUs: ResNet-50 in mixed precision on H100 SXM5, {GPUS[1]:,} images/s on one and {GPUS[8]:,} on eight, as published in
  [lambdal/deeplearning-benchmark](https://github.com/lambdal/deeplearning-benchmark) (`pytorch-train-throughput-v2-fp16.csv`,
  079f30d). Two machines are twice as fast as one.
- CPU: {{folder:,.0f}} images/s per core from files, {{cache:,.0f}} from the cache and {{store:,.0f}} from chunks, as in
  [benchmarks.md](benchmarks.md); {CORES_PER_GPU} such cores per GPU, all of them for the loaders.
- Up to {GPUS_PER_MACHINE} GPUs in a machine, which reads {DISK / 1e9:.0f} GB/s from its SSDs and {NETWORK / 1e9:.1f} GB/s (10 Gbit/s) from the object store. Each machine
  has a copy of the folder or the cache; making it takes no time, and nothing stays in memory.
- Validation, start-up and checkpoints take no time.
"""


def read_rates(page: str) -> dict[str, float]:
    """Returns the recorded images/s per core by store; raises SystemExit if a record is missing."""
    try:
        loader = section(page, "Loader: synthetic JPEGs")
        stream = section(page, "Streaming: litdata chunks")
        folder, cache = loader["`ImageFileLoader`"], loader["`ImageFileLoader`, `cache: true`, `cache_side: 256`"]
        return {FOLDER: folder, CACHE: cache, STORE: folder * stream["`StreamedImages`"] / stream["`ImageFolder`"]}
    except (IndexError, KeyError) as error:
        raise SystemExit(
            f"docs/benchmarks.md lacks a record: run loader.py and streaming.py with --record ({error})"
        ) from error


def section(page: str, title: str) -> dict[str, float]:
    """Returns the first number of each row of a table."""
    text = page.split(f"## {title}\n")[1].split("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| `")
    ]
    return {name: float(value.split()[0].replace(",", "")) for name, value, *_ in rows}


def estimate(gpus: int, store: str, rate: float) -> list[str]:
    """Returns a row of the table: what the GPUs need, and what limits them.

    Args:
        gpus: number of GPUs.
        store: where the images are.
        rate: images/s that one core loads from there.
    """
    machines = -(-gpus // GPUS_PER_MACHINE)
    size = CACHED_BYTES if store == CACHE else FILE_BYTES
    bandwidth = NETWORK if store == STORE else DISK
    limits = {
        "GPU": GPUS[gpus],
        "CPU": gpus * CORES_PER_GPU * rate,
        "network" if store == STORE else "SSD": machines * bandwidth / size,
    }
    slowest = min(limits, key=lambda name: limits[name])
    speed = limits[slowest]
    cores, traffic = GPUS[gpus] / gpus / rate, GPUS[gpus] / machines * size / 1e9
    hours = IMAGES * EPOCHS / speed / 3600
    return [str(gpus), store, f"{cores:.1f}", f"{traffic:.2f}", f"{speed:,.0f}", f"{hours:.1f}", slowest]


def main() -> None:
    """Writes the block `estimate`."""
    rates = read_rates((DOCS / "benchmarks.md").read_text(encoding="utf-8"))
    head = ["GPUs", "Images", "Cores needed per GPU", "GB/s needed per machine", "Images/s", "Hours", "Limited by"]
    rows = [estimate(gpus, store, rate) for gpus in GPUS for store, rate in rates.items()]
    notes = ASSUMPTIONS.format(folder=rates[FOLDER], cache=rates[CACHE], store=rates[STORE])
    fill_block(DOCS / "scale.md", "estimate", f"{table(head, rows)}\n{notes.rstrip()}")


if __name__ == "__main__":
    main()
