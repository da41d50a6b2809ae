"""Contents of checkpoints; harmful, damaged and foreign files are refused; writing is atomic."""

import os
import pickle
import random
import re
import resource
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

import resnet_pl
from resnet_pl import checkpoint as ckpt
from resnet_pl.cli.main import main
from resnet_pl.models import cifar_resnet
from resnet_pl.optim import Schedule
from resnet_pl.plain_types import to_plain_hparams
from resnet_pl.utils import UserError
from tests.faults.configs import CONFIGS
from tests.faults.forks import forked

CONFIG = {
    "seed_everything": 3,
    "name": "digits",
    "model": {"backbone": {"class_path": "cifar_resnet", "init_args": {"depth": 8}}, "label_smoothing": 0.1},
    "data": {"class_path": "Digits", "init_args": {"batch_size": 32}},
    "trainer": {"max_epochs": 3, "precision": "bf16-mixed"},
}


def content(**kwargs: Any) -> dict[str, Any]:
    return {
        "pytorch-lightning_version": "2.6",
        "epoch": 2,
        "global_step": 30,
        "state_dict": {"weight": torch.arange(1000.0), "bias": torch.ones(3)},
        "hyper_parameters": {"num_classes": 10, "class_names": list("0123456789"), "_instantiator": "x"},
        ckpt.METADATA_KEY: ckpt.build_metadata(
            CONFIG, {"root": "data", "classes": ["a"], "splits": {"train": ["a/1.jpg"]}}
        ),
        **kwargs,
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.save(content(), tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def refused(path: Path) -> str:
    """Returns the message for a file: it has two lines and names the file."""
    with pytest.raises(UserError) as error:
        ckpt.read(path)
    message = str(error.value)
    assert str(path) in message
    assert len(message.splitlines()) == 2
    return message


# ------------------------------------------------------------------------------------ contents


def test_contents(path):
    metadata = ckpt.read(path)[ckpt.METADATA_KEY]
    assert metadata["format"] == ckpt.FORMAT
    assert metadata["config"] == CONFIG
    assert metadata["data"]["splits"] == {"train": ["a/1.jpg"]}
    assert metadata["versions"]["resnet_pl"] == resnet_pl.__version__
    assert metadata["versions"]["torch"] == str(torch.__version__)
    assert all(type(version) is str for version in metadata["versions"].values())


def test_fit_uses_all_of_the_configuration_and_evaluation_a_part(path):
    checkpoint = ckpt.read(path)
    config = ckpt.config_of(checkpoint, path, "fit")
    init_args = {**CONFIG["model"], "num_classes": 10, "class_names": list("0123456789")}
    model = {"class_path": "resnet_pl.ImageClassifier", "init_args": init_args}
    assert config == {**CONFIG, "model": model}
    assert ckpt.config_of(checkpoint, path, "test") == {
        "seed_everything": 3,
        "model": model,
        "data": CONFIG["data"],
        "trainer": {"precision": "bf16-mixed"},
    }


def test_pretrained_arguments_are_removed():
    init_args = {"weights": "DEFAULT", "weights_backbone": "X", "pretrained": True, "depth": 8}
    model = {"backbone": {"class_path": "torchvision.models.resnet18", "init_args": init_args}, "weights": "a.pth"}
    plain = ckpt.strip_pretrained_args(model)["backbone"]["init_args"]
    assert plain == {"weights": None, "weights_backbone": None, "pretrained": False, "depth": 8}
    assert init_args["weights"] == "DEFAULT"
    assert ckpt.strip_pretrained_args({"backbone": "resnet18"}) == {"backbone": "resnet18"}


def test_hyperparameters_from_python_become_plain():
    arguments = {
        "backbone": cifar_resnet(8, num_classes=3),
        "schedule": Schedule("step", milestones=[1, 2]),
        "optimizer": lambda parameters: None,
        "loss": torch.nn.CrossEntropyLoss(),
        "label_smoothing": 0.1,
        "class_names": ["a", "b", "c"],
        "weights": None,
    }
    plain = dict(arguments)
    to_plain_hparams(plain)
    assert plain["backbone"]["class_path"] == "resnet_pl.models.ResNet"
    assert plain["backbone"]["init_args"]["num_classes"] == 3
    assert plain["schedule"]["milestones"] == [1, 2]
    assert "optimizer" not in plain
    assert "loss" not in plain
    assert (plain["label_smoothing"], plain["class_names"], plain["weights"]) == (0.1, ["a", "b", "c"], None)


# ------------------------------------------------------------------------------------ refused


def test_a_missing_file(tmp_path):
    assert "checkpoint not found" in refused(tmp_path / "gone.ckpt")


def test_a_folder(tmp_path):
    assert "checkpoint not found" in refused(tmp_path)


@pytest.mark.parametrize("fraction", [0.01, 0.5, 0.99])
def test_a_truncated_file(path, fraction):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    message = refused(path)
    assert "truncated" in message
    assert "no other usable checkpoint" in message


@pytest.mark.parametrize(
    ("section", "value", "problem"),
    [
        ("state_dict", None, "state_dict is missing"),
        ("state_dict", {"weight": 1}, "state_dict.weight is a int"),
        ("global_step", True, "global_step is a bool"),
        ("loops", [], "loops is a list"),
        (ckpt.METADATA_KEY, {"config": {}}, "resnet_pl.format is missing"),
        (ckpt.METADATA_KEY, {"format": 1, "data": "photos"}, "resnet_pl.data is a str"),
    ],
)
def test_an_intact_file_with_other_types(path, section, value, problem):
    torch.save(content(**{section: value}), path)
    assert problem in refused(path)


@pytest.mark.parametrize("text", ["", "hello, this is not a checkpoint\n", "a: 1\n" * 1000])
def test_an_empty_file_and_a_text(path, text):
    path.write_text(text)
    assert f"({len(text)} bytes)" in refused(path)


def test_the_newest_usable_checkpoint_of_the_folder_is_named(path):
    intact = path.read_bytes()
    altered = intact.replace(torch.tensor([500.0, 501.0]).numpy().tobytes(), bytes(8))
    for age, (name, data) in enumerate({"altered": altered, "broken": b"?", "best": intact, "old": intact}.items()):
        path.with_name(f"{name}.ckpt").write_bytes(data)
        os.utime(path.with_name(f"{name}.ckpt"), (9 - age, 9 - age))
    path.write_bytes(path.read_bytes()[:-9])
    assert str(path.with_name("best.ckpt")) in refused(path).splitlines()[1]


def test_a_flipped_bit_in_a_tensor(path):
    data = bytearray(path.read_bytes())
    position = data.find(torch.tensor([500.0, 501.0]).numpy().tobytes())
    data[position] ^= 1
    path.write_bytes(data)
    assert torch.load(path, weights_only=True)["state_dict"]["weight"][500] != 500  # torch does not detect it
    assert "is damaged" in refused(path)


def test_any_damage_is_refused_or_harmless(path):
    """Flipped bits, truncated files and overwritten bytes: never another error, never other weights."""
    good, rng, refusals = path.read_bytes(), random.Random(0), 0
    original = ckpt.read(path)["state_dict"]
    for _ in range(300):
        data = bytearray(good)
        position = rng.choice([rng.randrange(len(data)), rng.randrange(len(data) - 700, len(data))])
        damage = rng.randrange(3)
        if damage == 0:
            data[position] ^= 1 << rng.randrange(8)
        elif damage == 1:
            data[position : position + 20] = rng.randbytes(20)
        else:
            del data[position:]
        path.write_bytes(data)
        try:
            found = ckpt.read(path)["state_dict"]
        except UserError:
            refusals += 1
        else:
            assert all(torch.equal(found[name], original[name]) for name in original)
    assert refusals > 200


@pytest.mark.parametrize("nested", [False, True])
def test_weights_without_a_checkpoint(tmp_path, nested):
    state = {"fc.weight": torch.ones(2)}
    torch.save({"state_dict": state} if nested else state, tmp_path / "model.pth")
    assert f"--model.weights {tmp_path / 'model.pth'}" in refused(tmp_path / "model.pth")


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def test_a_malicious_pickle_is_not_executed(tmp_path):
    marker = tmp_path / "executed"
    torch.save(content(malicious=Malicious(marker)), tmp_path / "a.ckpt")
    message = refused(tmp_path / "a.ckpt")
    assert "mkdir" in message
    assert not marker.exists()
    torch.load(tmp_path / "a.ckpt", weights_only=False)
    assert marker.exists()  # so the file was malicious


def test_a_malicious_pickle_without_a_zip_archive(tmp_path):
    marker = tmp_path / "executed"
    (tmp_path / "a.ckpt").write_bytes(pickle.dumps(Malicious(marker)))
    refused(tmp_path / "a.ckpt")
    assert not marker.exists()


def test_another_zip_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.ckpt", "w") as archive:
        archive.writestr("a.txt", "text")
    refused(tmp_path / "a.ckpt")


@pytest.mark.parametrize("subcommand", ["fit", "test"])
def test_a_checkpoint_of_another_project(tmp_path, subcommand):
    other = content()
    del other[ckpt.METADATA_KEY]
    with pytest.raises(UserError, match="not written by this project") as error:
        ckpt.config_of(other, tmp_path / "other.ckpt", subcommand)
    assert f"--model.weights {tmp_path / 'other.ckpt'}" in str(error.value)


@pytest.mark.parametrize("number", [ckpt.FORMAT + 1, 0, -1])
def test_an_unknown_format(tmp_path, number):
    later = content()
    later[ckpt.METADATA_KEY] |= {"format": number, "versions": {"resnet_pl": "9.9"}}
    with pytest.raises(UserError, match=f"reads up to {ckpt.FORMAT}") as error:
        ckpt.config_of(later, tmp_path / "later.ckpt", "test")
    assert str(tmp_path / "later.ckpt") in str(error.value)
    assert "9.9" in str(error.value)


# ------------------------------------------------------------------------------------ writing


def test_a_checkpoint_is_written_and_read_back(tmp_path):
    ckpt.AtomicCheckpointIO().save_checkpoint(content(), tmp_path / "runs" / "last.ckpt")
    assert torch.equal(ckpt.read(tmp_path / "runs" / "last.ckpt")["state_dict"]["weight"], torch.arange(1000.0))
    assert [file.name for file in (tmp_path / "runs").iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("disk"), KeyboardInterrupt()])
def test_a_failing_write_leaves_the_old_file(path, monkeypatch, error):
    before = path.read_bytes()

    def fail(checkpoint: Any, target: Path) -> None:
        target.write_bytes(before[:1000])
        raise error

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(type(error)):
        ckpt.AtomicCheckpointIO().save_checkpoint(content(), path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


def test_a_reader_never_sees_an_incomplete_file(path, monkeypatch):
    save, seen = torch.save, []

    def slow(checkpoint: Any, target: Path) -> None:
        target.write_bytes(b"half")
        seen.append(ckpt.read(path)["state_dict"]["bias"].sum())
        save(checkpoint, target)

    monkeypatch.setattr(torch, "save", slow)
    ckpt.AtomicCheckpointIO().save_checkpoint(content(state_dict={"bias": torch.zeros(3)}), path)
    assert [*seen, ckpt.read(path)["state_dict"]["bias"].sum()] == [3, 0]


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path):
    line = ["fit", "--config", CONFIGS / "digits.yaml", "--model.backbone.depth", 8, "--trainer.limit_train_batches", 2]
    line += ["--trainer.default_root_dir", tmp_path, "--trainer.max_epochs", 1, "--trainer.logger", False]
    assert main([*map(str, line)]) == 0
    last = tmp_path / "digits/version_0/checkpoints/last.ckpt"
    before, more = last.read_bytes(), ["fit", "--ckpt_path", str(last), "--trainer.max_epochs", "2"]

    def fill() -> int:
        # The system refuses to write more, as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2,) * 2)
        torch.set_num_threads(1)
        return main(more)

    result = forked(fill, tmp_path)
    assert result.rejected() and re.match("error: the disk is full: .*ckpt", result.message[0]), result.err
    assert last.read_bytes() == before and {path.name for path in last.parent.iterdir()} == {"best.ckpt", "last.ckpt"}
    assert main(more) == 0 and ckpt.read(last)["epoch"] == 1 and last.read_bytes() != before
