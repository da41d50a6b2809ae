"""How well, and how fast, a configuration does with each of several seeds: python benchmarks/accuracy.py"""

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

from benchmarks.report import Kept, arguments, command, commit, report, table
from resnet_pl.cli import main as cli

NOTE = """
Test images; seconds of the whole training, its start and validations included, imports and compilation's cache not
emptied between seeds. Tested is the best checkpoint by validation, or the last where no images are held out.
"""


def measure(config: str, seed: int, tta: str, extra: Sequence[str]) -> list[float]:
    """Trains and tests with a seed; returns test top-1 and the seconds of training."""
    with tempfile.TemporaryDirectory() as folder:
        where = ["--trainer.default_root_dir", folder, "--name", "seed"]
        start = time.perf_counter()
        if cli.main(["fit", "--config", config, "--seed_everything", str(seed), *where, *extra]):
            raise SystemExit("training failed")
        seconds = time.perf_counter() - start
        run = Path(folder) / "seed" / "version_0"
        best, last = (run / "checkpoints" / name for name in ("best.ckpt", "last.ckpt"))
        if cli.main(["test", "--ckpt_path", str(best if best.exists() else last), "--tta", tta]):
            raise SystemExit("testing failed")
        return [json.loads((run / "results.json").read_text())["top1"], seconds]


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and tells."""
    argv = sys.argv[1:] if argv is None else argv
    parser = arguments(__doc__)
    parser.add_argument("--config", default="configs/digits.yaml", help="what is trained")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, from 0")
    parser.add_argument("--tta", default="none", help="as `test` has them")
    parser.add_argument("--state", type=Path, help="file that keeps each seed's figures: what was stopped goes on")
    options, extra = parser.parse_known_args(argv)
    kept = Kept(options.state, f"{options.config} {options.tta} {' '.join(extra)}, {commit()}")
    one = partial(measure, options.config, tta=options.tta, extra=extra)
    found = [kept(f"seed {seed}", partial(one, seed=seed)) for seed in range(options.seeds)]
    scores, times = zip(*found, strict=True)
    rows = [[seed, f"{top1:.2%}", f"{seconds:.1f}"] for seed, (top1, seconds) in enumerate(found)]
    if len(rows) > 1:
        spread = f"{statistics.mean(scores):.2%} ± {statistics.stdev(scores):.2%}"
        rows.append(["mean", spread, f"{statistics.mean(times):.1f} ± {statistics.stdev(times):.1f}"])
    title = f"Accuracy: `{options.config}` with several seeds"
    body = table(["seed", "test top-1", "seconds"], rows) + "\n" + NOTE.rstrip()
    # The targets are of a GPU, and of the files as they are, or compiled.
    how = {"": "", "--model.compile true": ", compiled"}.get(" ".join(extra))
    gpu = torch.cuda.is_available() and how is not None and len(found) > 1
    name = "/".join(Path(options.config).parts[-2:])
    reached = {name: f"{statistics.mean(times):.1f} s, {spread}, n = {len(found)}{how}"} if gpu else {}
    report(title, command(__file__, argv), body, options.record, reached)


if __name__ == "__main__":
    main()
