"""flower_photos: 3,670 photos of five flowers, from TensorFlow's tutorials."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from resnet_pl.archives import extract
from resnet_pl.data.folder import ImageFolder
from resnet_pl.download import fetch

URLS = [
    "https://storage.googleapis.com/download.tensorflow.org/example_images/flower_photos.tgz",
    "http://download.tensorflow.org/example_images/flower_photos.tgz",
]
CHECKSUM = "sha256:4c54ace7911aaffe13a365c34f650e71dd5bf1be0a58b464e5a7183e3e595d9c"


class Flowers(ImageFolder):
    """The flower_photos data set, downloaded (229 MB) when it is not there; photos under Creative Commons BY 2.0.

    Args:
        root: folder of the five class folders, daisy … tulips.
        download: whether to fetch the photos when `root` is not there.
    """

    def __init__(self, root: str = "data/flower_photos", download: bool = True, **kwargs: Any) -> None:
        super().__init__(root=root, **kwargs)
        self.download = download

    def prepare_data(self) -> None:
        """Downloads the photos if they are not there."""
        if self.root.is_dir() or not self.download:
            return
        hint = f"or give the folder of your copy with --data.root FOLDER (looked for {self.root})"
        archive = fetch(URLS, self.root.parent / "flower_photos.tgz", CHECKSUM, what="flower_photos", hint=hint)
        # The archive holds one folder, flower_photos/; it becomes the root, whatever that is called.
        unpacked = self.root.with_name(self.root.name + ".unpacked")
        extract(archive, unpacked)
        (unpacked / "flower_photos").rename(self.root)
        unpacked.rmdir()
        archive.unlink()

    def where_to_get(self) -> str:
        """See `ImageFolder.where_to_get`."""
        return f"download it with --data.download true, or unpack {Path(URLS[0]).name} from {URLS[0]} there"
