"""Training and prediction with fastai: python fastai_script.py train DATA LEARNER EPOCHS SEED"""

# ruff: noqa: F403, F405 - as in the tutorials of fastai
# pyright: reportMissingImports=false
import csv
import sys
from functools import partial
from pathlib import Path

from fastai.vision.all import *
from torchvision.models import resnet18


def train(data: str, learner: str, epochs: int, seed: int) -> None:
    set_seed(seed)
    flip = aug_transforms(max_rotate=0, min_zoom=1, max_zoom=1, max_lighting=0, max_warp=0)
    loaders = ImageDataLoaders.from_folder(
        data, train="train", valid="val", bs=64, num_workers=2, device="cpu",
        item_tfms=RandomResizedCrop(128, min_scale=0.25), batch_tfms=[*flip, Normalize.from_stats(*imagenet_stats)],
    )  # fmt: skip
    learn = Learner(
        loaders, resnet18(num_classes=loaders.c), LabelSmoothingCrossEntropy(), metrics=accuracy, wd=5e-4,
        opt_func=partial(SGD, mom=0.9, decouple_wd=False),
    )  # fmt: skip
    learn.fit_flat_cos(epochs, 0.05, pct_start=0)
    learn.export(Path(learner).absolute())


def predict(folder: str, learner: str, output: str) -> None:
    learn = load_learner(learner)
    files = get_image_files(folder)
    _, _, decoded = learn.get_preds(dl=learn.dls.test_dl(files, num_workers=2), with_decoded=True)
    with Path(output).open("w", newline="") as file:
        csv.writer(file).writerows([path, learn.dls.vocab[index]] for path, index in zip(files, decoded, strict=True))


if __name__ == "__main__":
    if sys.argv[1] == "train":
        train(*sys.argv[2:4], *map(int, sys.argv[4:]))
    else:
        predict(*sys.argv[2:])
