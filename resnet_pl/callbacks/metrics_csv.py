"""The logger of metrics.csv: one row per logging step, extended when a run resumes."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from typing_extensions import override

from resnet_pl.run_dir import read_metrics_before
from resnet_pl.utils import atomic_write


class MetricsCSV(Logger):
    """Appends each row to metrics.csv as it is logged.

    Lightning's CSVLogger would delete the earlier rows when a run resumes.

    Args:
        run: run folder.
        start_step: optimizer step that the run is resumed from; rows from this step on are removed.
    """

    def __init__(self, run: Path, start_step: int = 0) -> None:
        super().__init__()
        self.path, self._start_step = run / "metrics.csv", start_step
        self._columns: list[str] | None = None

    @property
    @override
    def name(self) -> str:
        return self.path.parent.parent.name

    @property
    @override
    def version(self) -> str:
        return self.path.parent.name

    @property
    @override
    def log_dir(self) -> str:
        return str(self.path.parent)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Does nothing: config.yaml holds the hyperparameters."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Appends a row; a new column rewrites the file atomically."""
        row = {"epoch": "", "step": step, **metrics}
        if row["epoch"] != "":
            row["epoch"] = int(row["epoch"])
        if self._columns is None:
            rows = read_metrics_before(self.path, self._start_step)
            self._columns = list(rows[0]) if rows else []
            self._rewrite(rows)
        new = [name for name in row if name not in self._columns]
        if new:
            # Before step `inf`: all rows are copied under a header that includes the new columns.
            rows = read_metrics_before(self.path, float("inf"))
            self._columns += new
            self._rewrite(rows)
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns).writerow(row)

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        with atomic_write(self.path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns or [], restval="")
            writer.writeheader()
            writer.writerows(rows)
