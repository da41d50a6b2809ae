"""Test accuracy and training time of a configuration, over several seeds: python benchmarks/accuracy.py"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from benchmarks.report import MeasurementCache, command, git_commit, make_parser, report, table
from resnet_pl.cli import main as cli

NOTE = """
Accuracy is on the test set, of the checkpoint with the best validation accuracy, or of the last one without a
validation set. The training time includes start-up and validation; later seeds reuse the imported modules and the cache
of `torch.compile`.
"""


def measure(config: str, seed: int, tta: str, extra: Sequence[str]) -> list[float]:
    """Trains and tests with one seed; returns test top-1 and the training time in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        run_options = ["--trainer.default_root_dir", folder, "--name", "seed"]
        start = time.perf_counter()
        if cli.main(["fit", "--config", config, "--seed_everything", str(seed), *run_options, *extra]):
            raise SystemExit("training failed")
        seconds = time.perf_counter() - start
        run = Path(folder) / "seed" / "version_0"
        best, last = (run / "checkpoints" / name for name in ("best.ckpt", "last.ckpt"))
        if cli.main(["test", "--ckpt_path", str(best if best.exists() else last), "--tta", tta]):
            raise SystemExit("testing failed")
        return [json.loads((run / "results.json").read_text())["top1"], seconds]


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and reports."""
    argv = sys.argv[1:] if argv is None else argv
    parser = make_parser(__doc__)
    parser.add_argument("--config", default="configs/digits.yaml", help="configuration to train")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, from 0")
    parser.add_argument("--tta", default="none", help="test-time augmentation, as for `test`")
    parser.add_argument("--state", type=Path, help="file for the result of each seed; an interrupted run resumes")
    options, extra = parser.parse_known_args(argv)
    cache = MeasurementCache(options.state, f"{options.config} {options.tta} {' '.join(extra)}, {git_commit()}")
    one = partial(measure, options.config, tta=options.tta, extra=extra)
    results = [cache(f"seed {seed}", partial(one, seed=seed)) for seed in range(options.seeds)]
    scores, times = zip(*results, strict=True)
    rows = [[seed, f"{top1:.2%}", f"{seconds:.1f}"] for seed, (top1, seconds) in enumerate(results)]
    spread = ""
    if len(rows) > 1:
        spread = f"{statistics.mean(scores):.2%} ± {statistics.stdev(scores):.2%}"
        rows.append(["mean", spread, f"{statistics.mean(times):.1f} ± {statistics.stdev(times):.1f}"])
    title = f"Accuracy: `{options.config}` with several seeds"
    body = table(["Seed", "Test top-1", "Training time (s)"], rows) + "\n" + NOTE.rstrip()
    # The targets are for a GPU, and for the unchanged configuration, compiled or not.
    how = {"": "", "--model.compile true": ", compiled"}.get(" ".join(extra))
    on_gpu = torch.cuda.is_available() and how is not None and len(results) > 1
    name = "/".join(Path(options.config).parts[-2:])
    measured = {name: f"{statistics.mean(times):.1f} s, {spread}, n = {len(results)}{how}"} if on_gpu else {}
    report(title, command(__file__, argv), body, options.record, measured)


if __name__ == "__main__":
    main()
