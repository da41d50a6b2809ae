"""Corrupt and unusual images are decoded, or rejected with a short reason; training skips what is rejected."""

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

from resnet_pl.data.bad_images import BadImage
from resnet_pl.data.decode import read_image, verify_image
from tests.conftest import write_photos
from tests.faults.forks import forked, run_command

CONFIG = Path(__file__).parents[2] / "configs" / "folder.yaml"
# Format, extension, supported modes, and options of `Image.save`.
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
# Exit code for a rejected image.
REJECTED = 3


def prepare(folder: Path) -> None:
    """The trials need no reference."""


def trial(_: None, rng: random.Random, folder: Path) -> dict[str, Any]:
    """Reads a corrupt or unusual file, or trains on a folder with several of them.

    Returns:
        `kind` of the file; `outcome`: decoded, rejected or trained; `failed`: the reason or None.
    """
    folder.mkdir(parents=True)
    row = _train(rng, folder) if rng.random() < 0.05 else _read(rng, folder)
    shutil.rmtree(folder)
    return row


def _read(rng: random.Random, folder: Path) -> dict[str, Any]:
    kind, path = write_image(folder, "image", rng)
    result = forked(lambda: _read_and_verify(path), folder / "work", seconds=20, memory=2 * 2**30)
    outcome = {0: "decoded", REJECTED: "rejected"}.get(result.code, "failed")
    reason = result.out.strip()
    failed = None
    if outcome == "failed":
        failed = f"{kind}, {path.suffix}: exit code {result.code}: {result.err[-400:]}"
    elif outcome == "rejected" and len(reason.splitlines()) != 1:
        failed = f"{kind}, {path.suffix}: the reason is {reason!r}"
    elif kind in INTACT and outcome != "decoded" and "no defined range" not in reason:
        failed = f"{kind}, {path.suffix}: {reason}"
    return {"kind": kind, "file": path.suffix, "outcome": outcome, "message": reason[:200], "failed": failed}


def _read_and_verify(path: Path) -> int:
    """Reads and verifies a file; both must give the same result."""
    verified = read = None
    try:
        verified = verify_image(path)
    except BadImage as error:
        print(error.reason)
    try:
        read = read_image(path)
    except BadImage as error:
        if verified is not None:
            print(error.reason)
        return REJECTED
    assert verified is not None, "it can be read, but verify_image rejects it"
    assert read.dtype == torch.uint8 and read.shape[0] == 3, read.shape
    assert sorted(read.shape[1:]) == sorted(verified), (read.shape, verified)
    return 0


def _train(rng: random.Random, folder: Path) -> dict[str, Any]:
    """Trains on intact and on corrupt or unusual images; unreadable ones are skipped, or named in the message."""
    photos = write_photos(folder / "photos", ["ant", "bee"], count=8)
    unusual = [write_image(photos / rng.choice(["ant", "bee"]), f"unusual{n}", rng)[1] for n in range(8)]
    bad = [path for path in unusual if not is_readable(path)]
    model = ["--model.backbone", "cifar_resnet", "--model.backbone.depth", 8, "--model.weights", "null"]
    data = ["--data.root", photos.resolve(), "--data.image_size", 16, "--data.batch_size", 4]
    workers = ["--data.num_workers", rng.choice([0, 1]), "--trainer.max_epochs", 1]
    argv = ["fit", "--config", CONFIG, *model, *data, *workers]
    skip = run_command([*argv, "--data.on_bad_image", "skip"], folder / "skip")
    error = run_command(argv, folder / "error")
    failed = None
    if skip.code or "Traceback" in skip.err:
        failed = f"skip: exit code {skip.code}: {skip.err[-400:]}"
    elif bad and not (error.rejected() and any(path.name in error.message[0] for path in bad)):
        failed = f"error: exit code {error.code}: {error.err[-400:]}"
    elif not bad and error.code:
        failed = f"intact images: exit code {error.code}: {error.err[-400:]}"
    return {"kind": "training", "outcome": "trained", "bad": len(bad), "failed": failed}


def is_readable(path: Path) -> bool:
    """Whether `read_image` accepts a file."""
    try:
        read_image(path)
    except BadImage:
        return False
    return True


# ------------------------------------------------------------------------------------ files
def write_image(folder: Path, name: str, rng: random.Random) -> tuple[str, Path]:
    """Writes a corrupt or unusual image file; returns its kind and its path."""
    kind, file_format = rng.choice([*DAMAGE, *DAMAGE, *INTACT]), rng.choice(FORMATS)
    _, extension, modes, options = file_format
    if kind in INTACT:
        data, extension = INTACT[kind](rng, extension)
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
    """Changes a byte of the header, where the image size is."""
    data[rng.randrange(min(64, len(data)))] = rng.randrange(256)
    return bytes(data)


def _extended(data: bytearray, rng: random.Random) -> bytes:
    return bytes(data) + rng.randbytes(rng.choice([1, 5000]))


def _joined(data: bytearray, rng: random.Random) -> bytes:
    """An interrupted download that was restarted without truncating the file."""
    return bytes(data[: rng.randrange(1, len(data) + 1)]) + bytes(data)


def _huge(data: bytearray, rng: random.Random) -> bytes:
    """A valid PNG header of an image that would need gigabytes."""
    header = struct.pack(">IIBBBBB", rng.choice([9_500, 60_000, 2**31 - 1]), 50_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + bytes(data[-200:])
    )


DAMAGE = {
    "truncated": _truncated,
    "bits flipped": _flipped,
    "bytes zeroed": _zeroed,
    "header changed": _header,
    "bytes appended": _extended,
    "partial and complete file": _joined,
    "huge size in the header": _huge,
    "empty file": lambda data, rng: b"",
    "text file": lambda data, rng: b"<!DOCTYPE html><p>404 Not Found</p>" * rng.choice([1, 100]),
    "random bytes": lambda data, rng: rng.randbytes(rng.choice([3, 500])),
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
    """A JPEG with an EXIF orientation, valid or corrupted."""
    exif = Image.Exif()
    exif[0x0112] = rng.randrange(12)
    data = bytearray(exif.tobytes())
    if rng.random() < 0.5:
        data[rng.randrange(6, len(data))] ^= 0xFF
    file = io.BytesIO()
    Image.frombytes("RGB", (16, 12), rng.randbytes(576)).save(file, "JPEG", exif=bytes(data))
    return file.getvalue(), ".jpg"


INTACT = {"unusual mode": _unusual, "wrong extension": _misnamed, "animated": _animated, "orientation": _exif}


def summary(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Lines of Markdown with the figures."""
    lines = ["| File | Trials | Decoded | Rejected with a reason | Failed |", "| --- | --- | --- | --- | --- |"]
    for kind in [*INTACT, *DAMAGE]:
        of_kind = [row for row in rows if row["kind"] == kind]
        outcomes = Counter(row["outcome"] for row in of_kind)
        failed = sum(row["failed"] is not None for row in of_kind)
        lines.append(f"| {kind} | {len(of_kind):,} | {outcomes['decoded']:,} | {outcomes['rejected']:,} | {failed:,} |")
    trainings = [row for row in rows if row["kind"] == "training"]
    passed = sum(row["failed"] is None for row in trainings)
    bad = sum(row["bad"] for row in trainings)
    return [
        *lines,
        "",
        f"Training runs on folders with unreadable images: {passed:,} of {len(trainings):,} passed, with {bad:,} such "
        "images in total. With `on_bad_image: skip` they skipped all of them, with `error` they named one.",
    ]
