"""Images whose labels are in a table."""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from typing_extensions import override

from resnet_pl.data.bad_images import BadImage, check_bad_fraction, printable_path
from resnet_pl.data.folder import ImageFolder
from resnet_pl.data.image_files import IMAGE_EXTENSIONS
from resnet_pl.data.layout import Listing, label_names
from resnet_pl.data.table import Table, read_table
from resnet_pl.data.table_rows import Entry, RowReader
from resnet_pl.data.typed_kwargs import ImageFolderArgs
from resnet_pl.types import PositiveInt, Unpack
from resnet_pl.utils import UserError, expand_path, in_threads, rank_zero_print


class ImageTable(ImageFolder):
    """Images whose classes are in a table: CSV, TSV, Excel (.xlsx) or Parquet, with one row per image.

    Labels are text: 007, yes and 1e3 stay what they are. With `label_separator` or `label_columns`, an image can have
    several labels, or none.

    Args:
        labels: the table. Excel needs `pip install openpyxl`, Parquet `pip install pyarrow`.
        root: folder that the paths in the table are relative to; null: the folder of the table.
        path_column: column of the image paths; null: path, file, filename, image, id or a similar name.
        label_column: column of the class names; null: label, class, category, target or a similar name.
        split_column: column with train, val or test; null: split, subset or partition if there is one, empty: none.
            Without it, images are held out as for a folder.
        group_column: column that identifies the patient, video or burst; null: group, patient, subject or a similar
            name if there is one and no `group_pattern`, empty: none. Images of a group are never held out from each
            other.
        label_separator: text between the labels in a cell, such as `|`, for images with several labels. The labels of
            several rows with the same path are merged.
        label_columns: columns with 1 or 0 for each class, for images with several labels; `all` uses all columns
            without another use.
        column_names: names of the columns, if the table has no header line.
        delimiter: delimiter of a text file; null finds a comma, semicolon, tab or vertical bar in the first line.
        path_suffix: text that is added to each path, such as .jpg.
    """

    keeps_missing = False  # whether rows whose file does not exist stay in the list, to be reported later

    def __init__(
        self,
        labels: str = "data/labels.csv",
        root: str | None = None,
        path_column: str | None = None,
        label_column: str | None = None,
        split_column: str | None = None,
        group_column: str | None = None,
        label_separator: str | None = None,
        label_columns: list[str] | Literal["all"] | None = None,
        column_names: list[str] | None = None,
        delimiter: str | None = None,
        path_suffix: str = "",
        batch_size: PositiveInt = 64,
        **kwargs: Unpack[ImageFolderArgs],
    ) -> None:
        super().__init__(root=root or str(Path(labels).parent), batch_size=batch_size, **kwargs)
        if group_column is None and self.group_pattern is not None:
            group_column = ""  # a column that is only guessed does not override the pattern
        self.labels = Path(expand_path(labels))
        self.columns = {"path": path_column, "label": label_column, "split": split_column, "group": group_column}
        self.label_separator, self.label_columns = label_separator, label_columns
        self.column_names, self.delimiter, self.path_suffix = column_names, delimiter, path_suffix
        self.multi_label = label_columns is not None or label_separator is not None
        if label_separator == "" or delimiter == "":
            raise UserError("data.label_separator and data.delimiter must not be empty\nuse null for the default")

    @property
    @override
    def source(self) -> Path:
        return self.labels

    @override
    def download_hint(self) -> str:
        return "pass the folder that the paths in the table are relative to with --data.root; null: that of the table"

    @override
    def describe(self) -> str:
        return f"{type(self).__name__} of {self.labels}"

    @override
    def find_splits(self) -> dict[str, Any]:
        table = self._table  # before the folder is checked: a missing table is the better message
        splits = super().find_splits()
        if self.restored_provenance is None and (column := table.find("split", self.columns["split"])) is not None:
            note = f"from the column {table.columns[column]}"
            self.split_note = f"{note}; {self.split_note}" if self.split_note else note
        return splits

    @override
    def list_splits(self) -> dict[str, Listing]:
        splits = {entry.split for entry in self._entries.values()}
        return {
            split: {path: entry.label for path, entry in self._entries.items() if entry.split == split}
            for split in ("train", "val", "test", "all")
            if split in splits
        }

    @override
    def groups(self, names: Sequence[str]) -> list[str] | None:
        if self._table.find("group", self.columns["group"]) is None:
            return super().groups(names)
        return [self._entries[name].group for name in names]

    @override
    def _complete_splits(self, listings: dict[str, Listing]) -> dict[str, Listing]:
        splits = super()._complete_splits(listings)
        self.store_split_names = True  # unlike folders, a table is easily edited
        return splits

    # ------------------------------------------------------------------------------------ the table
    @cached_property
    def _table(self) -> Table:
        return read_table(self.labels, self.delimiter, self.column_names)

    @cached_property
    def _entries(self) -> dict[str, Entry]:
        """The images by their path; the same for a path that is written in another way."""
        reader = RowReader(self._table, self.columns, self.label_separator, self.label_columns)
        entries: dict[str, Entry] = {}
        for line, cells in self._table.rows:
            path, entry = reader.read(line, cells)
            path = self._normalize(path)
            entries[path] = reader.merge(path, entries[path], entry) if path in entries else entry
        self._note_table(entries, len(self._table.rows))
        return self._existing(entries)

    def _normalize(self, path: str) -> str:
        path += self.path_suffix
        if "\\" in path and not (self.root / path).exists():
            path = path.replace("\\", "/")  # written on Windows
        return posixpath.normpath(path)

    def _note_table(self, entries: dict[str, Entry], rows: int) -> None:
        if guessed := [f"{kind} = {name}" for kind, name in self._table.guessed.items() if name and name != kind]:
            rank_zero_print(f"note: columns of {self.labels}: {', '.join(guessed)}")
        if repeated := rows - len(entries):
            rank_zero_print(f"note: {self.labels} has {repeated:,} more rows for the same images")
        classes = {name for entry in entries.values() for name in label_names(entry.label)}
        several = min((name for name in classes if re.search("[;|]", name)), default=None)
        if several and not self.multi_label:
            separator = "|" if "|" in several else ";"
            rank_zero_print(
                f"note: {several} is read as one class; for several labels per image add "
                f"--data.label_separator '{separator}'"
            )
        if same := [name for name, count in Counter(map(str.casefold, classes)).items() if count > 1]:
            spellings = sorted(name for name in classes if name.casefold() == same[0])
            rank_zero_print(f"note: classes that differ in upper and lower case only: {', '.join(spellings)}")

    def _existing(self, entries: dict[str, Entry]) -> dict[str, Entry]:
        """The images that exist; raises UserError if some do not, unless they are skipped or only evaluated."""
        exist = in_threads(lambda path: (self.root / path).is_file(), entries)
        missing = [path for path, exists in zip(entries, exist, strict=True) if not exists]
        if not missing or (self.keeps_missing and len(missing) < len(entries)):
            return entries
        example = f"{printable_path(missing[0])} (line {entries[missing[0]].line})"
        found = f"{self.labels}: {len(missing):,} of {len(entries):,} images are not in {self.root}, such as {example}"
        suffix = next((each for each in IMAGE_EXTENSIONS if (self.root / (missing[0] + each)).is_file()), None)
        if suffix or len(missing) == len(entries) or (self.on_bad_image == "error" and not self.restored_provenance):
            fix = "pass their folder with --data.root" + (
                "" if len(missing) == len(entries) else ", or skip them with --data.on_bad_image skip"
            )
            raise UserError(f"{found}\n{f'add the extension with --data.path_suffix {suffix}' if suffix else fix}")
        if not self.restored_provenance:
            bad = [BadImage(self.root / path, "the file does not exist") for path in missing]
            check_bad_fraction(bad, len(entries))
        rank_zero_print(f"note: {found}; they are skipped")
        gone = set(missing)
        return {path: entry for path, entry in entries.items() if path not in gone}
