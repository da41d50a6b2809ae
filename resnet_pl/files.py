"""Files that are either whole or not there."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EISDIR
from pathlib import Path

from resnet_pl.errors import UserError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give an empty file beside `path` to write; it takes the place of `path` when the block ends well.

    A reader sees the old file or the new one, never half of one; after an error the old file is untouched.

    Raises:
        UserError: if nothing can be written at `path`.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(EISDIR, "it is a folder")
        partial.touch()
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}. Choose another place.") from error
    try:
        yield partial
        # Without it a power cut can leave the new name with none of the new bytes.
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except Exception as error:
        # A full disk is reported without the file's name.
        error.add_note(str(path))
        raise
    finally:
        partial.unlink(missing_ok=True)
