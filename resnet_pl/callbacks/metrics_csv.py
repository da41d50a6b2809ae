"""metrics.csv: one row for each logging step, whole at any moment, continued when a run goes on."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from resnet_pl.run_dir import read_metrics_before
from resnet_pl.utils import atomic_write


class MetricsCSV(Logger):
    """Appends metrics to a file as they come. Lightning's CSVLogger would delete the rows of a run that goes on.

    Args:
        run: the run folder.
        start_step: the step that the run goes on from; rows from there on are cut, earlier ones kept.
    """

    def __init__(self, run: Path, start_step: int = 0) -> None:
        super().__init__()
        self.path, self._start_step = run / "metrics.csv", start_step
        self._columns: list[str] | None = None

    @property
    def name(self) -> str:
        """The run's name."""
        return self.path.parent.parent.name

    @property
    def version(self) -> str:
        """The run's version."""
        return self.path.parent.name

    @property
    def log_dir(self) -> str:
        """The run folder."""
        return str(self.path.parent)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Writes a row."""
        row = {"epoch": "", "step": step, **metrics}
        if row["epoch"] != "":
            row["epoch"] = int(row["epoch"])
        if self._columns is None:
            rows = read_metrics_before(self.path, self._start_step)
            self._columns = list(rows[0]) if rows else []
            self._rewrite(rows)
        new = [name for name in row if name not in self._columns]
        if new:
            # `inf` as the cut: every row stays, under a header that has the new columns too.
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
