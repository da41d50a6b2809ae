"""Commands of README and docs/paper.md: what they read, how they are shortened, and what is prepared for them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torchvision
import yaml
from PIL import Image

from resnet_pl import models
from resnet_pl.cli.main import main
from resnet_pl.command_line import split_option
from resnet_pl.run_dir import class_name, get_init_args

PROJECT = Path(__file__).parents[2]
# Pages of the site that README does not repeat; their commands are parsed by `make test` and run by `make test-slow`.
SITE_NAMES = ("index", "data", "configure", "evaluate", "faq", "coming_from")
SITE_PAGES = [PROJECT / "docs" / f"{name}.md" for name in SITE_NAMES]
WEIGHTS = {
    "resnet18": "resnet18-f37072fd.pth",
    "resnet34": "resnet34-b627a593.pth",
    "resnet50": "resnet50-0676ba61.pth",
    "convnext_tiny": "convnext_tiny-983f1562.pth",
}
# ResNets of this project, which these commands train with fewer channels.
OWN, WIDTH = [name for name in models.NETWORKS if name.startswith("resnet")], "8"
FEW_STEPS = "--trainer.max_epochs 1 --trainer.limit_train_batches 2 --trainer.limit_val_batches 2 --data.num_workers 0"
FEW_STEPS += " --dashboard.images 0 --dashboard.graph false"
SMALL_IMAGES = "--data.image_size 32 --data.batch_size 4 --trainer.devices 1"
IMAGE_FILES = ("Flowers", "ImageFolder", "ImageNet", "ImageTable")
# Keys whose value is a class or a function.
CLASS_KEYS = ("model", "model.backbone", "model.loss", "model.optimizer", "data", "data.crop", "data.mix")


# ------------------------------------------------------------------------------------ what a command reads
def option(args: list[str], name: str) -> str | None:
    """Returns the last value of an option."""
    values, _ = split_option(args, f"--{name}")
    return values[-1] if values else None


def setting(args: list[str], key: str) -> str | None:
    """Returns the value or the class name of a key such as `model.backbone`, from the options or the config files."""
    if (value := option(args, key)) is not None:
        return value
    section, _, name = key.partition(".")
    for path in reversed(split_option(args, "--config")[0]):
        if (PROJECT / path).is_file():
            config = yaml.safe_load((PROJECT / path).read_text(encoding="utf-8")).get(section)
            value = get_init_args(config).get(name) if name else config
            if value := class_name(value) if isinstance(value, dict) else value:
                return str(value)
    return None


def own_input(args: list[str], root: Path) -> str | None:
    """Returns what a command reads that is not part of the project, None if all of it can be prepared below `root`."""
    values = [word.rpartition("=")[2] for word in args]
    for path in [value for value in [*values, setting(args, "data.root")] if value and "/" in value]:
        shipped = path.startswith(("configs/", "runs/", "val/")) or (PROJECT / path).is_file()
        if not shipped and not (root / path).exists():
            return path
    names = {value for key in CLASS_KEYS if (value := setting(args, key)) and "." in value}
    for name in names | {value for value in values if re.fullmatch(r"[a-z_]\w*\.[\w.]*[A-Z]\w*", value)}:
        package = find_spec(name.split(".")[0])
        if package is None or package.origin is None:  # not installed, or a folder of `Prepared`
            return name
    if (data := setting(args, "data")) and "." in data and not data.startswith("resnet_pl."):
        return data
    if option(args, "model.backbone.pretrained") == "true":
        return "weights that timm downloads"
    if "configs/loggers/wandb.yaml" in args and find_spec("wandb") is None:
        return "the package wandb"
    weights, backbone = setting(args, "model.weights"), (setting(args, "model.backbone") or "").split(".")[-1]
    if weights not in (None, "null") and (backbone not in WEIGHTS or not weights.endswith("IMAGENET1K_V1")):
        return f"the weights {weights} of {backbone}"
    checkpoint = option(args, "ckpt_path")
    return checkpoint if checkpoint and not re.match(r"best$|last$|runs/", checkpoint) else None


# Options that shorten the commands of `paper`.
STUDY_OPTIONS = {
    "gradients": ["--batches", "1"],
    "lesion": ["--counts", "2", "--draws", "1", "--images", "10"],
    "shattering": ["--layers", "2", "--depths", "8", "--seeds", "1"],
}


def shortened(args: list[str]) -> list[str]:
    """Returns the arguments of a command with few steps and small images."""
    if "--scales" in args:
        args = [str(int(word) * 32 // 224) if word.isdecimal() and int(word) >= 224 else word for word in args]
    if args[0] == "sweep":
        return [*args, "--print"]
    if args[0] == "paper" and args[1] in STUDY_OPTIONS:
        return [*args, *STUDY_OPTIONS[args[1]]]
    small: list[str] = []
    if args[0] == "fit":
        small += shlex.split(FEW_STEPS)
        if "--ckpt_path" in args:  # one more epoch than the prepared run
            small += ["--trainer.max_epochs", "2"]
        if (setting(args, "model.backbone") or "").startswith("cifar_"):
            small += ["--model.backbone.depth", "8"]
        if setting(args, "data") == "CIFAR10" and option(args, "data.val_split") is None:
            small += ["--data.val_split", "20"]
    if setting(args, "model.backbone") in OWN:
        small += ["--model.backbone.width", WIDTH]
    if setting(args, "data") in IMAGE_FILES:
        small += shlex.split(SMALL_IMAGES)
    return [*args, *small]


# ------------------------------------------------------------------------------------ preparation
def write_images(folder: Path, classes: tuple[str, ...] = ("cat", "dog")) -> None:
    """Writes ten JPEGs per class."""
    rng = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(10):
            Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(folder / name / f"{i}.jpg")


class Prepared:
    """Generates what the commands read: datasets at once, weights and runs when they are first needed.

    Args:
        root: an empty directory, which becomes the working directory of the runs.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("my/photos", "new/photos", "data/flower_photos", "data/photos"):
            write_images(root / folder)
        rows = [f"photos/{path.parent.name}/{path.name},{path.parent.name}" for path in root.glob("my/photos/*/*")]
        (root / "my/labels.csv").write_text("\n".join(["path,label", *rows]))
        for part in ("train", "val"):
            write_images(root / "data/imagenet" / part, ("n01440764", "n01443537"))
        rng, arrays = np.random.default_rng(0), {}
        for part, count in (("train", 300), ("test", 20)):
            arrays[f"x_{part}"] = rng.integers(0, 255, (count, 32, 32, 3), dtype=np.uint8)
            arrays[f"y_{part}"] = np.arange(count) % 10
        (root / "data/cifar10").mkdir()
        np.savez(root / "data/cifar10/cifar10.npz", **arrays)
        (root / "configs").symlink_to(PROJECT / "configs")
        (root / "weights").mkdir()
        self.weights, self.run = cache(self._weights), cache(self._run)

    def _weights(self, backbone: str) -> None:
        """Writes a file with the names of torchvision's weights and the shapes of the network; all values are zero."""
        with torch.device("meta"):
            own = backbone in OWN
            net = getattr(models, backbone)(width=int(WIDTH)) if own else getattr(torchvision.models, backbone)()
            shapes = net.state_dict()
        state = {key: torch.zeros_like(value, device="cpu") for key, value in shapes.items()}
        torch.save(state, self.root / "weights" / WEIGHTS[backbone])

    def _run(self, config: str) -> Path:
        """Returns the folder of a trained and tested run."""
        name = config.replace("/", "-")
        fit = ["fit", "--config", f"configs/{config}.yaml", "--name", name, "--model.weights", "null"]
        if config == "paper/imagenet":  # smaller than its ResNet-50
            fit += ["--model.backbone", "resnet18"]
        assert main(shortened(fit)) == 0
        run = self.root / "runs" / name / "version_0"
        assert main(["test", "--ckpt_path", str(run)]) == 0
        return run

    def copy_runs(self, args: list[str], folder: Path) -> None:
        """Copies the runs that a command names into its working directory."""
        runs = {tuple(word.split("/")[1:3]) for word in args if word.startswith("runs/")}
        if option(args, "ckpt_path") in ("best", "last"):
            runs.add((option(args, "name") or "folder", "version_0"))
        for name, *version in runs:
            config = "folder" if name == "folder" else "paper/imagenet" if "imagenet" in name else "paper/cifar10"
            target = folder / "runs" / name / "".join(version or ["version_0"])
            shutil.copytree(self.run(config), target, copy_function=_copy)
            if "--ensemble" in args:
                shutil.copy(self.run(config) / "checkpoints/best.ckpt", folder / "precise.ckpt")


def _copy(source: str, target: str) -> None:
    """Copies a file; a checkpoint, which is large and only ever replaced, as a hard link."""
    (os.link if source.endswith(".ckpt") else shutil.copy)(source, target)
