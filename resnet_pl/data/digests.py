"""Hashes of image files, which tell copies of an image from different images."""

import hashlib
import os
from collections.abc import Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path

from resnet_pl.data.decode import BadImage
from resnet_pl.utils import progress


def content_digests(paths: Sequence[Path], skip: bool = False) -> list[str]:
    """Hashes the files' contents.

    Args:
        paths: the files.
        skip: whether one that cannot be read counts as a content of its own, for whoever reads it later to leave out.

    Returns:
        For each path 32 hexadecimal digits (BLAKE2b, 16 bytes).

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
    """Hashes one file's content; see `content_digests`."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError as error:
        raise BadImage(path, error.strerror) from error
