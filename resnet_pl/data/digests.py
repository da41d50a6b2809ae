"""Content hashes of image files, to detect duplicates."""

import hashlib
import os
from collections.abc import Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path

from resnet_pl.data.decode import BadImage
from resnet_pl.utils import progress


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
