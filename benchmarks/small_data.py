"""Training from scratch on few photos: several optimizers and seeds on a balanced subset of any folder of photos.

python benchmarks/small_data.py --root data/flower_photos
"""

from __future__ import annotations

import json
import random
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.report import MeasurementCache, command, git_commit, make_parser, report, table
from resnet_pl.cli import main as cli

# Options of `fit` by name, added to configs/folder.yaml.
SETTINGS = {
    "SGD, lr 0.05": ["--model.optimizer.lr", "0.05"],
    "SGD, lr 0.01": ["--model.optimizer.lr", "0.01"],
    "AdamW, lr 0.001": ["--model.optimizer", "AdamW", "--model.optimizer.lr", "0.001"],
    "AdamW, lr 0.0003": ["--model.optimizer", "AdamW", "--model.optimizer.lr", "0.0003"],
    "SGD, lr 0.05, 5 epochs of warm-up": ["--model.optimizer.lr", "0.05", "--model.schedule.warmup", "5"],
}
NOTE = """
ResNet-18 from random weights, with the other settings of `configs/folder.yaml`. The classes have the same number of
images. Accuracy is on the test images, of the checkpoint with the best validation accuracy.
"""


def write_subset(root: Path, folder: Path, sizes: dict[str, int]) -> None:
    """Copies random images of every class into the folders of the splits; the same ones in each call.

    Args:
        root: folder with one folder per class.
        folder: receives train/, val/ and test/ with one folder per class each.
        sizes: number of images of each split, of all classes together.
    """
    classes = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    for source in classes:
        images = sorted(path for path in source.iterdir() if path.is_file() and not path.name.startswith("."))
        random.Random(source.name).shuffle(images)
        for split, size in sizes.items():
            (target := folder / split / source.name).mkdir(parents=True)
            count = size // len(classes)
            if len(images) < count:
                raise SystemExit(f"{source} has too few images")
            for image in images[:count]:
                shutil.copy(image, target)
            images = images[count:]


def measure(photos: Path, setting: str, seed: int, epochs: int, extra: Sequence[str]) -> float:
    """Trains and tests with one setting and one seed; returns test top-1."""
    with tempfile.TemporaryDirectory() as folder:
        config = str(Path(__file__).parent.parent / "configs" / "folder.yaml")
        words = ["--config", config, "--data.root", str(photos), "--model.weights", "null", "--data.image_size", "64"]
        words += ["--trainer.max_epochs", str(epochs), "--seed_everything", str(seed)]
        words += ["--data.cache", "true", "--data.cache_dir", str(photos.parent / "cache")]
        words += ["--trainer.default_root_dir", folder, *SETTINGS[setting], *extra]
        if cli.main(["fit", *words]):
            raise SystemExit("training failed")
        run = Path(folder) / "folder" / "version_0"
        if cli.main(["test", "--ckpt_path", str(run)]):
            raise SystemExit("testing failed")
        return json.loads((run / "results.json").read_text())["top1"]


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and reports."""
    argv = sys.argv[1:] if argv is None else argv
    parser = make_parser(__doc__)
    parser.add_argument("--root", type=Path, required=True, help="folder with one folder of photos per class")
    for split, size in {"train": 240, "val": 60, "test": 300}.items():
        parser.add_argument(f"--{split}", type=int, default=size, help=f"number of {split} images")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0")
    parser.add_argument("--epochs", type=int, default=60, help="epochs of each run")
    parser.add_argument("--only", nargs="*", default=list(SETTINGS), choices=SETTINGS, help="settings to measure")
    parser.add_argument("--state", type=Path, help="file for the result of each run; interrupted measurements resume")
    options, extra = parser.parse_known_args(argv)
    sizes = {split: getattr(options, split) for split in ("train", "val", "test")}
    cache = MeasurementCache(
        options.state, f"{options.root} {sizes} {options.epochs} {' '.join(extra)}, {git_commit()}"
    )
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / "photos"
        write_subset(options.root, photos, sizes)
        for setting in options.only:
            one = partial(measure, photos, setting, epochs=options.epochs, extra=extra)
            top1 = [cache(f"{setting}, seed {seed}", partial(one, seed=seed)) for seed in range(options.seeds)]
            spread = f" ± {statistics.stdev(top1):.1%}" if len(top1) > 1 else ""
            rows.append([setting, f"{statistics.mean(top1):.1%}{spread}", len(top1)])
    title = f"Training from scratch on {options.train} photos of {options.root.name}, {options.epochs} epochs"
    body = table(["Optimizer", "Test top-1", "Seeds"], rows) + "\n" + NOTE.rstrip()
    report(title, command(__file__, argv), body, options.record)


if __name__ == "__main__":
    main()
