"""Effect of scaled decoding on the test accuracy, paired by seed: python benchmarks/scaled_decoding.py"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.accuracy import measure
from benchmarks.report import MeasurementCache, command, git_commit, make_parser, report, table

CONFIG = "configs/flowers-scratch.yaml"
SMALL = ["--model.backbone", "cifar_resnet", "--model.backbone.depth", "8", "--data.image_size", "64"]
NOTE = """
ResNet-8 from scratch on the flowers at 64 × 64 pixels, where most training crops are decoded at a half of the size.
The runs of a row have the same seed: the same weights, order and crops. Accuracy is on the test set, of the checkpoint
with the best validation accuracy. The difference is in percentage points, with its standard deviation.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and reports."""
    argv = sys.argv[1:] if argv is None else argv
    parser = make_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0")
    parser.add_argument("--epochs", type=int, default=10, help="length of each training")
    parser.add_argument("--config", default=CONFIG, help="configuration to train")
    parser.add_argument("--state", type=Path, help="file for the result of each run; an interrupted benchmark resumes")
    options, extra = parser.parse_known_args(argv)
    extra = [*SMALL, "--trainer.max_epochs", str(options.epochs), *extra]
    cache = MeasurementCache(options.state, f"{options.config} {' '.join(extra)}, {git_commit()}")
    rows, differences = [], []
    for seed in range(options.seeds):
        scores = []
        for value in ("false", "true"):
            words = [*extra, "--data.scaled_decoding", value]
            one = partial(measure, options.config, seed, "none", words)
            scores.append(cache(f"seed {seed}, scaled_decoding {value}", one)[0])
        differences.append(100 * (scores[1] - scores[0]))
        rows.append([seed, *(f"{score:.2%}" for score in scores), f"{differences[-1]:+.2f}"])
    if len(rows) > 1:
        spread = f"{statistics.mean(differences):+.2f} ± {statistics.stdev(differences):.2f}"
        rows.append(["mean", "", "", spread])
    head = ["Seed", "Test top-1, full decoding", "Test top-1, scaled decoding", "Difference"]
    report(
        "Accuracy with scaled decoding",
        command(__file__, argv),
        table(head, rows) + "\n" + NOTE.rstrip(),
        options.record,
    )


if __name__ == "__main__":
    main()
