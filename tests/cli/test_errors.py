"""Messages for wrong command lines, configurations and classes of the user: key or value, in at most two lines."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from resnet_pl.cli.errors import format_unexpected_error, translate_exception
from resnet_pl.cli.main import main
from tests.cli.commands import BARE, SMALL, failed, refused, run
from tests.conftest import MakePhotos

MINE = """
import torch
from lightning.pytorch import Callback
from torch import nn

number = 3

def unannotated(num_classes: int = 10):
    return nn.Linear(3, num_classes)

def returns_int() -> int:
    return 3

class Plain:
    pass

class Empty(nn.Module):
    pass

class Needy(Callback):
    def __init__(self, often: int) -> None:
        pass

class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 10))

    def forward(self, images):
        return self.layers(images)

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
"""


@pytest.fixture
def own(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with modules of the user."""
    monkeypatch.syspath_prepend(place)
    (place / "errors_mine.py").write_text(MINE)
    (place / "errors_failing.py").write_text("\nimport nowhere_at_all\n")
    (place / "errors_syntax.py").write_text("\n\ndef (:\n")
    return place


# ------------------------------------------------------------------------------------ command lines

BAD: dict[str, Sequence[str]] = {
    # Wrong options, and words that must be in the message.
    "--model.widht 3": ["model: unknown option widht", "weights?"],
    "--model.schedule.warmpu 1": ["model", "schedule.warmpu"],
    "--data.batch_siz 3": ["data: unknown option batch_siz", "batch_size?"],
    "--data.root photos": ["data: this data has no option root", "add --data ImageFolder"],
    "--model.backbone.dpth 21": ["model.backbone: unknown option dpth", "depth?"],
    "--model.optimizer.lrr 1": ["model.optimizer: unknown option lrr", "lr?"],
    "--trainer.callbacks+=Freeze --trainer.callbacks.last_frozn layer1": [
        "trainer.callbacks: unknown option last_frozn",
        "last_frozen?",
    ],
    "--nmae x": ["unknown option --nmae", "--name?"],
    "--trainer.max_epoks 1": ["unknown option --trainer.max_epoks", "--trainer.max_epochs?"],
    "--dashboard.imagess 1": ["unknown option --dashboard.imagess", "--dashboard.images?"],
    "--output x": ["unknown option --output"],
    "extra": ["unexpected argument extra"],
    "--data.batch_size 0": ["data.batch_size: must be >0, not 0"],
    "--data.batch_size four": ["data.batch_size: ", "four"],
    "--data.batch_size 2.5": ["data.batch_size: ", "2.5"],
    "--data.num_workers -1": ["data.num_workers: must be >=0"],
    "--checkpoint.every_n_steps 0": ["checkpoint.every_n_steps: ", "0"],
    "--model.label_smoothing 1.5": ["model.label_smoothing: must be >=0 and <1, not 1.5"],
    "--model.schedule.warmup -1": ["model.schedule.warmup: must be >=0, not -1"],
    "--model.schedule.shape cosin": ["model.schedule.shape: ", "cosin", "'cosine', 'step'"],
    "--model.schedule.milestones x": ["model.schedule.milestones: ", "list"],
    "--model.optimizer.lr abc": ["model.optimizer.lr: ", "float"],
    "--trainer.max_epochs x": ["trainer.max_epochs: ", "int"],
    "--trainer.precision 17": ["trainer.precision: ", "16-mixed"],
    "--data.mean abc": ["data.mean: ", "'pixel', 'channel'"],
    "--model.backbone resnet17": ["model.backbone: unknown class resnet17", "resnet18?"],
    "--model.backbone convnext_tiny": ["torchvision.models.convnext_tiny"],
    "--model.optimizer SGDD": ["model.optimizer: unknown class SGDD", "SGD?"],
    "--trainer.callbacks+=EarlyStoping": ["trainer.callbacks: unknown class EarlyStoping", "EarlyStopping?"],
    "--data Digit": ["data: unknown class Digit", "Digits?"],
    "--data.mix MixUpp": ["data.mix: unknown class MixUpp", "MixUp?"],
    "--data NoSuch": ["data: unknown class NoSuch", "package.module.Class"],
    "--model NoSuch": ["model: unknown class NoSuch", "package.module.Class"],
    "--trainer.callbacks+=EarlyStopping": ["trainer.callbacks.monitor: required"],
    "--model.backbone.depth 21": ["21", "20 and 26"],
    "--data.test_split 5000": ["test_split=5000", "1797"],
    "--data.mean [1,2]": ["mean", "[1.0, 2.0]"],
    "--model.schedule.shape step": ["model.schedule.milestones"],
    "--trainer.max_epochs -1": ["model.schedule.shape: cosine", "--trainer.max_epochs"],
    "--trainer.max_epochs 0": ["trainer.max_epochs: 0"],
    "--model.num_classes 7": ["model.num_classes is 7", "10 classes"],
    "--trainer.accumulate_grad_batches 0": ["trainer.accumulate_grad_batches: 0"],
    "--trainer.accumulate_grad_batches -2": ["trainer.accumulate_grad_batches: -2"],
    "--trainer.limit_train_batches 0": ["trainer.limit_train_batches: 0"],
    "--trainer.val_check_interval 0": ["trainer.val_check_interval: 0", "--trainer.limit_val_batches 0"],
    "--trainer.check_val_every_n_epoch 0": ["trainer.check_val_every_n_epoch: 0"],
    "--seed_everything -1": ["seed_everything: -1", "4294967295"],
    "--seed_everything 99999999999": ["99999999999", "4294967295"],
    "--trainer.accelerator gqu": ["gqu", "cpu"],
    "--trainer.accelerator tpu": ["torch_xla"],
    "--trainer.strategy nope": ["nope", "ddp"],
    "--trainer.strategy fsdp --trainer.accelerator cpu": ["fsdp", "GPU"],
    "--trainer.accelerator cpu --trainer.devices 0": ["devices", "0"],
    "--trainer.accelerator cpu --trainer.devices -5": ["devices", "> 0"],
    "--trainer.callbacks+=ModelCheckpoint --trainer.callbacks.mode maximum": ["mode", "maximum", "min"],
    "--model.loss torch.nn.CrossEntropyLoss": ["model.label_smoothing 0", "loss"],
}


@pytest.mark.parametrize("line", BAD)
def test_a_mistake_is_named_and_leaves_nothing(line: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "fit", *SMALL, *line.split())
    assert all(word in message for word in BAD[line]), message
    assert not list(place.rglob("version_*"))


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["fit"], ["needs a configuration", "--config folder (your own images)"]),
        (["fit", "--data.root", "photos"], ["needs a configuration"]),
        (["fit", "--data", "Digits"], ["model.backbone: required"]),
        (["fit", "--model.backbone", "resnet18"], ["data: required"]),
        (["fit", "--data", "Digits", "--model", "resnet50"], ["--model: ", "--model.backbone resnet50"]),
        (["fit", "--data", "NoSuch"], ["data: ", "NoSuch"]),
        (["fit", "--data"], ["--data"]),
        (
            ["fit", "--data", "ImageNet", "--model.backbone", "resnet18"],
            ["data.root: ", "data/imagenet", "--data.root"],
        ),
        (
            ["fit", "--data", "ImageFolder", "--data.root", "nowhere", "--model.backbone", "resnet18"],
            ["data.root: ", "nowhere", "--data.root"],
        ),
    ],
)
def test_a_missing_value_is_named(
    argv: list[str], words: list[str], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(capsys, *argv)
    assert all(word in message for word in words), message
    assert not list(place.rglob("version_*"))


def test_an_option_is_written_in_full(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # The checkpoint is found before the options are parsed: a shortened name would be ignored.
    for option in ("--ckpt", "--nam", "--trainer.max_epoch", "--conf"):
        assert option in refused(capsys, "fit", *SMALL, option, "3")


def test_a_name_outside_the_root_is_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("../x", "/tmp/x", " "):
        assert "--name" in refused(capsys, "fit", *SMALL, "--name", name)


def test_a_folder_that_cannot_be_written_is_named(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("in the way")
    message = refused(capsys, "fit", *SMALL, "--trainer.default_root_dir", "file")
    assert "file/digits/version_0" in message and "--trainer.default_root_dir" in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("name", ["gpu", "cuda"])
def test_no_gpu(name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "fit", *SMALL, "--trainer.accelerator", name)
    assert "trainer.accelerator: " in message and "--trainer.accelerator cpu" in message


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--model.optimizer.lr -1", ["learning rate", "-1"]),
        ("--trainer.val_check_interval 100", ["val_check_interval", "100", "6"]),
        ("--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor val/no", ["val/no", "val/top1"]),
        ("--trainer.callbacks+=ModelCheckpoint --trainer.callbacks.monitor val/no", ["val/no", "val/top1"]),
        ("--data.image_size 1000000000000", ["1000000000000"]),
        ("--data.image_size 24x48", ["data.image_size: not a size", "[height, width]"]),
        ("--data.image_size [24]", ["data.image_size: not a size", "[height, width]"]),
    ],
)
def test_an_error_of_a_library_keeps_its_message(
    line: str, words: list[str], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["fit", *SMALL, *line.split()])
    err = capsys.readouterr().err
    assert code in (1, 2) and "Traceback" not in err and all(word in err for word in words), err


# ------------------------------------------------------------------------------------ configuration files


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model:\n  label_smothing: 0.1\n", ["model: ", "label_smothing", "did you mean label_smoothing?"]),
        ("model: {init_args: {label_smothing: 0.1}}\n", ["label_smothing", "did you mean label_smoothing?"]),
        ("data: {class_path: Digits, init_args: {batch_size: many}}\n", ["data.batch_size: ", "many"]),
        ("data: {class_path: Digits, init_args: {batch_siz: 3}}\n", ["data: ", "batch_siz", "mean batch_size?"]),
        ("model:\n  schedule: {shape: cosine, patience: many}\n", ["model.schedule.patience: ", "many"]),
        ("model: {backbone: {class_path: cifar_resnet, init_args: {dpth: 8}}}", ["model.backbone: ", "mean depth?"]),
        ("model: {optimizer: {class_path: SGD, init_args: {lrr: 3}}}", ["model.optimizer: ", "lrr", "mean lr?"]),
        ("trainer: {max_epoks: 3}\n", ["trainer.max_epoks", "trainer.max_epochs?"]),
        ("trainer:\n  callbacks+:\n  - Freez\n", ["trainer.callbacks: ", "Freez", "did you mean Freeze?"]),
        (
            "trainer:\n  callbacks:\n  - class_path: Freeze\n    init_args: {last_frozn: layer1}\n",
            ["trainer.callbacks: ", "last_frozn", "did you mean last_frozen?"],
        ),
        ("nme: x\n", ["nme", "did you mean name?"]),
        ("name: 3\n", ["name: ", "str"]),
        ("checkpoint: {every_n_steps: 0}\n", ["checkpoint.every_n_steps: ", "0"]),
        ("dashboard: {imagess: 0}\n", ["dashboard.imagess", "dashboard.images?"]),
        ("data: {class_path: ImageFolder, init_args: {root: nowhere/photos}}\n", ["data.root: ", "nowhere/photos"]),
    ],
)
def test_a_mistake_in_a_file_is_named(
    text: str, words: list[str], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "mine.yaml").write_text(text)
    message = refused(capsys, "fit", *SMALL, "--config", "mine.yaml")
    assert all(word in message for word in words), message
    assert not list(place.rglob("version_*"))


# ------------------------------------------------------------------------------------ classes of the user


@pytest.mark.parametrize(
    ("key", "name", "words"),
    [
        ("model.backbone", "errors_nowhere.Model", ["model.backbone: ", "errors_nowhere"]),
        ("model.backbone", "errors_mine.Emptyy", ["model.backbone: ", "errors_mine", "Emptyy"]),
        ("model.backbone.class_path", "errors_mine.Emptyy", ["model.backbone: ", "errors_mine", "Emptyy"]),
        ("model.backbone", "errors_failing.Model", ["model.backbone: ", "nowhere_at_all"]),
        ("model.backbone", "errors_syntax.Model", ["errors_syntax.py, line 3"]),
        ("model.backbone", "errors_mine.unannotated", ["model.backbone: ", "errors_mine.unannotated", "Module"]),
        ("model.backbone", "errors_mine.returns_int", ["model.backbone: ", "errors_mine.returns_int", "Module"]),
        ("model.backbone", "errors_mine.number", ["model.backbone: ", "errors_mine.number", "Module"]),
        ("model.backbone", "errors_mine.Broken", ["width must be seven"]),
        ("model.loss", "errors_mine.Plain", ["model.loss: ", "Module"]),
        ("model.optimizer", "errors_mine.Empty", ["model.optimizer: ", "errors_mine.Empty", "Optimizer"]),
        ("model.optimizer", "errors_nowhere.SGD", ["model.optimizer: ", "errors_nowhere"]),
        ("data", "errors_mine.Empty", ["data: ", "DataModule"]),
        ("data", "errors_failing.Data", ["data: ", "nowhere_at_all"]),
        ("data.batch_transforms+", "errors_mine.Emptyy", ["data.batch_transforms: ", "errors_mine", "Emptyy"]),
        ("trainer.callbacks+", "errors_mine.Empty", ["trainer.callbacks: ", "Callback"]),
        ("trainer.callbacks+", "errors_mine.Needy", ["trainer.callbacks.often: required"]),
        ("data.batch_size", "errors_mine.Empty", ["data.batch_size: ", "errors_mine.Empty"]),
    ],
)
def test_a_class_that_cannot_be_used_is_named(
    key: str, name: str, words: list[str], own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(capsys, "fit", *BARE, f"--{key}={name}")
    assert all(word in message for word in words), message
    assert not list(own.rglob("version_*"))


@pytest.mark.parametrize(
    ("callback", "words"), [("Hungry", ["out of memory", "--data.batch_size"]), ("Full", ["the disk is full"])]
)
def test_out_of_memory_and_disk_full(
    callback: str, words: list[str], own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(capsys, "fit", *SMALL, f"--trainer.callbacks+=errors_mine.{callback}")
    assert all(word in message for word in words), message


def test_an_error_in_code_of_the_user_names_the_line(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = failed(capsys, 1, "fit", *BARE, "--model.backbone", "errors_mine.Norm", "--data.batch_size", 1)
    assert "ValueError: Expected more than 1 value per channel" in message and "errors_mine.py, line 30" in message


@pytest.mark.parametrize(
    ("workers", "transform", "words"),
    [
        (0, ["errors_mine.Blue"], "ValueError: image too blue (errors_mine.py, line 47)"),
        (1, ["errors_mine.Blue"], "ValueError: image too blue (errors_mine.py, line 47)"),
        (
            0,
            ["torch.nn.Linear", "--data.transforms.in_features=3", "--data.transforms.out_features=3"],
            "RuntimeError: mat1 and mat2",
        ),
    ],
)
def test_an_error_in_a_transform_of_the_user_names_the_line(
    workers: int,
    transform: list[str],
    words: str,
    own: Path,
    make_photos: MakePhotos,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = ["--data", "ImageFolder", "--data.root", make_photos(own / "photos"), "--data.image_size", 32]
    model = ["--model.backbone", "cifar_resnet", "--data.batch_size", 4, "--data.num_workers", workers]
    message = failed(capsys, 1, "fit", *data, *model, f"--data.transforms+={transform[0]}", *transform[1:])
    assert words in message and "--debug" in message
    assert not list(own.rglob("version_*"))


# ------------------------------------------------------------------------------------ errors of torch and Lightning
class BackendCompilerFailed(RuntimeError):
    """Like the exception of torch.compile."""

    def __init__(self, cause: str) -> None:
        super().__init__(f"backend='inductor' raised:\n{cause}\n\nSet TORCHDYNAMO_VERBOSE=1")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "lower --data.batch_size"),
        (MemoryError(), "lower --data.batch_size"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), "lower --data.batch_size"),
        (OSError(errno.ENOSPC, "No space left on device", "runs/last.ckpt"), "full: runs/last.ckpt cannot be written"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk is full"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "lower --data.num_workers"),
        (RuntimeError("unable to open shared memory object </torch_1_2>"), "--data.num_workers"),
        (RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer"), "another process"),
        (RuntimeError("Error(s) in loading state_dict for ImageClassifier"), "model.backbone"),
        (BackendCompilerFailed("ImportError: /tmp/torchinductor_me/yi/cy.main.so: file too short"), "delete the cache"),
        (BackendCompilerFailed("InvalidCxxCompiler: No working C++ compiler found"), None),
        (ZeroDivisionError("division by zero"), None),
        (RuntimeError("shape '[3]' is invalid"), None),
    ],
)
def test_a_known_error_comes_with_a_fix(error: Exception, words: str | None) -> None:
    message = translate_exception(error)
    assert message is None if words is None else words in (message or "") and len((message or "").splitlines()) == 2


def test_an_error_of_the_compiler_keeps_its_cause() -> None:
    message = format_unexpected_error(BackendCompilerFailed("InvalidCxxCompiler: No working C++ compiler found"))
    assert "InvalidCxxCompiler: No working C++ compiler found" in message.splitlines()[0]


def test_an_error_of_a_worker_keeps_its_message() -> None:
    traceback = 'Original Traceback (most recent call last):\n  File "/models/a, b/mine.py", line 7, in forward\n'
    error = RuntimeError(f"Caught KeyError in DataLoader worker process 0.\n{traceback}KeyError: 7\n")
    assert format_unexpected_error(error).startswith("KeyError: 7 (mine.py, line 7)\n")


def test_an_unwritable_checkpoint_is_named(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fill(*args: object) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", fill)
    message = refused(capsys, "fit", *SMALL)
    assert "the disk is full: runs/digits/version_0/checkpoints/" in message and ".ckpt cannot be written" in message
    assert not list(place.rglob("*.ckpt*"))


def test_training_without_validation(place: Path) -> None:
    run("fit", *SMALL, "--trainer.limit_val_batches", 0, "--trainer.max_epochs", 1)
    assert [path.name for path in place.glob("runs/*/*/checkpoints/*")] == ["last.ckpt"]
