"""Reads run folders: configuration, metrics, test results and sessions."""

from __future__ import annotations

import csv
import json
import math
import re
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median_high
from typing import Any

import numpy as np
import yaml

from resnet_pl._renamed import RENAMED_METRICS
from resnet_pl.reports.results import SINGLE_VIEW, read_results
from resnet_pl.run_dir import MAP, TOP1, class_name, get_init_args, is_complete_row, metrics_reader, score_sign
from resnet_pl.utils import UserError

# Test error (%) of residual networks with shortcut A on CIFAR-10 after 64,000 iterations, by depth (§4.2, Table 6).
# Depth 110 is the best of five runs (6.61 ± 0.16), the others are one run each.
PAPER = {20: 8.75, 32: 7.51, 44: 7.17, 56: 6.97, 110: 6.43, 1202: 7.93}
PAPER_ITERATIONS = 64_000
# Files of `test`: of the test set, and of the validation set of data without one.
TEST_RESULTS = ("results.json", "results-val-no-test.json")

Series = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Run:
    """The contents of a run folder.

    Attributes:
        path: the run folder.
        config: the resolved configuration, config.yaml.
        results: the single-view test of results.json; empty if the run was not tested.
        sessions: one entry per start of the run, sessions.json.
        metrics: as returned by `read_metrics`.
    """

    path: Path
    config: dict[str, Any]
    results: dict[str, Any] = field(default_factory=dict)
    sessions: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, Series] = field(default_factory=dict, repr=False)

    @property
    def _backbone(self) -> tuple[str, dict[str, Any]]:
        """Class and arguments of the backbone; of a module without backbone, its own."""
        spec = get_init_args(self.config["model"]).get("backbone") or self.config["model"]
        return _class_of(spec), get_init_args(spec)

    @property
    def depth(self) -> int | None:
        """Number of layers: the `depth` argument, else the number at the end of the model's name."""
        name, args = self._backbone
        digits = re.search(r"\d+$", name)
        return args.get("depth") or (int(digits[0]) if digits else None)

    @property
    def model(self) -> str:
        """Class, depth or blocks and unusual width: `cifar_resnet 56`, `ResNet [1, 2, 2]` or `resnet18 (width 32)`."""
        name, args = self._backbone
        depth = "".join(f" {args[key]}" for key in ("depth", "layers") if key in args)
        width = f" (width {args['width']})" if args.get("width", 64) != 64 else ""
        return name + depth + width

    @property
    def shortcut(self) -> str | None:
        """The shortcut type A, B, C or none; None if the model has no such argument."""
        return self._backbone[1].get("shortcut")

    @property
    def plain(self) -> bool:
        """Whether the model is a plain network, without shortcuts."""
        return "plain" in self._backbone[0] or self.shortcut == "none"

    @property
    def data(self) -> str:
        """Class name of the data module."""
        return _class_of(self.config["data"])

    @property
    def val_top1(self) -> float:
        """Validation top-1 of the best epoch, a fraction; NaN if the run was not validated."""
        values = self._logged("val/top1")
        return math.nan if np.isnan(values).all() else float(np.nanmax(values))

    @property
    def monitor(self) -> str:
        """Log key of the metric that chose best.ckpt."""
        monitor = (self.config.get("checkpoint") or {}).get("monitor") or TOP1
        return MAP if monitor == TOP1 and TOP1 not in self.metrics and MAP in self.metrics else monitor

    @property
    def sign(self) -> int:
        """1 if a larger value of `monitor` is better, else -1."""
        return score_sign(self.monitor, (self.config.get("checkpoint") or {}).get("mode") or "auto")

    @property
    def val_score(self) -> float:
        """Best value of `monitor`; NaN if it was not logged."""
        values = self.sign * self._logged(self.monitor)
        return math.nan if np.isnan(values).all() else self.sign * float(np.nanmax(values))

    @property
    def test_score(self) -> float:
        """Value of the monitored metric in the single-view test; NaN as for `test_top1`, or if it was not logged."""
        value = self._tested(self.monitor.removeprefix("val/"), self.monitor.replace("val", "test", 1))
        return float(value) if isinstance(value, int | float) else math.nan

    @property
    def test_top1(self) -> float:
        """Single-view test top-1, a fraction; NaN if the run was not tested, or if its data has no test set."""
        top1 = self._tested("top1")
        return math.nan if top1 is None else float(top1)

    def _tested(self, *names: str) -> Any:
        results = self.results | (self.results.get("metrics") or {}) if self.results.get("split") == "test" else {}
        return next((results[name] for name in names if name in results), None)

    @property
    def has_better_checkpoint(self) -> bool:
        """Whether best.ckpt was saved again after it was tested, by a run that was resumed."""
        if self.results.get("checkpoint") != "checkpoints/best.ckpt" or math.isnan(self.val_score):
            return False
        steps, values = self.metrics[self.monitor]
        return bool((self.results.get("step") or math.inf) < 1 + steps[values == self.val_score][-1])

    @cached_property
    def train_top1(self) -> float:
        """Training top-1 on the augmented images, a fraction; over the last iterations, as many as an epoch has."""
        if "train/top1" not in self.metrics:
            return math.nan
        (steps, top1), (logged, epochs) = self.metrics["train/top1"], self.metrics["epoch"]
        last = steps > steps[-1] - (1 + logged[epochs == epochs[0]][-1])
        return float(np.average(top1[last], weights=np.diff(steps, prepend=-1)[last]))

    @property
    def unfinished(self) -> bool:
        """Whether the training was interrupted or is still running."""
        last = self.sessions[-1] if self.sessions else {}
        return "launch" in last and "ended" not in last  # earlier versions have neither

    @property
    def pruned(self) -> bool:
        """Whether a search has stopped the run, because others were better at the same epoch."""
        return bool(self.sessions) and "pruned" in self.sessions[-1]

    @property
    def iterations(self) -> int:
        """Optimizer steps."""
        return 1 + max(int(steps[-1]) for steps, _ in self.metrics.values())

    @property
    def seconds(self) -> float:
        """Training time in seconds, without validation."""
        return float(self._logged("throughput/epoch_seconds").sum())

    @property
    def images_per_second(self) -> float:
        """Training throughput of the median epoch."""
        return float(median_high(self._logged("throughput/images_per_second")))

    def _logged(self, name: str) -> np.ndarray:
        return self.metrics[name][1] if name in self.metrics else np.array([math.nan])

    @property
    def paper_error(self) -> float | None:
        """Test error (%) in the paper; None if the paper did not train this model on this dataset."""
        known = (self._backbone[0], self.shortcut, self.data) == ("cifar_resnet", "A", "CIFAR10")
        return PAPER.get(self.depth) if known and self.depth else None


def _class_of(section: Any) -> str:
    """Returns the class name of a section; raises LookupError if it names no class."""
    if not (name := class_name(section)):
        raise LookupError("class_path")
    return name


def read_run(path: Path) -> Run:
    """Reads a run folder; raises UserError if its configuration or metrics are missing, or a file is damaged."""
    config, file = _load(path / "config.yaml"), path / "sessions.json"
    sessions = _load(file) if file.exists() else []
    run = Run(path, config, find_single_view_test(path) or {}, sessions, read_metrics(path / "metrics.csv"))
    try:
        _ = run.model, run.data, run.train_top1, run.test_top1, [session["commit"] for session in sessions]
    except (LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is incomplete: its files lack {error}\nfinish the run, or exclude it") from error
    return run


def read_metrics(path: Path) -> dict[str, Series]:
    """Reads every metric of a `metrics.csv`.

    A cell is empty if its row does not log that metric. Of a step that was logged twice, for example after a resume
    from an earlier checkpoint, the last value counts. An incomplete last line, as an interrupted run leaves it, is
    dropped.

    Returns:
        For each column except `step` its steps `(n,)` int64 in increasing order and its values `(n,)` float64.

    Raises:
        UserError: the file is missing, has no complete row, or has a cell that is not a number.
    """
    metrics: dict[str, dict[int, float]] = defaultdict(dict)
    line = 1
    try:
        rows = metrics_reader(path)
        if "step" not in (rows.fieldnames or ()):
            raise UserError(f"{path} has no header line with a column `step`")
        for row in rows:
            line = rows.line_num
            if not is_complete_row(row):
                raise ValueError("it has more or fewer cells than columns")
            step = int(float(row.pop("step")))
            for name, cell in row.items():
                if cell:
                    metrics[RENAMED_METRICS.get(name, name)][step] = float(cell)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{path}, line {line} is damaged ({error})\nfix or delete that line") from error
    except (OSError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', error)}") from error
    if not metrics:
        raise UserError(f"{path} has no metrics yet; train for at least one epoch")
    return {name: (np.array(sorted(at)), np.array([at[step] for step in sorted(at)])) for name, at in metrics.items()}


def _load(path: Path) -> Any:
    # JSON is a subset of YAML, but the YAML parser is slow.
    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text) if path.suffix == ".json" else yaml.load(text, yaml.CSafeLoader)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}\nfinish the run, or exclude it") from error
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} is damaged: {str(error).splitlines()[0]}\nexclude the run") from error


def find_single_view_test(path: Path) -> dict[str, Any] | None:
    """Returns the single-view test of a run with the fewest other options; None if there is none.

    It is on the test set if the run has such a test, else on the validation set of data without a test set.

    Raises:
        UserError: a results file is damaged.
    """
    files = [file for name in TEST_RESULTS if (file := path / name).exists()]
    stored = [test for results in map(read_results, files) for test in (results, *results.values())]
    tests = [test for test in stored if isinstance(test, dict) and "protocol" in test]
    # The data of another folder is not that of the training, which `compare` lists.
    own = [test for test in tests if not test.get("other_data")]
    single_view = [test for test in own if str(test["protocol"]).startswith(SINGLE_VIEW)]
    return min(single_view, key=lambda test: (test.get("split") != "test", len(test["protocol"])), default=None)


def duration(seconds: float) -> str:
    """Formats a duration in seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
