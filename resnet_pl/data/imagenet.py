"""ImageNet as usually unpacked: train/ and val/ with one folder per WordNet ID."""

from __future__ import annotations

from collections import Counter

from typing_extensions import override

from resnet_pl.data.folder import ImageFolder
from resnet_pl.data.typed_kwargs import ImageFolderArgs
from resnet_pl.types import PositiveInt, Unpack


class ImageNet(ImageFolder):
    """ImageNet (ILSVRC 2012): root/train/n01440764/*, root/val/n01440764/*; results are reported on val/.

    A subset of the classes works too. Class names come from root/LOC_synset_mapping.txt. Without that file, the names
    of all 1,000 classes are known, and a subset uses its WordNet IDs.

    Args:
        root: folder that contains train/ and val/.
        batch_size: training batch size per process; the paper's 256 is the total over all its GPUs.
    """

    paper_batch_size = 256

    def __init__(
        self, root: str = "data/imagenet", batch_size: PositiveInt = 256, **kwargs: Unpack[ImageFolderArgs]
    ) -> None:
        super().__init__(root=root, batch_size=batch_size, **kwargs)

    @override
    def download_hint(self) -> str:
        return "download ILSVRC 2012 from image-net.org, unpack it to train/ and val/, and pass it with --data.root"

    @property
    def class_names(self) -> list[str]:
        """First English word of each WordNet ID; followed by the ID if two classes share the word."""
        # A checkpoint keeps its class names, also if this copy of the data has no list of them.
        if self.restored_provenance and self.restored_provenance.class_names:
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
