"""Damaged, mislabelled and unusual images: pixels or a reason in a few words, and training goes on without them."""

from __future__ import annotations

import io
import random
import shutil
import struct
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from resnet_pl.data.decode import BadImage, read_image, verify_image
from tests.conftest import write_photos
from tests.faults.forks import command, forked

CONFIG = Path(__file__).parents[2] / "configs" / "folder.yaml"
# Format, its extension, the modes it can hold, and how it is saved.
FORMATS: list[tuple[str, str, list[str], dict[str, Any]]] = [
    ("JPEG", ".jpg", ["RGB", "L", "CMYK"], {}),
    ("JPEG", ".jpeg", ["RGB"], {"progressive": True}),
    ("PNG", ".png", ["RGB", "RGBA", "L", "LA", "P", "1", "I;16"], {}),
    ("GIF", ".gif", ["P", "L"], {}),
    ("BMP", ".bmp", ["RGB", "L", "1"], {}),
    ("WEBP", ".webp", ["RGB", "RGBA"], {}),
    ("TIFF", ".tif", ["RGB", "L", "CMYK", "I;16", "F", "I"], {}),
    ("TIFF", ".tiff", ["RGB"], {"compression": "tiff_lzw"}),
    ("PPM", ".ppm", ["RGB", "L"], {}),
]
BAD = 3


def prepare(folder: Path) -> None:
    """Nothing."""


def trial(_: None, rng: random.Random, folder: Path) -> dict[str, Any]:
    """Reads a file that is damaged or unusual, or trains on a folder with several of them.

    Returns:
        `kind` of the damage; `outcome`: pixels, a reason, or a training; `failed`, in words or None.
    """
    folder.mkdir(parents=True)
    found = _train(rng, folder) if rng.random() < 0.05 else _read(rng, folder)
    shutil.rmtree(folder)
    return found


def _read(rng: random.Random, folder: Path) -> dict[str, Any]:
    kind, path = write_spoilt(folder, "image", rng)
    ended = forked(lambda: _look(path), folder / "work", seconds=20, memory=2 * 2**30)
    outcome = {0: "pixels", BAD: "reason"}.get(ended.code, "failed")
    said = ended.out.strip()
    failed = None
    if outcome == "failed":
        failed = f"{kind}, {path.suffix}: exit code {ended.code}: {ended.err[-400:]}"
    elif outcome == "reason" and not 0 < len(said.splitlines()) <= 1:
        failed = f"{kind}, {path.suffix}: the reason is {said!r}"
    elif kind in SOUND and outcome != "pixels" and "no set range" not in said:
        failed = f"{kind}, {path.suffix}: {said}"
    return {"kind": kind, "file": path.suffix, "outcome": outcome, "said": said[:200], "failed": failed}


def _look(path: Path) -> int:
    """Reads and scans a file, and compares what both say."""
    scanned = read = None
    try:
        scanned = verify_image(path)
    except BadImage as error:
        print(error.reason)
    try:
        read = read_image(path)
    except BadImage as error:
        if scanned is not None:
            print(error.reason)
        return BAD
    assert scanned is not None, "it can be read, but not scanned"
    assert read.dtype == torch.uint8 and read.shape[0] == 3, read.shape
    assert sorted(read.shape[1:]) == sorted(scanned), (read.shape, scanned)
    return 0


def _train(rng: random.Random, folder: Path) -> dict[str, Any]:
    """Trains on sound photos and spoilt ones; what cannot be read is left out, or named."""
    photos = write_photos(folder / "photos", ["ant", "bee"], count=8)
    spoilt = [write_spoilt(photos / rng.choice(["ant", "bee"]), f"spoilt{n}", rng)[1] for n in range(8)]
    bad = [path for path in spoilt if not _sound(path)]
    net = ["--model.backbone", "cifar_resnet", "--model.backbone.depth", 8, "--model.weights", "null"]
    data = ["--data.root", photos.resolve(), "--data.image_size", 16, "--data.batch_size", 4]
    workers = ["--data.num_workers", rng.choice([0, 1]), "--trainer.max_epochs", 1]
    argv = ["fit", "--config", CONFIG, *net, *data, *workers]
    skip = command([*argv, "--data.on_bad_image", "skip"], folder / "skip")
    error = command(argv, folder / "error")
    failed = None
    if skip.code or "Traceback" in skip.err:
        failed = f"skip: exit code {skip.code}: {skip.err[-400:]}"
    elif bad and not (error.told() and any(path.name in error.message[0] for path in bad)):
        failed = f"error: exit code {error.code}: {error.err[-400:]}"
    elif not bad and error.code:
        failed = f"sound photos: exit code {error.code}: {error.err[-400:]}"
    return {"kind": "training", "outcome": "trained", "bad": len(bad), "failed": failed}


def _sound(path: Path) -> bool:
    try:
        read_image(path)
    except BadImage:
        return False
    return True


# ------------------------------------------------------------------------------------ files
def write_spoilt(folder: Path, name: str, rng: random.Random) -> tuple[str, Path]:
    """Writes a file that looks like an image; returns what is special about it, and its path."""
    kind, file_format = rng.choice([*DAMAGE, *DAMAGE, *SOUND]), rng.choice(FORMATS)
    _, extension, modes, options = file_format
    if kind in SOUND:
        data, extension = SOUND[kind](rng, extension)
    else:
        data = DAMAGE[kind](bytearray(_encoded(rng, file_format[0], rng.choice(modes), **options)), rng)
    path = folder / f"{name}{extension}"
    path.write_bytes(data)
    return kind, path


def _encoded(rng: random.Random, file_format: str, mode: str, **options: Any) -> bytes:
    size = rng.choice([(1, 1), (7, 3), (24, 20), (64, 48)])
    image = Image.frombytes("RGB", size, rng.randbytes(3 * size[0] * size[1]))
    image = image.convert("L").convert(mode) if mode in ("I;16", "F", "I") else image.convert(mode)
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def _truncated(data: bytearray, rng: random.Random) -> bytes:
    return bytes(data[: rng.randrange(len(data))])


def _flipped(data: bytearray, rng: random.Random) -> bytes:
    for _ in range(rng.choice([1, 4, 30])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def _zeroed(data: bytearray, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    data[at : at + 64] = bytes(len(data[at : at + 64]))
    return bytes(data)


def _header(data: bytearray, rng: random.Random) -> bytes:
    """Damage where the sizes and tables are."""
    data[rng.randrange(min(64, len(data)))] = rng.randrange(256)
    return bytes(data)


def _extended(data: bytearray, rng: random.Random) -> bytes:
    return bytes(data) + rng.randbytes(rng.choice([1, 5000]))


def _joined(data: bytearray, rng: random.Random) -> bytes:
    """A download that broke off and began anew in the middle of the file."""
    return bytes(data[: rng.randrange(1, len(data) + 1)]) + bytes(data)


def _huge(data: bytearray, rng: random.Random) -> bytes:
    """A sound PNG header that asks for gigabytes."""
    header = struct.pack(">IIBBBBB", rng.choice([9_500, 60_000, 2**31 - 1]), 50_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + bytes(data[-200:])
    )


DAMAGE = {
    "truncated": _truncated,
    "bits flipped": _flipped,
    "zeroed": _zeroed,
    "header": _header,
    "extended": _extended,
    "joined": _joined,
    "huge": _huge,
    "empty": lambda data, rng: b"",
    "text": lambda data, rng: b"<!DOCTYPE html><p>404 Not Found</p>" * rng.choice([1, 100]),
    "noise": lambda data, rng: rng.randbytes(rng.choice([3, 500])),
}


def _unusual(rng: random.Random, extension: str) -> tuple[bytes, str]:
    name, extension, modes, options = rng.choice(FORMATS)
    return _encoded(rng, name, rng.choice(modes), **options), extension


def _misnamed(rng: random.Random, extension: str) -> tuple[bytes, str]:
    return _unusual(rng, extension)[0], extension


def _animated(rng: random.Random, extension: str) -> tuple[bytes, str]:
    frames = [Image.frombytes("RGB", (16, 12), rng.randbytes(576)) for _ in range(3)]
    name, extension = rng.choice([("GIF", ".gif"), ("PNG", ".png"), ("WEBP", ".webp"), ("TIFF", ".tif")])
    file = io.BytesIO()
    frames[0].save(file, name, save_all=True, append_images=frames[1:])
    return file.getvalue(), extension


def _exif(rng: random.Random, extension: str) -> tuple[bytes, str]:
    """An orientation, sound or damaged."""
    exif = Image.Exif()
    exif[0x0112] = rng.randrange(12)
    words = bytearray(exif.tobytes())
    if rng.random() < 0.5:
        words[rng.randrange(6, len(words))] ^= 0xFF
    file = io.BytesIO()
    Image.frombytes("RGB", (16, 12), rng.randbytes(576)).save(file, "JPEG", exif=bytes(words))
    return file.getvalue(), ".jpg"


SOUND = {"unusual mode": _unusual, "wrong extension": _misnamed, "animated": _animated, "orientation": _exif}


def summary(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Figures, as lines of Markdown."""
    lines = ["| file | tried | pixels | a reason in a few words | not survived |", "|---|---|---|---|---|"]
    for kind in [*SOUND, *DAMAGE]:
        of_kind = [row for row in rows if row["kind"] == kind]
        outcomes = Counter(row["outcome"] for row in of_kind)
        failed = sum(row["failed"] is not None for row in of_kind)
        lines.append(f"| {kind} | {len(of_kind):,} | {outcomes['pixels']:,} | {outcomes['reason']:,} | {failed:,} |")
    trainings = [row for row in rows if row["kind"] == "training"]
    good = sum(row["failed"] is None for row in trainings)
    bad = sum(row["bad"] for row in trainings)
    told = f"{len(trainings):,} trainings on folders that held {bad:,} bad files among sound ones: {good:,} left all of"
    return [*lines, "", f"{told} them out with `on_bad_image: skip`, and named one with `error`."]
