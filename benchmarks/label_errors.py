"""Plants wrong labels in a folder of photos, and measures how many `report` finds.

python benchmarks/label_errors.py --root data/flower_photos
"""

from __future__ import annotations

import csv
import random
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import chdir
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from PIL import Image

from benchmarks.report import PROJECT, command, fill_block, make_parser, reproducible, table
from resnet_pl.cli import main as cli
from resnet_pl.reports.label_errors import find_label_errors, read_out_of_fold

PAGE = PROJECT / "docs" / "understand.md"
# Precision, recall and the number of photos of each list.
Rates = dict[str, list[float]]
# Added to configs/folder.yaml: minutes on a CPU.
TRAINING = [
    *["--model.weights", "null", "--model.backbone", "cifar_resnet", "--model.backbone.depth", "14"],
    *["--model.optimizer.lr", "0.1", "--model.optimizer.weight_decay", "0.0005"],
    *["--data.image_size", "32", "--data.batch_size", "64", "--data.crop", "RandomResizedCrop"],
    *["--data.crop.min_area", "0.25", "--data.num_workers", "0", "--trainer.max_epochs", "12"],
]
NOTE = """
In each seed, {share:.0%} of the labels, {count}, are replaced by another class. `cross-validate` predicts every photo
with a network that has not seen it: ResNet-14 for CIFAR, random weights, 32 × 32 pixels, 12 epochs, {folds} folds; it
predicts {accuracy} of all labels. Recall is the share of the replaced labels that are in the list,
precision the share of the list whose label was replaced. "Its first photos" are as many as labels were replaced. Wrong
labels that the photos had before count as false, so precision is a lower bound.
"""


def plant(root: Path, folder: Path, share: float, seed: int, size: int = 40) -> set[str]:
    """Copies photos, shrunk, and moves some into the folder of another class.

    Args:
        root: folder with one folder per class.
        folder: receives one folder per class.
        share: share of the photos with a wrong label.
        seed: seed of the choice.
        size: shorter side of the copies, pixels.

    Returns:
        The paths of the moved photos, relative to `folder`.
    """
    classes = sorted(path.name for path in root.iterdir() if path.is_dir())
    photos = [path for name in classes for path in sorted((root / name).iterdir()) if path.suffix == ".jpg"]
    rng = random.Random(seed)
    wrong = set(rng.sample(range(len(photos)), round(share * len(photos))))
    moved = set()
    for name in classes:
        (folder / name).mkdir(parents=True)
    for number, photo in enumerate(photos):
        label = photo.parent.name
        if number in wrong:
            label = rng.choice([name for name in classes if name != label])
            moved.add(f"{label}/{photo.name}")
        with Image.open(photo) as image:
            scale = size / min(image.size)
            small = image.convert("RGB").resize([max(size, round(side * scale)) for side in image.size])
        small.save(folder / label / photo.name, quality=92)
    return moved


def measure(root: Path, folder: Path, share: float, seed: int, folds: int, extra: Sequence[str]) -> tuple[Rates, float]:
    """Plants errors, cross-validates and searches in a folder; a run that was interrupted resumes there."""
    folder.mkdir(parents=True, exist_ok=True)
    with chdir(folder):
        shutil.rmtree("photos", ignore_errors=True)
        planted = plant(root, Path("photos"), share, seed)
        words = ["--data.root", "photos", "--data.test_split", "0", *TRAINING, "--seed_everything", str(seed), *extra]
        config = str(PROJECT / "configs" / "folder.yaml")
        if cli.main(["cross-validate", "--config", config, "--folds", str(folds), "--", *words]):
            raise SystemExit("training failed")
        rows = read(Path("runs/folds/out_of_fold.csv"))
        classes = sorted(path.name for path in Path("photos").iterdir())
        probabilities = np.stack([*read_out_of_fold(Path("runs/folds"), classes).values()])
    labels = np.array([classes.index(row["truth"]) for row in rows])
    listed = [rows[error.position]["file"] for error in find_label_errors(labels, probabilities)]
    differs = [row["file"] for row in rows if row["prediction"] != row["truth"]]
    first = listed[: len(planted)]
    accuracy = 1 - len(differs) / len(rows)
    lists = {
        "label_errors.csv": listed,
        "its first 50 photos": listed[:50],
        "its first photos": first,
        "prediction differs from label": differs,
    }
    return {name: rates(files, planted) for name, files in lists.items()}, accuracy


def read(path: Path) -> list[dict[str, str]]:
    """Returns the rows of a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def rates(listed: Sequence[str], planted: set[str]) -> list[float]:
    """Returns precision, recall and the number of listed photos."""
    found = len(planted.intersection(listed))
    return [found / max(1, len(listed)), found / len(planted), len(listed)]


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and reports."""
    argv = sys.argv[1:] if argv is None else argv
    parser = make_parser(__doc__)
    parser.add_argument("--root", type=Path, required=True, help="folder with one folder of photos per class")
    parser.add_argument("--share", type=float, default=0.05, help="share of the labels that are replaced")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0")
    parser.add_argument("--folds", type=int, default=3, help="number of folds")
    parser.add_argument("--work", type=Path, help="folder for the runs; with it, an interrupted measurement resumes")
    options, extra = parser.parse_known_args(argv)
    root = options.root.resolve()
    with tempfile.TemporaryDirectory() as temporary:
        work = (options.work or Path(temporary)).resolve()
        results = [
            measure(root, work / f"seed{seed}", options.share, seed, options.folds, extra)
            for seed in range(options.seeds)
        ]
    rows = []
    for name in results[0][0]:
        precision, recall, listed = ([rates[name][column] for rates, _ in results] for column in range(3))
        rows.append([name, f"{statistics.mean(listed):.0f}", spread(precision), spread(recall), len(results)])
    count = sum(1 for _ in root.glob("*/*.jpg"))
    replaced, accuracy = round(options.share * count), spread([accuracy for _, accuracy in results])
    note = NOTE.format(share=options.share, folds=options.folds, count=f"{replaced:,}", accuracy=accuracy)
    body = table(["List", "Photos", "Precision", "Recall", "Seeds"], rows) + "\n" + note.rstrip()
    text = reproducible(command(__file__, argv), body)
    print(text)
    if options.record:
        fill_block(PAGE, "label-errors", text)


def spread(values: Sequence[float]) -> str:
    """Returns the mean of fractions and, of several, their standard deviation."""
    more = f" ± {statistics.stdev(values):.1%}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1%}{more}"


if __name__ == "__main__":
    main()
