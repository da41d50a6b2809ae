"""Rows of a table of images: path, label or labels, split and group."""

from __future__ import annotations

from dataclasses import dataclass

from resnet_pl.data.layout import label_names, split_name
from resnet_pl.data.table import Table
from resnet_pl.utils import UserError

_YES_OR_NO = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}


@dataclass
class Entry:
    """An image of a table.

    Attributes:
        line: line number of its first row.
        label: class name; with several labels, a sorted tuple of class names.
        split: `train`, `val`, `test`, or `all` without a column for it.
        group: its group, "" if it has none.
    """

    line: int
    label: str | tuple[str, ...]
    split: str = "all"
    group: str = ""


class RowReader:
    """Reads the rows of a table."""

    def __init__(
        self,
        table: Table,
        columns: dict[str, str | None],
        separator: str | None,
        label_columns: list[str] | str | None,
    ) -> None:
        self.table, self.separator = table, separator
        self.path, self.split, self.group = (table.find(kind, columns[kind]) for kind in ("path", "split", "group"))
        self.label = table.find("label", columns["label"]) if label_columns is None else None
        self.classes: list[int] = []
        if label_columns == "all":
            used = {self.path, self.split, self.group}
            self.classes = [position for position in range(len(table.columns)) if position not in used]
        for name in label_columns if isinstance(label_columns, list) else ():
            if name not in table.columns:
                raise table.missing(f"no column {name}", "data.label_columns", name)
            self.classes.append(table.columns.index(name))

    def read(self, line: int, cells: list[str]) -> tuple[str, Entry]:
        """Returns the path and the labels of a row."""
        path = cells[self.path or 0]
        if not path:
            raise self._error(line, "the path is empty", "write a path, or remove the row")
        split = "all"
        if self.split is not None:
            name = cells[self.split]
            if (split := split_name(name) or "") == "":
                problem = f"{name} is not a split" if name else "the split is empty"
                raise self._error(line, problem, "write train, val or test, or ignore it with --data.split_column ''")
        group = cells[self.group] if self.group is not None else ""
        return path, Entry(line, self._label(line, cells), split, group)

    def _label(self, line: int, cells: list[str]) -> str | tuple[str, ...]:
        if self.label is not None:
            text = cells[self.label]
            if self.separator is not None:
                return tuple(sorted({name for part in text.split(self.separator) if (name := part.strip())}))
            if not text:
                raise self._error(line, "the label is empty", "write a class name, or remove the row")
            return text
        present = []
        for position in self.classes:
            column, cell = self.table.columns[position], cells[position]
            if cell.lower() not in _YES_OR_NO:
                problem = f"the column {column} has {cell or 'an empty cell'}, not 0 or 1"
                raise self._error(line, problem, "--data.label_columns lists the columns of the classes")
            present += [column] if _YES_OR_NO[cell.lower()] else []
        return tuple(sorted(present))

    def merge(self, path: str, one: Entry, other: Entry) -> Entry:
        """Returns the entry of two rows with the same path; raises UserError if they contradict each other."""
        lines = f"{path} is in lines {one.line} and {other.line}"
        if (one.split, one.group) != (other.split, other.group):
            raise UserError(f"{self.table.path}: {lines} with other splits or groups\nremove one of the rows")
        if isinstance(one.label, tuple) and isinstance(other.label, tuple) and not self.classes:
            return Entry(one.line, tuple(sorted({*one.label, *other.label})), one.split, one.group)
        if one.label != other.label:
            raise UserError(
                f"{self.table.path}: {lines} with the labels {' '.join(label_names(one.label))} and "
                f"{' '.join(label_names(other.label))}\nremove one; for images with several labels set "
                "--data.label_separator"
            )
        return one

    def _error(self, line: int, problem: str, fix: str) -> UserError:
        return UserError(f"{self.table.path}, line {line}: {problem}\n{fix}")
