"""Content hashes of image files, to detect duplicates."""

import base64
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path

from resnet_pl.data.bad_images import BadImage, printable_path
from resnet_pl.utils import counted, prog_name, progress


def content_digests(paths: Sequence[Path], skip: bool = False) -> list[str]:
    """Returns the content hash of each file, 32 hexadecimal digits (BLAKE2b, 16 bytes).

    Args:
        paths: the files.
        skip: whether an unreadable file gets a hash of its path instead of raising an error.

    Raises:
        BadImage: a file cannot be read.
    """

    def digest_of(path: Path) -> str:
        try:
            return content_digest(path)
        except BadImage:
            if skip:
                return hashlib.blake2b(os.fsencode(path), digest_size=16).hexdigest()
            raise

    digests = []
    with ThreadPool(8) as pool, progress("comparing images", len(paths)) as advance:
        for digest in pool.imap(digest_of, paths, chunksize=32):
            digests.append(digest)
            advance(1)
    return digests


def content_digest(path: Path) -> str:
    """Returns the content hash of one file; see `content_digests`."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError as error:
        raise BadImage(path, error.strerror or str(error)) from error


# Of a fingerprint: bytes, characters in base64, and those of a file that cannot be read. They equal no other.
_BYTES, _CHARACTERS, _UNREADABLE = 6, 8, "-" * 8
_BLOCK = 4096


def fingerprints(paths: Sequence[Path]) -> str:
    """Returns a short hash of each file, 8 characters, in one string: small enough for a checkpoint.

    It depends on the size of the file and on 4 KiB at its start, middle and end, so that a large data set is read fast.
    Equal files have equal fingerprints. Two different photos have the same one with a probability of 2^-48.
    """
    with ThreadPool(8) as pool, progress("comparing images", len(paths)) as advance:
        found = []
        for fingerprint in pool.imap(_fingerprint, paths, chunksize=32):
            found.append(fingerprint)
            advance(1)
    return "".join(found)


def _fingerprint(path: Path) -> str:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            digest = hashlib.blake2b(size.to_bytes(8, "big"), digest_size=_BYTES)
            for start in (0, size // 2, max(0, size - _BLOCK)):
                file.seek(start)
                digest.update(file.read(_BLOCK))
    except OSError:
        return _UNREADABLE
    return base64.b64encode(digest.digest()).decode()


def describe_copies(root: Path, names: Mapping[str, Sequence[str]], found: Mapping[str, str]) -> str | None:
    """Returns how many images are in several splits, with an example, in one line; None if there are none.

    Args:
        root: folder that the names are relative to.
        names: the images of each split.
        found: their `fingerprints`. Files with the same one are compared completely.
    """
    first: dict[str, tuple[str, str]] = {}
    copies = []
    for split, images in names.items():
        for name, fingerprint in zip(images, split_fingerprints(found[split]), strict=True):
            other_split, other = first.setdefault(fingerprint, (split, name))
            if other_split != split and fingerprint != _UNREADABLE:
                copies.append((other, name))
    copies = [(one, other) for one, other in copies if content_digest(root / one) == content_digest(root / other)]
    if not copies:
        return None
    example = " = ".join(map(printable_path, copies[0]))
    return (
        f"{counted(len(copies), 'image')} in several splits, such as {example}; `{prog_name()} check-data` lists them"
    )


def describe_trained(digests: Mapping[str, str], trained: str) -> str | None:
    """Returns how many images of the evaluation were training images of other weights; None if there are none.

    Args:
        digests: `fingerprints` of the images of each split.
        trained: those of the training images of the weights.
    """
    known = readable(split_fingerprints(trained))
    now = {split: split_fingerprints(digests[split]) for split in ("val", "test") if digests.get(split)}
    seen = {split: sum(each in known for each in found) for split, found in now.items()}
    if not any(seen.values()):
        return None
    counts = " and ".join(f"{count:,} of {len(now[split]):,} {split} images" for split, count in seen.items() if count)
    return (
        f"note: these weights were trained on {counts}, so the results will be too good\n"
        "keep the test images in a folder of their own: test/ next to train/"
    )


def split_fingerprints(text: str) -> list[str]:
    """Returns the fingerprints in a string of `fingerprints`, in order."""
    return [text[at : at + _CHARACTERS] for at in range(0, len(text), _CHARACTERS)]


def readable(found: Iterable[str]) -> set[str]:
    """Returns the fingerprints of files that could be read."""
    return set(found) - {_UNREADABLE}
