"""Streams images from litdata chunks, in a folder or an object store: for more images than a disk holds.

pip install litdata
python -m examples.convert_to_litdata data/flower_photos data/flower_chunks
python cli.py fit --config configs/folder.yaml --data examples.streaming.StreamedImages --data.root data/flower_chunks
"""

import json
from pathlib import Path
from typing import Any

from litdata import StreamingDataLoader, StreamingDataset

from resnet_pl.data import Crop, ImageDataModule, ScaleCrop
from resnet_pl.data.dataset import ImageFileDataset
from resnet_pl.data.folder import IMAGENET_MEAN, IMAGENET_STD, ImageFolder
from resnet_pl.data.loader import as_batch, collate


class StreamedSplit(ImageFileDataset):
    def encoded(self, index: int, data: bytes | None = None) -> Any:  # reads one image, for TensorBoard and reports
        return super().encoded(index, data or bytes(StreamingDataset(self.url)[index]["file"]))

    def stream(self, training: bool, **kwargs: Any) -> Any:
        images = Stream(self.url, shuffle=training, seed=self.seed)
        images.split = self
        if not training:  # each process needs a batch
            share = len(self.names) // images.distributed_env.world_size
            kwargs["batch_size"] = max(1, min(kwargs["batch_size"], share))
        return StreamLoader(images, drop_last=training, collate_fn=collate, **kwargs)


class Stream(StreamingDataset):
    def __getitem__(self, index: Any) -> Any:
        item = super().__getitem__(index)
        return self.split.sample(self.current_epoch - 1, item["index"], bytes(item["file"]))


class StreamLoader(StreamingDataLoader):
    def load_state_dict(self, obj: dict[str, Any]) -> None:
        self.dataset.set_epoch(obj["current_epoch"])  # otherwise `state_dict` would set another one
        place = self.dataset.input_dir  # the chunks may have been moved
        own = obj["dataset"] | {"input_dir_path": place.path, "input_dir_url": place.url}
        self.done = obj["num_samples_yielded"] // obj["dataset"]["batch_size"]  # batches
        super().load_state_dict(obj | {"dataset": own})

    def __iter__(self) -> Any:
        for number, samples in enumerate(super().__iter__(), self.done if self.restore else 0):
            self.restore = False  # of this epoch only; Lightning does not exhaust the iterator, as litdata expects
            yield as_batch(samples, self.current_epoch - 1, number)


class StreamedImages(ImageDataModule):
    """Images in chunks that convert_to_litdata.py has written.

    Args:
        root: folder of the chunks, or its URL in an object store, such as s3://bucket/flowers.
        crop: training crop.
    """

    defaults, store_split_names = ImageFolder.defaults, False

    def __init__(self, root: str = "data/chunks", crop: Crop | None = None, **kwargs: Any) -> None:
        super().__init__(mean=IMAGENET_MEAN, std=IMAGENET_STD, **kwargs)
        self.url, self.crop = root, crop or ScaleCrop()

    def find_splits(self) -> dict[str, Any]:
        about = json.loads(StreamingDataset(f"{self.url}/about")[0])
        self.classes = about.pop("classes")
        for name, (names, labels) in about.items():
            crop = self.crop if name == "train" else self.eval_crop
            self.splits[name] = StreamedSplit(Path(), names, labels, self.image_size, crop, seed=self.seed)
            self.splits[name].url = f"{self.url}/{name}"
        return self.splits
