"""Data sets that are fetched from the network where they are not there yet."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from resnet_pl.data.download import fetch, lock
from resnet_pl.utils import UserError


class Downloaded:
    """What data modules share whose images come in an archive; put it before the data module among the bases.

    Attributes:
        urls: addresses of the archive.
        checksum: of the archive, see `fetch`.
        root: folder of the images.
        download: whether to fetch the archive when they are not there.
    """

    urls: ClassVar[list[str]]
    checksum: ClassVar[str]
    root: Path
    download: bool

    def is_there(self) -> bool:
        """Whether the images need not be fetched."""
        raise NotImplementedError

    def unpack(self, archive: Path) -> None:
        """Makes the images of the archive, which is then removed; leaves nothing half-done."""
        raise NotImplementedError

    def prepare_data(self) -> None:
        """Downloads the images if they are needed and not there."""
        if not self.download or self.predict_paths is not None or self.is_there():
            return
        folder, name = self.root.parent, type(self).__name__
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Runs that start together: one fetches and unpacks, the others wait for the images.
            with lock(folder / f"{self.root.name}.lock", name):
                if not self.is_there():
                    hint = f"or give the folder of your copy with --data.root FOLDER (looked in {self.root})"
                    archive = folder / Path(self.urls[0]).name
                    self.unpack(fetch(self.urls, archive, self.checksum, what=name, hint=hint))
                    archive.unlink()
        except OSError as error:
            raise UserError(
                f"cannot write to {folder}: {error.strerror}\nchoose another place with --data.root"
            ) from error
