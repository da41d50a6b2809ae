"""flower_photos: 3,670 photos of five flowers, from TensorFlow's tutorials."""

from __future__ import annotations

import shutil
from pathlib import Path

from typing_extensions import override

from resnet_pl.data.download import DownloadMixin, extract
from resnet_pl.data.folder import ImageFolder
from resnet_pl.data.typed_kwargs import ImageFolderArgs
from resnet_pl.types import PositiveInt, Unpack


class Flowers(DownloadMixin, ImageFolder):
    """The flower_photos data set, downloaded (229 MB) if missing; photos under Creative Commons BY 2.0.

    Args:
        root: folder of the five class folders, daisy … tulips.
        download: whether the photos are downloaded if `root` is missing.
    """

    urls = [
        "https://storage.googleapis.com/download.tensorflow.org/example_images/flower_photos.tgz",
        "http://download.tensorflow.org/example_images/flower_photos.tgz",
    ]
    checksum = "sha256:4c54ace7911aaffe13a365c34f650e71dd5bf1be0a58b464e5a7183e3e595d9c"

    def __init__(
        self,
        root: str = "data/flower_photos",
        download: bool = True,
        batch_size: PositiveInt = 64,
        **kwargs: Unpack[ImageFolderArgs],
    ) -> None:
        super().__init__(root=root, batch_size=batch_size, **kwargs)
        self.download = download

    @override
    def is_downloaded(self) -> bool:
        return self.root.exists() and not (self.root.is_dir() and not any(self.root.iterdir()))

    def unpack(self, archive: Path) -> None:
        """Unpacks the archive's only folder, flower_photos/, as `root`."""
        unpacked = self.root.with_name(f".{self.root.name}.unpacked")
        extract(archive, unpacked)
        (unpacked / "flower_photos").rename(self.root)
        shutil.rmtree(unpacked)

    @override
    def download_hint(self) -> str:
        return f"download it with --data.download true, or unpack {Path(self.urls[0]).name} from {self.urls[0]} there"
