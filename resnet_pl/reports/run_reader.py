"""What the files of finished runs say of them."""

from __future__ import annotations

import csv
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median_high
from typing import Any

import numpy as np
import yaml

from resnet_pl._renamed import RENAMED_METRICS
from resnet_pl.reports.results import read_results
from resnet_pl.run_dir import class_name, get_init_args, is_complete_row, metrics_reader, versions
from resnet_pl.utils import UserError, prog_name

# Test error (%) of the residual nets with shortcut A on CIFAR-10, by depth, after 64,000 iterations (§4.2, Table 6).
# 110 is the best of five (6.61 ± 0.16), the others one run each.
PAPER = {20: 8.75, 32: 7.51, 44: 7.17, 56: 6.97, 110: 6.43, 1202: 7.93}
PAPER_ITERATIONS = 64_000

Series = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Run:
    """What the files of a trained and tested run say of it.

    Attributes:
        path: its folder.
        config: the resolved configuration.
        results: the single-view test.
        sessions: what each start was like.
        metrics: as `read_metrics` returns them.
    """

    path: Path
    config: dict[str, Any]
    results: dict[str, Any] = field(default_factory=dict)
    sessions: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, Series] = field(default_factory=dict, repr=False)

    @property
    def _backbone(self) -> tuple[str, dict[str, Any]]:
        spec = get_init_args(self.config["model"])["backbone"]
        return _class_of(spec), get_init_args(spec)

    @property
    def depth(self) -> int | None:
        """Layers, as an argument or the end of the net's name says."""
        name, args = self._backbone
        digits = re.search(r"\d+$", name)
        return args.get("depth") or (int(digits[0]) if digits else None)

    @property
    def net(self) -> str:
        """Its class and depth, such as `cifar_resnet 56`."""
        name, args = self._backbone
        return f"{name} {args['depth']}" if "depth" in args else name

    @property
    def shortcut(self) -> str | None:
        """A, B, C, none, or None where the net's class has no such argument."""
        return self._backbone[1].get("shortcut")

    @property
    def plain(self) -> bool:
        """Whether the net has no shortcuts."""
        return "plain" in self._backbone[0] or self.shortcut == "none"

    @property
    def data(self) -> str:
        """The class of its data."""
        return _class_of(self.config["data"])

    @property
    def test_error(self) -> float:
        """In per cent."""
        return 100 * (1 - self.results["top1"])

    @cached_property
    def train_error(self) -> float:
        """In per cent, of the views trained on, over the last iterations that are as many as an epoch has."""
        if "train/top1" not in self.metrics:
            return math.nan
        (steps, shares), (logged, epochs) = self.metrics["train/top1"], self.metrics["epoch"]
        last = steps > steps[-1] - (1 + logged[epochs == epochs[0]][-1])
        return float(100 * (1 - np.average(shares[last], weights=np.diff(steps, prepend=-1)[last])))

    @property
    def iterations(self) -> int:
        """Steps of the optimiser."""
        return 1 + max(int(steps[-1]) for steps, _ in self.metrics.values())

    @property
    def seconds(self) -> float:
        """Training time, validation apart."""
        return float(self._logged("throughput/epoch_seconds").sum())

    @property
    def images_per_second(self) -> float:
        """In training, of the median epoch."""
        return float(median_high(self._logged("throughput/images_per_second")))

    def _logged(self, name: str) -> np.ndarray:
        return self.metrics[name][1] if name in self.metrics else np.array([math.nan])

    @property
    def paper_error(self) -> float | None:
        """The paper's test error in per cent, where it trained this net on this data."""
        known = (self._backbone[0], self.shortcut, self.data) == ("cifar_resnet", "A", "CIFAR10")
        return PAPER.get(self.depth) if known else None


def _class_of(section: Any) -> str:
    """The name of a section's class; raises LookupError where there is none."""
    if not (name := class_name(section)):
        raise LookupError("class_path")
    return name


def read_run(path: Path, tested: bool = True) -> Run:
    """Reads a run folder.

    Args:
        path: the folder.
        tested: whether it must have been tested; else results and sessions are left empty.

    Raises:
        UserError: a file is missing or damaged, or the run is not tested; says which.
    """
    config = _load(path / "config.yaml")
    results, sessions = (single_view_result(path), _load(path / "sessions.json")) if tested else ({}, [])
    run = Run(path, config, results, sessions, read_metrics(path / "metrics.csv"))
    try:
        _ = run.net, run.data, run.train_error, tested and (run.test_error, sessions[0]["commit"])
    except (LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not whole: its files lack {error}\nfinish the run, or leave it out") from error
    return run


def read_metrics(path: Path) -> dict[str, Series]:
    """Reads every metric of a `metrics.csv`.

    A cell is empty where a row does not log that metric. A step that comes twice, as after a resume from an earlier
    checkpoint, counts as it was logged last. A torn last line, as an interrupted run leaves it, is dropped.

    Returns:
        For each column but `step` its steps (n,) int64, rising, and its values (n,) float64.

    Raises:
        UserError: the file is missing, has no whole row or holds something else than numbers.
    """
    metrics: dict[str, dict[int, float]] = defaultdict(dict)
    try:
        rows = metrics_reader(path)
        if "step" not in (rows.fieldnames or ()):
            raise UserError(f"{path} has no line that names its columns, with `step` among them")
        for row in rows:
            if not is_complete_row(row):
                raise ValueError("it has more or fewer cells than columns")
            step = int(float(row.pop("step")))
            for name, cell in row.items():
                if cell:
                    metrics[RENAMED_METRICS.get(name, name)][step] = float(cell)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{path}, line {rows.line_num} is damaged ({error}); mend or delete that line") from error
    except (OSError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', error)}") from error
    if not metrics:
        raise UserError(f"{path} holds no metrics yet; train for at least one epoch")
    return {name: (np.array(sorted(at)), np.array([at[step] for step in sorted(at)])) for name, at in metrics.items()}


def _load(path: Path) -> Any:
    # JSON is YAML; the C loader reads long configurations in no time.
    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text) if path.suffix == ".json" else yaml.load(text, yaml.CSafeLoader)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}\nfinish the run, or leave it out") from error
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} is damaged: {str(error).splitlines()[0]}\nleave the run out") from error


def single_view_result(path: Path) -> dict[str, Any]:
    """The plainest test of single centre views in a run's results; raises UserError where there is none."""
    results = read_results(path / "results.json")
    tests = [test for test in [results, *results.values()] if isinstance(test, dict) and "top1" in test]
    ways = [(str(test.get("protocol")), test) for test in tests if test.get("split") == "test"]
    found = [test for way, test in ways if way.startswith("single view")]
    if not found:
        raise UserError(f"{path / 'results.json'} has no single-view test\n{prog_name()} test --ckpt_path {path}")
    return min(found, key=lambda test: len(test["protocol"]))


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """The run folders among and below the paths, by name and version; raises UserError where there is none."""
    found: list[Path] = []
    for path in paths:
        own = (path / "config.yaml").is_file() or path.name.startswith("version_")
        names = [] if own else sorted({version.parent for version in path.rglob("version_*")})
        below = [path] if own else [run for name in names for _, run in versions(name.parent, name.name)]
        if not below:
            raise UserError(f"there are no runs in {path}\ngive runs/NAME/version_N, or a folder above it")
        found += below
    return list(dict.fromkeys(found))


def read_runs(paths: Iterable[Path], tested: bool = True) -> tuple[list[Run], list[str]]:
    """The runs that are whole, as `read_run` reads them, and a line on each other; raises UserError if none is."""
    whole, lines = [], []
    for path in find_runs(paths):
        try:
            whole.append(read_run(path, tested))
        except UserError as error:
            lines.append(f"left out: {str(error).splitlines()[0]}")
    if not whole:
        raise UserError(f"no run is whole\n{lines[0].removeprefix('left out: ')}")
    return whole, lines


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
