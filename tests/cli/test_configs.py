"""Every config of the project trains and tests on generated data.

They are listed here, so that a config that you add, which may need data or weights of your own, is not run.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from resnet_pl import models
from resnet_pl.data import CIFAR10, CIFAR100
from resnet_pl.optim import Schedule, ScheduledLR
from resnet_pl.reports.results import read_results
from resnet_pl.run_dir import class_name
from tests.cli.commands import PROJECT, SMALL, printed, refused, run

CONFIGS = PROJECT / "configs"
COMPLETE = ["digits", "folder", "flowers", "flowers-scratch", "cifar10", "cifar100", "imagenet"]
COMPLETE += ["tutorial", "imagenet-torchvision-v2", "imagenet-rsb-a2", "imagenet-rsb-a3"]
COMPLETE += ["paper/cifar10", "paper/imagenet", "recipes/cifar10-94-muon"]
COMPLETE += ["recipes/cifar10-96", "recipes/flowers-88"]
# Like another config of the list, or run by tests/repository/test_readme.py too.
RARE = ["cifar100", "flowers", "imagenet", "paper/imagenet", "recipes/cifar10-94-muon", "recipes/cifar10-96"]
RARE += ["recipes/flowers-88", "tutorial", "imagenet-torchvision-v2"]
RARE += ["imagenet-rsb-a2", "paper/cifar10", "cifar10"]
# Recipes have no data: each is merged on top of a complete config.
RECIPES = ["adamw", "cutmix", "early-stopping", "ema", "head-only", "mixup", "muon", "one-cycle", "random-erasing"]
RECIPES += ["trivial-augment"]
# The others have options that other tests train with, and another test checks their values.
OFTEN = ["cutmix", "early-stopping", "ema", "muon", "one-cycle"]
# The configs that a recipe is for, if not all.
FOR = {
    "early-stopping": [name for name in COMPLETE if not name.startswith("recipes/")],  # they have no validation split
    "head-only": ["folder", "flowers", "tutorial"],
}
# File names of torchvision's weights by backbone.
WEIGHTS = {"resnet18": "resnet18-f37072fd.pth", "resnet34": "resnet34-b627a593.pth"}
FEW_CHANNELS = 8  # of the ResNets
FEW = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with a small dataset of every kind."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)

    def photos(folder: Path, classes: list[str], count: int) -> None:
        for number, name in enumerate(classes):
            (folder / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (40 + i, 50, 3)) // 2 + np.eye(3)[number % 3] * 100
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name / f"{i}.jpg")

    photos(root / "photos", ["daisy", "roses", "tulips"], 10)
    for part, count in (("train", 6), ("val", 3)):
        photos(root / "imagenet" / part, ["n01440764", "n01443537"], count)
    for dataset in (CIFAR10, CIFAR100):
        arrays = {}
        for part, count in (("train", 300), ("test", 20)):
            arrays[f"x_{part}"] = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
            arrays[f"y_{part}"] = np.arange(count) % len(dataset.names)
        np.savez(root / dataset.npz, **arrays)
    return root


@pytest.fixture(scope="module")
def weights_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with random weights of narrow networks under the file names of torchvision."""
    home = tmp_path_factory.mktemp("torch")
    for name, file in WEIGHTS.items():
        torch.save(getattr(models, name)(width=FEW_CHANNELS).state_dict(), home / file)
    return home


@pytest.fixture(autouse=True)
def no_download(weights_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes weights from the cache, and runs each test in a new working directory."""
    # Not by TORCH_HOME: the checksum in the file name of torchvision is verified.
    monkeypatch.setattr("resnet_pl.classifier.fetch_weights", lambda url: weights_folder / url.rpartition("/")[2])
    monkeypatch.chdir(tmp_path)


def needs_timm(*names: str) -> None:
    """Skips the test if a config names a class of timm, which is not installed."""
    if any("timm." in (CONFIGS / f"{name}.yaml").read_text() for name in names):
        pytest.importorskip("timm")


def overrides(name: str, data: Path) -> list[str]:
    """Returns the options that make a config small and use the generated data."""
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    kind, network = config["data"]["class_path"], class_name(config["model"]["backbone"])
    small = {
        "Digits": [],
        "CIFAR10": ["--data.root", str(data), "--data.val_split", "20"],
        "CIFAR100": ["--data.root", str(data), "--data.val_split", "20"],
        "ImageNet": ["--data.root", str(data / "imagenet"), "--data.image_size", "32", "--data.batch_size", "4"],
    }
    photos = ["--data.root", str(data / "photos"), "--data.image_size", "32", "--data.batch_size", "4"]
    if name.startswith("recipes/"):
        small["CIFAR10"] += ["--data.batch_size", "32"]
    # Images and the graph of the network take as long as the rest; one config is enough for them.
    dashboard = [] if name == "digits" else ["--dashboard.images", "0", "--dashboard.graph", "false"]
    narrow = ["--model.backbone.width", str(FEW_CHANNELS)] if network.lower().startswith("resnet") else []
    narrow += ["--model.compile", "false"] if "compile" in config["model"] else []
    narrow += ["--trainer.precision", "32-true"] if "precision" in config["trainer"] else []
    return [*small.get(kind, photos), *narrow, "--data.num_workers", "0", *FEW, *dashboard]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in RARE else []) for name in COMPLETE]
)
def test_config_trains_and_tests(name: str, data: Path) -> None:
    needs_timm(name)
    run("fit", "--config", str(CONFIGS / f"{name}.yaml"), *overrides(name, data))
    folder = Path("runs") / name.removeprefix("recipes/").replace("/", "-") / "version_0"
    checkpoint = str(folder / "checkpoints" / "best.ckpt")
    run("test", "--ckpt_path", checkpoint, "--trainer.limit_test_batches", "2")
    no_test = "class_path: ImageNet" in (CONFIGS / f"{name}.yaml").read_text()
    results = read_results(folder / ("results-val-no-test.json" if no_test else "results.json"))
    assert 0 <= results["top1"] <= 1
    if name in ("digits", "folder", "imagenet"):  # one for each kind of data module
        run("predict", "--ckpt_path", checkpoint, "--images", str(data / "photos" / "daisy"))
        assert len((folder / "predictions.csv").read_text().splitlines()) == 11


@pytest.mark.parametrize(
    "recipe", [pytest.param(name, marks=[] if name in OFTEN else [pytest.mark.slow]) for name in RECIPES]
)
def test_recipe_is_merged_on_top_of_a_config(recipe: str, data: Path) -> None:
    needs_timm(f"recipes/{recipe}")
    base = "flowers-scratch"
    argv = ["fit", "--config", str(CONFIGS / f"{base}.yaml"), "--config", str(CONFIGS / "recipes" / f"{recipe}.yaml")]
    run(*argv, *overrides(base, data), "--trainer.logger", "false")
    check_claims(recipe, yaml.safe_load((Path("runs") / base / "version_0" / "config.yaml").read_text()))


@pytest.mark.slow
def test_runs_with_recipes_resume_exactly() -> None:
    pytest.importorskip("timm")
    mix = "{class_path: RandomChoice, init_args: {transforms: [MixUp, CutMix]}}"
    files = [
        f"--config={CONFIGS}/recipes/{recipe}.yaml" for recipe in RECIPES if recipe not in ("head-only", "one-cycle")
    ]
    argv = ["fit", *SMALL, *files, "--model.optimizer", "timm.optim.Muon", "--data.mix", mix, "--data.num_workers", "0"]
    run(*argv, "--name", "whole")
    run(*argv, "--name", "resumed", "--trainer.max_steps", "4")
    run("fit", "--ckpt_path", "runs/resumed/version_0", "--trainer.max_steps", "-1")
    paths = [f"runs/{name}/version_0/checkpoints/last.ckpt" for name in ("whole", "resumed")]
    whole, resumed = (torch.load(path, weights_only=True)["state_dict"] for path in paths)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def check_claims(recipe: str, config: dict[str, Any]) -> None:
    """Checks that what the comment of a recipe says is true of a resolved configuration."""
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    callbacks = {class_name(each): each.get("init_args", {}) for each in config["trainer"]["callbacks"] or []}
    schedule = ScheduledLR(torch.optim.SGD([torch.zeros(1)], lr=1), Schedule(**model["schedule"]), 1000, 10)
    optimizer = model["optimizer"]["init_args"]
    decoupled = (optimizer["weight_decay"], model["base_batch_size"], model["decay_norm_and_bias"]) == (
        0.05,
        None,
        False,
    )
    stop = callbacks.get("EarlyStopping", {})
    cycle = model["lr_scheduler"] or {}
    transforms = [class_name(each) for each in data["transforms"] or []]
    truth = {
        "adamw": class_name(model["optimizer"]) == "AdamW" and optimizer["lr"] == 0.001 and decoupled,
        "cutmix": class_name(data.get("mix")) == "CutMix",
        "early-stopping": (stop.get("monitor"), stop.get("mode"), stop.get("patience")) == ("val/top1", "max", 12)
        and (schedule.shape, schedule.factor, schedule.patience) == ("plateau", 0.1, 5),
        "ema": callbacks.get("EMA", {}).get("decay") == 0.999,
        "head-only": callbacks.get("Freeze", {"last_frozen": ""})["last_frozen"] is None,
        "mixup": class_name(data.get("mix")) == "MixUp",
        "muon": model["optimizer"]["class_path"] == "timm.optim.Muon" and optimizer["nesterov"] and decoupled,
        "one-cycle": class_name(cycle) == "OneCycleLR" and cycle["init_args"]["max_lr"] == 0.2,
        "random-erasing": transforms[-1:] == ["RandomErasing"],
        "trivial-augment": transforms[-1:] == ["TrivialAugmentWide"],
    }
    assert truth[recipe], (recipe, config)


# imagenet scales the learning rate, and has the most kinds of settings.
@pytest.mark.parametrize(
    "base", [pytest.param(name, marks=[] if name == "imagenet" else [pytest.mark.slow]) for name in COMPLETE]
)
def test_what_a_recipe_says_is_true_on_top_of_every_config(base: str, capsys: pytest.CaptureFixture[str]) -> None:
    needs_timm(base, *(f"recipes/{recipe}" for recipe in RECIPES))
    for recipe in RECIPES:
        if base in FOR.get(recipe, COMPLETE):
            files = [f"--config={CONFIGS}/{base}.yaml", f"--config={CONFIGS}/recipes/{recipe}.yaml"]
            check_claims(recipe, yaml.safe_load(printed(capsys, "fit", *files, "--print_config")))


def test_the_papers_resnet110_adds_a_warmup_to_its_cifar10(data: Path) -> None:
    base = "paper/cifar10"
    config = ["--config", str(CONFIGS / f"{base}-110.yaml")]
    run("fit", *config, *overrides(base, data), "--model.backbone.depth", "8", "--trainer.logger", "false")
    resolved = yaml.safe_load(Path("runs/paper-cifar10-110/version_0/config.yaml").read_text())
    assert "ErrorWarmup" in [class_name(each) for each in resolved["trainer"]["callbacks"]]
    first, second = (yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) for name in (base, f"{base}-110"))
    second["model"]["backbone"]["init_args"]["depth"] = 20
    del second["trainer"]["callbacks+"]
    assert second | {"name": "paper-cifar10"} == first


@pytest.mark.parametrize(
    ("package", "options"),
    [
        ("timm", [f"--config={CONFIGS}/recipes/muon.yaml"]),
        ("litdata", ["--data", "examples.streaming.StreamedImages"]),
    ],
)
def test_a_missing_package_is_named_with_its_installation(
    package: str, options: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # its import fails
    monkeypatch.delitem(sys.modules, "examples.streaming", raising=False)
    message = refused(capsys, "fit", f"--config={CONFIGS}/digits.yaml", *options)
    assert message.endswith(f"needs the package {package}\npip install {package}")


def test_a_text_for_a_number_is_named_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "fit", f"--config={CONFIGS}/digits.yaml", "--model.optimizer.lr", "abc")
    assert message == "error: model.optimizer.lr: Expected float"


@pytest.mark.parametrize(("recipe", "fix"), [("adam", "adamw.yaml"), ("plateau", "--model.schedule.shape plateau")])
def test_a_removed_recipe_says_what_to_use(recipe: str, fix: str, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "fit", f"--config={CONFIGS}/digits.yaml", f"--config={CONFIGS}/recipes/{recipe}.yaml")
    assert "was removed" in message and fix in message


def test_the_tutorial_trains_from_a_file_of_weights(data: Path, weights_folder: Path) -> None:
    Path("resnet34-pre.pth").symlink_to(weights_folder / WEIGHTS["resnet34"])
    tutorial = ["--config", CONFIGS / "tutorial.yaml", "--model.weights", "resnet34-pre.pth"]
    run("fit", *tutorial, *overrides("tutorial", data), "--trainer.logger", "false")
    state = torch.load("runs/tutorial/version_0/checkpoints/last.ckpt", weights_only=True)
    (groups,) = (each["param_groups"] for each in state["optimizer_states"])
    assert [(group["lr"], "betas" in group) for group in groups] == [(1e-4, True)]
    published = torch.load("resnet34-pre.pth")["conv1.weight"]
    # Two steps of Adam with a learning rate of 1e-4 change a weight by at most about twice that.
    torch.testing.assert_close(state["state_dict"]["backbone.conv1.weight"], published, atol=3e-4, rtol=0)


def test_every_config_has_a_comment_and_its_name() -> None:
    for where in [*COMPLETE, *(f"recipes/{name}" for name in RECIPES), "paper/cifar10-110"]:
        path = CONFIGS / f"{where}.yaml"
        assert path.read_text().startswith("# "), path
        config = yaml.safe_load(path.read_text())
        if where.startswith("recipes/") and where not in COMPLETE:
            assert "name" not in config and "Merged on top of " in path.read_text(), path
        else:
            assert config["name"] == where.removeprefix("recipes/").replace("/", "-")
