"""Values and code of a user's that fail deep inside torch and Lightning: each is told with its key and the way out."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from resnet_pl.cli.foreseen import LIBRARIES, _restoring, foreseen
from resnet_pl.data import ImageDataModule
from tests.conftest import MakePhotos
from tests.test_cli import SMALL, refused, run

MINE = """
import torch
from lightning.pytorch import Callback
from torch import nn

class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 10))

    def forward(self, images):
        return self.net(images)

class Hungry(Callback):
    def on_train_batch_end(self, *args) -> None:
        torch.empty(10**15)

class Full(Callback):
    def on_train_batch_end(self, *args) -> None:
        with open("/dev/full", "w") as file:
            file.write("word")

class Broken(nn.Module):
    def __init__(self) -> None:
        raise RuntimeError("width must be seven")

class Blue(nn.Module):
    def forward(self, image):
        raise ValueError("image too blue")

class Odd(nn.Module):
    def forward(self, image):
        return image[:, : 5 + int(image.sum()) % 20]
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module of a user's."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "foreseen_mine.py").write_text(MINE)
    return tmp_path


VALUES = {
    "--trainer.accumulate_grad_batches 0": "trainer.accumulate_grad_batches: 0 is out of range, it must be above 0",
    "--trainer.accumulate_grad_batches -2": "trainer.accumulate_grad_batches: -2 is out of range",
    "--trainer.limit_train_batches 0": "trainer.limit_train_batches: 0 is out of range",
    "--trainer.val_check_interval 0": "--trainer.limit_val_batches 0",
    "--trainer.check_val_every_n_epoch 0": "trainer.check_val_every_n_epoch: 0 is out of range",
    "--trainer.val_check_interval 100": "trainer.val_check_interval: 100 is more than the 6 batches of an epoch",
    "--seed_everything -1": "seed_everything: -1 is out of range, it must be from 0 to 4294967295",
    "--seed_everything 99999999999": "seed_everything: 99999999999 is out of range",
    "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor val/no": "EarlyStopping monitors val/no, which is "
    "not logged\ngive one of these: ",
    "--trainer.callbacks+=ModelCheckpoint --trainer.callbacks.monitor val/no": "ModelCheckpoint monitors val/no, which "
    "is not logged\ngive one of these: ",
    "--trainer.callbacks+=LearningRateFinder": "--model.optimizer.lr",
    "--trainer.strategy nope": "trainer.strategy: there is no nope\ngive one such as auto, ddp",
    "--trainer.strategy fsdp --trainer.accelerator cpu": "trainer.strategy: fsdp needs a GPU",
    "--trainer.accelerator nope": "trainer.accelerator: there is no nope\nit is one of ",
    "--trainer.accelerator cpu --trainer.devices 0": "trainer.devices: the value does not suit",
    "--trainer.accelerator cpu --trainer.devices -5": "trainer.devices: the value does not suit",
    "--trainer.precision 17": "trainer.precision: 17 is none of",
    "--trainer.precision transformer-engine": "not installed: transformer_engine",
    "--trainer.barebones true": "trainer.barebones: ",
    "--data.image_size 1000000000000": "a size is given that no memory can hold\nlower --data.image_size",
    "--trainer.callbacks+=foreseen_mine.Hungry": "out of memory\nlower --data.batch_size and raise",
    "--trainer.callbacks+=foreseen_mine.Full": "the disk is full",
}


@pytest.mark.parametrize("line", VALUES)
def test_values(line: str, own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "fit", *SMALL, "--trainer.default_root_dir", own / "runs", *line.split())
    assert VALUES[line] in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("name", ["gpu", "cuda"])
def test_no_gpu(name: str, own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "fit", *SMALL, "--trainer.default_root_dir", own / "runs", "--trainer.accelerator", name)
    assert "trainer.accelerator: torch finds no such device" in said and "--trainer.accelerator cpu" in said


def test_no_validation_can_be_asked_for(own: Path) -> None:
    line = ["--trainer.limit_val_batches", 0, "--trainer.max_epochs", 1]
    run("fit", *SMALL, "--trainer.default_root_dir", own / "runs", *line)
    assert [path.name for path in own.glob("runs/*/*/checkpoints/*")] == ["last.ckpt"]


@pytest.mark.parametrize(
    ("net", "words"),
    [
        ("Norm", ["data.batch_size: BatchNorm", "raise --data.batch_size to 2 or more"]),
        ("Broken", ["foreseen_mine.py, line 25: RuntimeError: width must be seven", "code of your own"]),
    ],
)
def test_nets_of_the_user(net: str, words: list[str], own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["--model.backbone", f"foreseen_mine.{net}", "--data.batch_size", 1]
    said = refused(capsys, "fit", *SMALL[:2], "--trainer.default_root_dir", own / "runs", *line)
    assert all(word in said for word in words), said


@pytest.mark.parametrize(
    ("workers", "transform", "words"),
    [
        (0, ["foreseen_mine.Blue"], ["foreseen_mine.py, line 29: ValueError: image too blue", "code of your own"]),
        (1, ["foreseen_mine.Blue"], ["foreseen_mine.py, line 29: ValueError: image too blue", "code of your own"]),
        (1, ["foreseen_mine.Odd"], ["data.transforms: the images of a batch differ in size"]),
        (
            0,
            ["torch.nn.Linear", "--data.transforms.in_features=3", "--data.transforms.out_features=3"],
            ["data.transforms: RuntimeError: mat1", "does not take these images"],
        ),
    ],
)
def test_transforms_of_the_user(
    workers: int,
    transform: list[str],
    words: list[str],
    own: Path,
    make_photos: MakePhotos,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = ["--data", "ImageFolder", "--data.root", make_photos(own / "photos"), "--data.image_size", 32]
    net = ["--model.backbone", "cifar_resnet", "--trainer.default_root_dir", own / "runs", "--data.batch_size", 4]
    line = [f"--data.transforms+={transform[0]}", *transform[1:], "--data.num_workers", workers]
    said = refused(capsys, "fit", *data, *net, *line)
    assert all(word in said for word in words), said


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "lower --data.batch_size"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), "lower --data.batch_size"),
        (OSError(errno.ENOSPC, "No space left on device", "runs/last.ckpt"), "full: runs/last.ckpt cannot be written"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "lower --data.num_workers"),
        (RuntimeError("unable to write to file </torch_1_2>: No space left on device (28)"), "--data.num_workers"),
        (ValueError("You requested gpu: [0, 1]\n But your machine only has: [0]"), "GPUs [0, 1] are asked for"),
        (ZeroDivisionError("division by zero"), None),
        (RuntimeError("shape '[3]' is invalid"), None),
    ],
)
def test_what_needs_another_machine(error: Exception, words: str | None) -> None:
    told = foreseen(error)
    assert told is None if words is None else words in (told or "")


def test_no_compiler(own: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from torch._inductor import config

    monkeypatch.setattr(config, "force_disable_caches", True)
    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    line = ["--model.compile", True, "--model.backbone", "foreseen_mine.Norm", "--trainer.accelerator", "cpu"]
    said = refused(capsys, "fit", *SMALL[:2], "--trainer.default_root_dir", own / "runs", *line)
    assert "model.compile: torch finds no compiler" in said and "or leave model.compile out" in said


def test_an_unwritable_checkpoint_is_named(
    own: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fill(*args: object) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", fill)
    said = refused(capsys, "fit", *SMALL, "--trainer.default_root_dir", own / "runs")
    assert f"the disk is full: {own}/runs/digits/version_0/checkpoints/" in said and ".ckpt cannot be written" in said


def test_a_base_class() -> None:
    with pytest.raises(NotImplementedError) as error:
        ImageDataModule().find_splits()
    assert foreseen(error.value).splitlines()[0] == "a class is named that leaves find_splits to others"


def test_the_same_callback_twice() -> None:
    told = foreseen(RuntimeError("Found more than one stateful callback of type `Freeze`. In the current"))
    assert told == "trainer.callbacks: Freeze is given more than once, and its state is kept for one\ngive it once"


@pytest.mark.parametrize(("place", "told"), [("restore_loops", True), ("dump_checkpoint", False)])
def test_a_checkpoint_whose_parts_are_not_what_they_should_be(place: str, told: bool) -> None:
    functions: dict[str, object] = {}
    code = f"def {place}(loops):\n    return loops['fit_loop']"
    exec(compile(code, f"{LIBRARIES[-1]}/lightning/checkpoint_connector.py", "exec"), functions)
    with pytest.raises(KeyError) as error:
        functions[place]({})
    expected = "the checkpoint cannot be restored: KeyError: 'fit_loop'\nuse another one"
    assert (_restoring(error.value) == expected) is told
