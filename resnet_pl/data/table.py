"""Tables of images and labels: CSV files, Excel sheets and Parquet files, read as text."""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resnet_pl.data.image_files import IMAGE_EXTENSIONS
from resnet_pl.utils import UserError, require, similar

# Usual names of columns, in lower case and with _ for spaces. The first that the table has is used.
COLUMN_NAMES = {
    "path": "path file filename file_name filepath file_path image image_path image_file img_path image_id img id",
    "label": "label class category target labels classes class_name tags",
    "split": "split subset partition",
    "group": "group group_id patient patient_id subject subject_id",
}
_DELIMITERS = ",;\t|"


@dataclass
class Table:
    """A table as text.

    Attributes:
        path: the file.
        columns: names of the columns.
        rows: line number and cells of each row; the cells have no spaces around them.
        guessed: the columns that were found by a usual name, by kind.
    """

    path: Path
    columns: list[str]
    rows: list[tuple[int, list[str]]]
    guessed: dict[str, str] = field(default_factory=dict)

    def find(self, kind: str, name: str | None) -> int | None:
        """Returns the position of a column; None if there is none.

        Args:
            kind: `path`, `label`, `split` or `group`.
            name: its name; "" for no such column. None looks for a usual name, in any case.

        Raises:
            UserError: a column with this name, or any for the path or label, does not exist; or two have it.
        """
        lower = [re.sub(r"\W+", "_", column.lower()) for column in self.columns]
        usual = COLUMN_NAMES[kind].split()
        if name is None:
            name = next((self.columns[lower.index(each)] for each in usual if each in lower), "")
            self.guessed[kind] = name
        elif name and name not in self.columns:
            raise self.missing(f"no column {name}", f"data.{kind}_column", name)
        if not name:
            if kind in ("path", "label"):
                raise self.missing(f"no column for the {kind}", f"data.{kind}_column", kind)
            return None
        if self.columns.count(name) > 1:
            raise UserError(f"{self.path} has two columns {name}\nrename one of them")
        return self.columns.index(name)

    def missing(self, problem: str, option: str, name: str) -> UserError:
        """Returns the error for a column that the table does not have."""
        listed = ", ".join(self.columns[:12]) + (" …" if len(self.columns) > 12 else "")
        fix = f"give its name with --{option}"
        if any(Path(column).suffix.lower() in IMAGE_EXTENSIONS for column in self.columns):
            fix = "without a header line, name the columns with --data.column_names '[path, label]'"
        elif near := similar(name, self.columns):
            fix = f"did you mean {near[0]}? {fix}"
        return UserError(f"{self.path} has {problem}; its columns are {listed}\n{fix}")


def read_table(path: Path, delimiter: str | None = None, column_names: Sequence[str] | None = None) -> Table:
    """Reads a table.

    Args:
        path: a file with the extension .xlsx or .parquet; any other is text with delimiters, in UTF-8 or UTF-16.
        delimiter: delimiter of a text file; None finds it in the first line.
        column_names: the names of the columns, if the first line is not the header.

    Raises:
        UserError: the file is missing, damaged or empty, has a row of another length than the header, or needs a
            package that is not installed.
    """
    if not path.is_file():
        raise UserError(
            f"data.labels: table {path} not found\npass a table of paths and labels with --data.labels FILE"
        )
    readers = {".xlsx": _excel_rows, ".xlsm": _excel_rows, ".parquet": _parquet_rows}
    reader = readers.get(path.suffix.lower())
    try:
        found = _text_rows(path, delimiter) if reader is None else reader(path)
        rows = [(line, [cell.strip() for cell in cells]) for line, cells in found]
    except UserError:
        raise
    except Exception as error:  # of any type in damaged Excel and Parquet files
        raise UserError(
            f"data.labels: {path} cannot be read: {str(error) or type(error).__name__}\nsave the table as CSV in UTF-8"
        ) from error
    rows = [(line, cells) for line, cells in rows if any(cells)]
    columns = list(column_names) if column_names else rows.pop(0)[1] if rows else []
    if not rows:
        raise UserError(f"data.labels: {path} has no rows\nit needs a header, and a row for each image")
    for line, cells in rows:
        if len(cells) != len(columns):
            raise UserError(
                f"{path}, line {line}: {len(cells)} cells in this row, {len(columns)} columns in the header\n"
                "write text that contains the delimiter in quotes, or set --data.delimiter"
            )
    return Table(path, columns, rows)


def _text_rows(path: Path, delimiter: str | None) -> Iterator[tuple[int, list[str]]]:
    with path.open("rb") as binary:
        start = binary.read(2)
    encoding = "utf-16" if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    with path.open(newline="", encoding=encoding) as file:
        first = next((line for line in file if line.strip()), "")
        file.seek(0)
        # The delimiter that gives the most columns.
        delimiter = delimiter or max(_DELIMITERS, key=lambda each: len(next(csv.reader([first], delimiter=each), [])))
        reader = csv.reader(file, delimiter=delimiter, strict=True, skipinitialspace=True)
        try:
            for cells in reader:
                yield reader.line_num, cells
        except csv.Error as error:
            raise UserError(f"{path}, line {reader.line_num}: {error}\ncheck the quotes in this line") from error


def _excel_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    openpyxl = require("openpyxl", "tables", f"data.labels: {path}")
    book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    try:
        sheet = book.worksheets[0]
        sheet.reset_dimensions()  # some programs write wrong ones
        rows = [[_as_text(cell) for cell in cells] for cells in sheet.iter_rows(values_only=True)]
    finally:
        book.close()
    width = max(map(len, rows), default=0)
    for line, cells in enumerate(rows, 1):
        yield line, cells + [""] * (width - len(cells))


def _parquet_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    parquet = require("pyarrow.parquet", "tables", f"data.labels: {path}")
    # Lists and bytes, such as embeddings, are neither paths nor labels.
    other = re.compile("list|struct|map|binary")
    columns = [field.name for field in parquet.read_schema(path) if not other.search(str(field.type))]
    yield 0, columns
    for line, row in enumerate(parquet.read_table(path, columns=columns).to_pylist(), 1):
        yield line, [_as_text(cell) for cell in row.values()]


def _as_text(cell: Any) -> str:
    return "" if cell is None else str(cell)
