"""Check an image folder or a table: corrupt files, duplicates, number of images per class, and image sizes.

The folder has the layout for training: FOLDER/CLASS/* or FOLDER/{train,val,test}/CLASS/*. The report says what it is
read as. Only the header and the end of each image are checked unless --decode is given. Duplicates are files with equal
content. Images in several splits that are nearly the same, such as copies in another size, are found by a perceptual
hash. The exit code is 1 if a file is corrupt, if the same image is in two splits or two classes, if images of a group
are in two splits, or if train lacks a class of another split. For a table, the options are those of `fit`.
"""

from __future__ import annotations

import csv
import inspect
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import get_type_hints

import numpy as np
from jsonargparse import ArgumentParser, Namespace
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from resnet_pl.analysis.near_duplicates import find_near_duplicates, perceptual_hash
from resnet_pl.data import ImageFolder, ImageTable
from resnet_pl.data.bad_images import BadImage, printable_path
from resnet_pl.data.decode import read_image, verify_image
from resnet_pl.data.digests import content_digest
from resnet_pl.data.layout import label_names
from resnet_pl.data.loader import default_num_workers
from resnet_pl.data.typed_kwargs import ImageFolderArgs
from resnet_pl.reports.tables import print_report
from resnet_pl.types import PositiveInt
from resnet_pl.utils import UserError, atomic_write, counted, progress

MAX_CLASSES = 40
MAX_LINES = 20
# Options of `fit` for the data that say how a table is read.
TABLE_OPTIONS = ["root", "path_column", "label_column", "split_column", "group_column", "label_separator"]
TABLE_OPTIONS += ["label_columns", "column_names", "delimiter", "path_suffix"]


@dataclass
class File:
    """An image file and the result of its check.

    Attributes:
        name: path relative to the folder.
        split: `train`, `val`, `test`, or `all` for a folder without splits.
        labels: class names; one, unless images can have several.
        size: width and height, pixels.
        num_bytes: file size.
        digest: hash of the content; empty if the file could not be read.
        error: why the file cannot be read; empty if it can.
        same_as: the first file with the same content; empty if it is unique.
        similar_to: an earlier file with nearly the same image, in another split if there are several.
        hash: perceptual hash, `(64,)` bool, if the image has one.
    """

    name: str
    split: str
    labels: tuple[str, ...]
    size: tuple[int, int] = (0, 0)
    num_bytes: int = 0
    digest: str = ""
    error: str = ""
    same_as: str = ""
    similar_to: str = ""
    hash: np.ndarray | None = None


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options of `check-data`."""
    parser.add_argument("folder", type=str, help="the image folder, or a table as for --data.labels")
    parser.add_argument("--decode", action="store_true", help="decode every image completely: slower, finds any damage")
    parser.add_argument("--output", type=str | None, default=None, help="CSV file to write, with one row per image")
    threads = "number of reader threads; default: the number of available CPU cores, at most 16"
    parser.add_argument("--threads", type=PositiveInt | None, default=None, help=threads)
    known = [*inspect.signature(ImageTable).parameters, *get_type_hints(ImageFolderArgs)]
    others: set[str | int] = {name for name in known if name not in TABLE_OPTIONS}
    parser.add_class_arguments(ImageTable, "data", skip=others, instantiate=False)


def run(settings: Namespace) -> int:
    """Runs the command; returns 1 if there are problems."""
    data = _open(settings)
    root = data.root
    listed = data.list_splits()
    files = [
        File(name, split, label_names(label)) for split, listing in listed.items() for name, label in listing.items()
    ]
    inspect = partial(_inspect_file, root, settings.decode)
    # Threads suffice: reading and decoding release the GIL.
    with (
        ThreadPool(settings.threads or default_num_workers(1)) as pool,
        progress("checking images", len(files)) as advance,
    ):
        for _ in pool.imap_unordered(inspect, files, chunksize=16):
            advance(1)
    duplicates, near = _find_duplicates(files), _find_near_duplicates(files)
    table, balance = _table(files, list(listed))
    print_report(table)
    print(balance)
    for line in _sizes(files, duplicates):
        print(line)
    if data.layout:
        print(f" read as: {data.layout.description}{_held_out(listed)}")
        for note in data.layout.notes:
            print(f" note: {note}")
    problems = _problems(files, duplicates, data.groups([file.name for file in files]))
    for title, lines in problems.items():
        _print_list(title, lines, settings.output)
    # Those in several splits or classes are among the problems.
    if copies := [_join_names(group) for group in duplicates if len({(f.split, f.labels) for f in group}) == 1]:
        _print_list("the same image more than once in a class", copies, settings.output)
    if near:
        title = "nearly the same image" + (" in several splits" if len(listed) > 1 else "; it can be in two splits")
        _print_list(title, near, settings.output)
    if settings.output:
        _write(Path(settings.output), files)
        print(f"Saved to {settings.output}")
    similar = f"images that are nearly the same: {len(near):,}" if near else ""
    if problems:
        count = sum(map(len, problems.values()))
        print(f"\nProblems found: {count}" + (f"; {similar}" if near else ""))
    else:
        print(f"\nNo other problems found; {similar}" if near else "No problems found.")
    return int(bool(problems))


def _open(settings: Namespace) -> ImageFolder:
    """The folder or the table, with its options; raises UserError if it does not exist."""
    path, options = Path(settings.folder), vars(settings.data)
    if path.is_file():
        data = ImageTable(str(path), **options)
        data.keeps_missing = True  # they are listed with the other unreadable files
    else:
        data = ImageFolder(str(path))
        if given := [name for name in TABLE_OPTIONS if options[name]]:
            raise UserError(
                f"check-data: --data.{given[0]} is for a table, and {path} is a folder\n"
                "remove the option, or give the file with the paths and labels in place of the folder"
            )
    if not data.root.is_dir():
        raise UserError(f"check-data: folder {data.root} not found\n{data.download_hint()}")
    return data


def _inspect_file(root: Path, decode: bool, file: File) -> None:
    path = root / file.name
    try:
        file.size = verify_image(path)
        if decode:
            read_image(path)
        file.num_bytes, file.digest = path.stat().st_size, content_digest(path)
        file.hash = perceptual_hash(path)
    except BadImage as error:
        file.error = error.reason
    except OSError as error:
        file.error = error.strerror or type(error).__name__


def _find_duplicates(files: Sequence[File]) -> list[list[File]]:
    """Groups of files with the same content; sets their `same_as`."""
    same: dict[str, list[File]] = defaultdict(list)
    for file in files:
        if file.digest:
            same[file.digest].append(file)
    groups = [group for group in same.values() if len(group) > 1]
    for file in chain.from_iterable(groups):
        file.same_as = same[file.digest][0].name
    return groups


def _find_near_duplicates(files: Sequence[File]) -> list[str]:
    """Descriptions of pairs of images that are nearly the same; sets their `similar_to`."""
    pairs = find_near_duplicates([file.hash for file in files], [f.split for f in files], [f.digest for f in files])
    for one, other in pairs:
        files[other].similar_to = files[one].name
    return [" ≈ ".join(printable_path(files[index].name) for index in pair) for pair in pairs]


def _problems(
    files: Sequence[File], duplicates: Sequence[Sequence[File]], groups: Sequence[str] | None
) -> dict[str, list[str]]:
    """Descriptions of the problems, by kind."""
    trained = {label for file in files if file.split in ("train", "all") for label in file.labels}
    unknown = Counter((file.split, label) for file in files for label in file.labels if label not in trained)
    splits: dict[str, dict[str, None]] = defaultdict(dict)  # of each group, in order
    for file, group in zip(files, groups or (), strict=bool(groups)):
        if group:
            splits[group][file.split] = None
    problems = {
        "corrupt files": [f"{printable_path(file.name)}: {file.error}" for file in files if file.error],
        "the same image in several splits": [
            _join_names(group) for group in duplicates if len({f.split for f in group}) > 1
        ],
        "the same image in several classes": [
            _join_names(group) for group in duplicates if len({f.labels for f in group}) > 1
        ],
        "groups in several splits": [
            f"{printable_path(group)}: {', '.join(found)}" for group, found in splits.items() if len(found) > 1
        ],
        "classes missing from train": [
            f"{split}/{printable_path(label)}: {counted(n, 'image')}" for (split, label), n in unknown.items()
        ],
    }
    return {title: lines for title, lines in problems.items() if lines}


def _join_names(group: Iterable[File]) -> str:
    return " = ".join(printable_path(file.name) for file in group)


def _print_list(title: str, lines: Sequence[str], output: str | None) -> None:
    print(f"\n{title}: {len(lines)}")
    for line in lines[:MAX_LINES]:
        print(f"  {line}")
    if len(lines) > MAX_LINES:
        print(f"  … and {len(lines) - MAX_LINES} more: see {output or 'all with --output FILE.csv'}")


def _table(files: Sequence[File], splits: Sequence[str]) -> tuple[Table, str]:
    """A table of the images per class and split, of many classes only the largest and smallest, and their balance."""
    counts: Mapping[str, Counter[str]] = defaultdict(Counter)
    for file in files:
        for label in file.labels:
            counts[label][file.split] += 1
    ranked = sorted(counts, key=lambda label: (-counts[label].total(), label))
    chosen = sorted(counts)
    if len(ranked) > MAX_CLASSES:
        chosen = [*ranked[: MAX_CLASSES // 2], *ranked[-MAX_CLASSES // 2 :]]
    table = Table("class", box=SIMPLE_HEAD)
    for name in [*splits, *(["all splits"] if len(splits) > 1 else [])]:
        table.add_column("images" if name == "all" else name, justify="right")
    for label in chosen:
        table.add_row(Text(printable_path(label)), *_cells(counts[label], splits))
    table.add_section()
    table.add_row("total", *_cells(Counter(file.split for file in files), splits), style="bold")
    most, least = ranked[0], ranked[-1]
    ratio = counts[most].total() / counts[least].total()
    balance = (
        f" {len(counts)} classes; the largest, {printable_path(most)}, has {ratio:.1f} times as many images as the "
    )
    balance += f"smallest, {printable_path(least)}"
    hidden = f"; not shown: {counted(more, 'class')} of medium size" if (more := len(ranked) - len(chosen)) else ""
    return table, balance + hidden


def _cells(count: Counter[str], splits: Sequence[str]) -> list[str]:
    total = [f"{count.total():,}"] if len(splits) > 1 else []
    return [f"{count[split]:,}" for split in splits] + total


def _held_out(listed: Mapping[str, object]) -> str:
    """What training does about splits that the folder does not have."""
    if "val" in listed:
        return "" if "test" in listed else "; no test set: `test` reports on val"
    return f"; training holds out {'val' if 'test' in listed else 'val and test'}"


def _sizes(files: Sequence[File], duplicates: Sequence[Sequence[File]]) -> Iterable[str]:
    sizes = sorted((file.size for file in files if not file.error), key=lambda size: (size[0] * size[1], size))
    if sizes:
        smallest, median, largest = (f"{w} × {h}" for w, h in (sizes[0], sizes[len(sizes) // 2], sizes[-1]))
        megabytes = sum(file.num_bytes for file in files) / 1e6
        yield f" image sizes in pixels: smallest {smallest}, median {median}, largest {largest}; {megabytes:,.1f} MB"
    if duplicates:
        yield f" exact duplicates: {sum(map(len, duplicates)) - len(duplicates):,} of {len(files):,} files"


def _write(path: Path, files: Sequence[File]) -> None:
    with (
        atomic_write(path) as partial_file,
        partial_file.open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream,
    ):
        table = csv.writer(stream)
        table.writerow(["file", "split", "class", "width", "height", "bytes", "error", "same_as", "similar_to"])
        for file in files:
            row = [file.name, file.split, "|".join(file.labels), *file.size, file.num_bytes, file.error]
            table.writerow([*row, file.same_as, file.similar_to])
