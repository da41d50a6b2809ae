"""Looks through a folder of photos: broken files, the same image twice, how many images a class has, and their sizes.

The folder is laid out as for training: FOLDER/CLASS/* or FOLDER/{train,val,test}/CLASS/*. Header and end of each file
are looked at, and for copies its whole content. The exit code is 1 where a file is broken, or the same image is in two
splits or two classes.
"""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from multiprocessing.pool import ThreadPool
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from resnet_pl.data import ImageFolder
from resnet_pl.data.decode import IMAGE_EXTENSIONS, BadImage, printable_path, read_image, verify_image
from resnet_pl.data.digests import content_digest
from resnet_pl.data.loader import default_num_workers
from resnet_pl.reports.tables import print_report
from resnet_pl.types import PositiveInt
from resnet_pl.utils import UserError, atomic_write, progress

MAX_CLASSES = 40
MAX_LINES = 20


@dataclass
class File:
    """An image file: its place, and what was found.

    Attributes:
        name: path below the folder.
        size: width and height, pixels.
        broken: what is wrong with it, empty where it can be read.
        same_as: the first file with the same content, empty where there is no other.
    """

    name: str
    split: str
    label: str
    size: tuple[int, int] = (0, 0)
    length: int = 0
    digest: str = ""
    broken: str = ""
    same_as: str = ""


def add_arguments(parser: ArgumentParser) -> None:
    """See the package."""
    parser.add_argument("folder", type=str, help="the folder, as data.root takes it")
    parser.add_argument("--decode", action="store_true", help="decode every image: slower, finds any damage")
    parser.add_argument("--output", type=str | None, default=None, help="CSV file with a line for each image")
    threads = "files looked at at a time; chosen from the machine if not given"
    parser.add_argument("--threads", type=PositiveInt | None, default=None, help=threads)


def run(settings: Namespace) -> int:
    """Looks, prints and writes; 1 where something is wrong."""
    root = Path(settings.folder)
    data = ImageFolder(str(root))
    if not root.is_dir():
        raise UserError(f"check-data: there is no folder {root}\n{data.download_hint()}")
    listed = data.list_splits()
    files = [File(name, split, label) for split, listing in listed.items() for name, label in listing.items()]
    look = partial(_inspect_file, root, settings.decode)
    # Decoding and reading leave Python's lock alone.
    with (
        ThreadPool(settings.threads or default_num_workers(1)) as pool,
        progress("checking images", len(files)) as advance,
    ):
        for _ in pool.imap_unordered(look, files, chunksize=16):
            advance(1)
    copies = _find_duplicates(files)
    table, balance = _table(files, list(listed))
    print_report(table)
    print(balance)
    for line in [*_sizes(files, copies), *_unused_files(root, {file.name for file in files})]:
        print(line)
    problems = _problems(files, copies)
    for title, lines in problems.items():
        _print_list(title, lines, settings.output)
    if settings.output:
        _write(Path(settings.output), files)
        print(f"written to {settings.output}")
    print("something is wrong" if problems else "nothing is wrong")
    return int(bool(problems))


def _inspect_file(root: Path, decode: bool, file: File) -> None:
    path = root / file.name
    try:
        file.size = verify_image(path)
        if decode:
            read_image(path)
        file.length, file.digest = path.stat().st_size, content_digest(path)
    except BadImage as error:
        file.broken = error.reason
    except OSError as error:
        file.broken = error.strerror


def _find_duplicates(files: Sequence[File]) -> list[list[File]]:
    """Files of the same content, where there are several."""
    same: dict[str, list[File]] = defaultdict(list)
    for file in files:
        if file.digest:
            same[file.digest].append(file)
    groups = [group for group in same.values() if len(group) > 1]
    for file in chain.from_iterable(groups):
        file.same_as = same[file.digest][0].name
    return groups


def _problems(files: Sequence[File], copies: Sequence[Sequence[File]]) -> dict[str, list[str]]:
    """What training or a test would suffer from, by kind."""
    trained = {file.label for file in files if file.split in ("train", "all")}
    unknown = Counter((file.split, file.label) for file in files if file.label not in trained)
    found = {
        "broken files": [f"{printable_path(file.name)}: {file.broken}" for file in files if file.broken],
        "the same image in several splits": [
            _join_names(group) for group in copies if len({f.split for f in group}) > 1
        ],
        "the same image in several classes": [
            _join_names(group) for group in copies if len({f.label for f in group}) > 1
        ],
        "classes that train has not": [
            f"{split}/{printable_path(label)}: {n} images" for (split, label), n in unknown.items()
        ],
    }
    return {title: lines for title, lines in found.items() if lines}


def _join_names(group: Iterable[File]) -> str:
    return " = ".join(printable_path(file.name) for file in group)


def _print_list(title: str, lines: Sequence[str], output: str | None) -> None:
    print(f"\n{title}: {len(lines)}")
    for line in lines[:MAX_LINES]:
        print(f"  {line}")
    if len(lines) > MAX_LINES:
        print(f"  … and {len(lines) - MAX_LINES} more: {output or 'see them all with --output FILE.csv'}")


def _table(files: Sequence[File], splits: Sequence[str]) -> tuple[Table, str]:
    """Images of each class and split, of many classes the smallest and the largest; and a line on their balance."""
    counts: Mapping[str, Counter[str]] = defaultdict(Counter)
    for file in files:
        counts[file.label][file.split] += 1
    ranked = sorted(counts, key=lambda label: (-counts[label].total(), label))
    chosen = sorted(counts)
    if len(ranked) > MAX_CLASSES:
        chosen = [*ranked[: MAX_CLASSES // 2], *ranked[-MAX_CLASSES // 2 :]]
    table = Table("class", box=SIMPLE_HEAD)
    for name in [*splits, *(["together"] if len(splits) > 1 else [])]:
        table.add_column("images" if name == "all" else name, justify="right")
    for label in chosen:
        table.add_row(Text(printable_path(label)), *_cells(counts[label], splits))
    table.add_section()
    totals = sum(counts.values(), Counter())
    table.add_row("total", *_cells(totals, splits), style="bold")
    most, least = ranked[0], ranked[-1]
    ratio = counts[most].total() / counts[least].total()
    words = f" {len(counts)} classes; largest: {printable_path(most)}, {ratio:.1f} times the size of the smallest, "
    words += printable_path(least)
    left = f"; {len(ranked) - len(chosen)} in between are not shown" if len(ranked) > len(chosen) else ""
    return table, words + left


def _cells(count: Counter[str], splits: Sequence[str]) -> list[str]:
    together = [f"{count.total():,}"] if len(splits) > 1 else []
    return [f"{count[split]:,}" for split in splits] + together


def _sizes(files: Sequence[File], copies: Sequence[Sequence[File]]) -> Iterable[str]:
    sizes = sorted((file.size for file in files if not file.broken), key=lambda size: (size[0] * size[1], size))
    if sizes:
        least, middle, most = (f"{w} × {h}" for w, h in (sizes[0], sizes[len(sizes) // 2], sizes[-1]))
        megabytes = sum(file.length for file in files) / 1e6
        yield f" pixels: the smallest {least}, the median {middle}, the largest {most}; {megabytes:,.1f} MB in all"
    if copies:
        yield f" {sum(map(len, copies)) - len(copies):,} of {len(files):,} files are exact copies of others"


def _unused_files(root: Path, known: set[str]) -> Iterable[str]:
    """What lies in the folder and is not trained on."""
    paths = (path for path in root.rglob("*") if path.is_file() and path.relative_to(root).as_posix() not in known)
    kinds = Counter(path.suffix.lower() or path.name for path in paths)
    if kinds:
        most = sorted(kinds.items(), key=lambda kind: (-kind[1], kind[0]))[:8]
        told = ", ".join(f"{count:,} {kind}" for kind, count in most)
        stray = ": no images, hidden, or in no class folder" if IMAGE_EXTENSIONS & kinds.keys() else ": no images"
        yield f" left aside: {kinds.total():,} other files ({told}){stray}"


def _write(path: Path, files: Sequence[File]) -> None:
    how = {"newline": "", "encoding": "utf-8", "errors": "surrogateescape"}
    with atomic_write(path) as unfinished, unfinished.open("w", **how) as file:
        table = csv.writer(file)
        table.writerow(["file", "split", "class", "width", "height", "bytes", "broken", "same_as"])
        for one in files:
            table.writerow([one.name, one.split, one.label, *one.size, one.length, one.broken, one.same_as])
