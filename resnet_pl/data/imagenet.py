"""ImageNet as it is usually unpacked: train/ and val/ with a folder for each wordnet id."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from resnet_pl.data.folder import ImageFolder, class_folders


class ImageNet(ImageFolder):
    """ImageNet (ILSVRC 2012): root/train/n01440764/*, root/val/n01440764/*; val/ is what results are reported on.

    A subset of the classes works too. Class names come from root/LOC_synset_mapping.txt; without it the names of
    the whole 1,000 are known, and a subset goes by its wordnet ids.

    Args:
        root: folder that holds train/ and val/.
        batch_size: training images a step and process; the paper's 256 is over all its GPUs.
    """

    def __init__(self, root: str = "data/imagenet", batch_size: int = 256, **kwargs: Any) -> None:
        super().__init__(root=root, batch_size=batch_size, **kwargs)

    def download_hint(self) -> str:
        """See `ImageFolder.download_hint`."""
        return "download ILSVRC 2012 from image-net.org, unpack it to train/ and val/, and give it with --data.root"

    def split_dir(self, part: str) -> Path | None:
        """See `ImageFolder.split_dir`; the official test/ is a heap of images whose classes were never published."""
        folder = super().split_dir(part)
        return folder if part != "test" or (folder and class_folders(folder)) else None

    @property
    def class_names(self) -> list[str]:
        """The first English word for each wordnet id; the id is added where two classes share it."""
        # The net's names are those it was trained under, also where another copy of the data has no list of them.
        if self.restored_provenance.class_names:
            return self.restored_provenance.class_names
        words = self._words()
        names = [words.get(wordnet_id, wordnet_id) for wordnet_id in self.classes]
        count = Counter(names)
        return [name if count[name] == 1 else f"{name} ({self.classes[i]})" for i, name in enumerate(names)]

    def _words(self) -> dict[str, str]:
        mapping = self.root / "LOC_synset_mapping.txt"
        if mapping.is_file():
            lines = (line.partition(" ") for line in mapping.read_text(encoding="utf-8").splitlines())
            return {wordnet_id: words.split(",")[0].strip() for wordnet_id, _, words in lines if words.strip()}
        if len(self.classes) == 1000 and (self.classes[0], self.classes[-1]) == ("n01440764", "n15075141"):
            from torchvision.models import ResNet18_Weights

            return dict(zip(self.classes, ResNet18_Weights.DEFAULT.meta["categories"], strict=True))
        return {}
