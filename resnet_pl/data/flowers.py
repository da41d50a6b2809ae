"""flower_photos: 3,670 photos of five flowers, from TensorFlow's tutorials."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from resnet_pl.data.download import DownloadMixin, extract
from resnet_pl.data.folder import ImageFolder


class Flowers(DownloadMixin, ImageFolder):
    """The flower_photos data set, downloaded (229 MB) when it is not there; photos under Creative Commons BY 2.0.

    Args:
        root: folder of the five class folders, daisy … tulips.
        download: whether to fetch the photos when `root` is not there.
    """

    urls = [
        "https://storage.googleapis.com/download.tensorflow.org/example_images/flower_photos.tgz",
        "http://download.tensorflow.org/example_images/flower_photos.tgz",
    ]
    checksum = "sha256:4c54ace7911aaffe13a365c34f650e71dd5bf1be0a58b464e5a7183e3e595d9c"

    def __init__(self, root: str = "data/flower_photos", download: bool = True, **kwargs: Any) -> None:
        super().__init__(root=root, **kwargs)
        self.download = download

    def is_downloaded(self) -> bool:
        """See `DownloadMixin.is_downloaded`."""
        return self.root.exists() and not (self.root.is_dir() and not any(self.root.iterdir()))

    def unpack(self, archive: Path) -> None:
        """See `Downloaded.unpack`."""
        # The archive holds one folder, flower_photos/; it becomes the root, whatever that is called.
        unpacked = self.root.with_name(f".{self.root.name}.unpacked")
        extract(archive, unpacked)
        (unpacked / "flower_photos").rename(self.root)
        shutil.rmtree(unpacked)

    def download_hint(self) -> str:
        """See `ImageFolder.download_hint`."""
        return f"download it with --data.download true, or unpack {Path(self.urls[0]).name} from {self.urls[0]} there"
