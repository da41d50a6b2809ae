"""Every command and every line of Python in README and docs/paper.md runs, at small size and without a network."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from resnet_pl.cli import main

PROJECT = Path(__file__).parent.parent
README = (PROJECT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
COMMANDS = [line for kind, text in BLOCKS if kind == "bash" for line in text.splitlines()]
PAPER = (PROJECT / "docs" / "paper.md").read_text(encoding="utf-8")
PAPER_COMMANDS = [line for text in re.findall(r"```bash\n(.*?)```", PAPER, re.DOTALL) for line in text.splitlines()]
WEIGHTS = {
    "resnet18": "resnet18-f37072fd.pth",
    "resnet34": "resnet34-b627a593.pth",
    "resnet50": "resnet50-0676ba61.pth",
    "convnext_tiny": "convnext_tiny-983f1562.pth",
}
SHORT = "--model.backbone.depth 8 --trainer.max_steps 2 --trainer.limit_val_batches 2"
SMALL = "--trainer.max_epochs 1 --trainer.limit_train_batches 2 --trainer.limit_val_batches 2 --data.num_workers 0"
PHOTOS = "--data.image_size 32 --data.batch_size 4 --trainer.devices 1"


def photos(folder: Path, classes: tuple[str, ...] = ("cat", "dog")) -> None:
    rng = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(10):
            Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(folder / name / f"{i}.jpg")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the commands name: configs, photos, data sets, weights in torch's cache."""
    place = tmp_path_factory.mktemp("readme")
    (place / "configs").symlink_to(PROJECT / "configs")
    for folder in ("my/photos", "new/photos", "data/flower_photos", "data/photos"):
        photos(place / folder)
    for part in ("train", "val"):
        photos(place / "data/imagenet" / part, ("n01440764", "n01443537"))
    rng, arrays = np.random.default_rng(0), {}
    for part, count in (("train", 5100), ("test", 20)):
        arrays[f"x_{part}"] = rng.integers(0, 255, (count, 32, 32, 3), dtype=np.uint8)
        arrays[f"y_{part}"] = np.arange(count) % 10
    (place / "data/cifar10").mkdir()
    np.savez(place / "data/cifar10/cifar10.npz", **arrays)
    cache = place / "torch/hub/checkpoints"
    cache.mkdir(parents=True)
    for name, file in WEIGHTS.items():
        torch.save(getattr(torchvision.models, name)().state_dict(), cache / file)
    return place


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) < 250


def test_commands_run_in_their_order(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("TORCH_HOME", str(place / "torch"))
    ran = 0
    for command in COMMANDS:
        if not command.startswith("python cli.py"):
            continue
        args = shlex.split(command)[2:]
        if args[0] == "fit":
            args += shlex.split(SMALL)
            if not any("cifar" in arg or "digits" in arg for arg in args):
                args += shlex.split(PHOTOS)
            if args[1:3] == ["--ckpt_path", "last"]:
                args[args.index("--trainer.max_epochs") + 1] = "2"
        try:
            code = main.main(args)
        except SystemExit as end:  # --print_config
            code = end.code
        assert code == 0, command
        ran += 1
    assert ran >= 10


def test_the_papers_commands_run_in_their_order(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("TORCH_HOME", str(place / "torch"))
    for command in PAPER_COMMANDS:
        args = shlex.split(command)[2:]
        if args[0] == "fit" and "configs/paper/imagenet.yaml" in args:
            args += shlex.split(SMALL) + shlex.split(PHOTOS)
        elif args[0] == "fit":
            args += shlex.split(SHORT)
        elif args[0] == "test" and "configs/imagenet.yaml" in args:
            args += shlex.split(PHOTOS)
        elif args[0] == "sweep":
            args.append("--print")
        elif args[:2] == ["paper", "gradients"]:
            args += ["--batches", "1"]
        args = [arg for arg in args if arg not in ("224", "256", "384", "480", "640", "--scales")]
        assert main.main(args) == 0, command
    for picture in ("fig6.png", "fig7/responses.png", "gradients/gradients.png"):
        assert (place / picture).stat().st_size > 10_000


def test_other_commands_name_what_exists() -> None:
    makefile = (PROJECT / "Makefile").read_text()
    for command in COMMANDS:
        if command.startswith("make "):
            assert f"\n{command.split()[1]}:" in makefile, command
        for word in command.split():
            if word.startswith(("configs/", "requirements")):
                assert (PROJECT / word).is_file(), command
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (PROJECT / link).is_file(), link


def test_recipes_are_all_named() -> None:
    for path in (PROJECT / "configs" / "recipes").glob("*.yaml"):
        assert f"`{path.stem}`" in README
    for path in (PROJECT / "configs").glob("*.yaml"):
        assert f"`{path.name}`" in README


def test_the_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = [text for kind, text in BLOCKS if kind == "python"]
    names: dict[str, object] = {}
    exec(
        compile(code.replace("max_epochs=3", "max_epochs=1, limit_train_batches=2, logger=False"), "README", "exec"),
        names,
    )
    assert names["model"].class_names == [str(i) for i in range(10)]
    assert Path("digits.ckpt").exists()
