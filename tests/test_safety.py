"""Checkpoints that name code outside the libraries of this project: announced before the import, or refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from resnet_pl.checkpoint import METADATA_KEY
from resnet_pl.cli.main import main
from resnet_pl.import_paths import check_names, check_objects
from resnet_pl.load import load_run
from resnet_pl.utils import UserError

CONFIG = str(Path(__file__).parent.parent / "configs/digits.yaml")
SMALL = ["--model.backbone.depth", "8", "--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "1"]
# What the forged checkpoints would run.
SHELL = "touch marker"
Change = Callable[[Any, Any], None]


@pytest.fixture(scope="module")
def genuine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("genuine")
    words = ["--trainer.max_epochs", "1", "--trainer.logger", "false", "--trainer.default_root_dir", str(root)]
    assert main(["fit", "--config", CONFIG, *SMALL, *words]) == 0
    return root / "digits/version_0/checkpoints/last.ckpt"


def forge(genuine: Path, change: Change) -> Path:
    """Writes a copy in the working folder whose configuration and hyperparameters are changed."""
    checkpoint = torch.load(genuine, weights_only=True)
    change(checkpoint[METADATA_KEY]["config"], checkpoint["hyper_parameters"])
    torch.save(checkpoint, "forged.ckpt")
    return Path("forged.ckpt")


def of_model(**values: Any) -> Change:
    """Returns a change of arguments of the model, where they are stored: in both places."""

    def change(config: Any, hparams: Any) -> None:
        config["model"]["init_args"].update(values)
        hparams.update(values)

    return change


def of_config(section: str, value: Any) -> Change:
    def change(config: Any, hparams: Any) -> None:
        config[section] = value

    return change


RUN = {"class_path": "os.system", "init_args": {"command": SHELL}}
POPEN = {"class_path": "subprocess.Popen", "init_args": {"args": SHELL, "shell": True}}
# Functions and classes of trusted libraries that run or load other code.
LINEAR = {"in_features": 1, "out_features": 1}
FORGED: dict[str, Change] = {
    "class_path": of_model(loss=RUN),
    "class": of_model(backbone=POPEN),
    "plain string": of_model(optimizer="os.system"),
    "behind a trusted package": of_model(optimizer="torch.os.system"),
    "behind a trusted package, as a class": of_model(loss={"class_path": "torch.os.system", "init_args": {}}),
    "behind a module": of_model(optimizer="torch.serialization.os.system"),
    "YAML text": of_model(loss='{class_path: "\\x6fs.system", init_args: {command: touch marker}}'),
    "YAML text in YAML text": of_model(loss="'{class_path: os.system}'"),
    "argument of any type": of_model(loss={"class_path": "torch.nn.Linear", "init_args": {**LINEAR, "device": RUN}}),
    "hidden in an argument of any type": of_model(
        loss={
            "class_path": "torch.nn.Linear",
            "init_args": {**LINEAR, "device": RUN | {"class_path": "torch.os.system"}},
        }
    ),
    "keyword argument": of_model(
        loss={"class_path": "torch.nn.Linear", "init_args": LINEAR, "dict_kwargs": {"a": RUN}}
    ),
    "list": of_config("data", {"class_path": "Digits", "init_args": {"batch_transforms": [POPEN]}}),
    "callback": of_config(
        "trainer", {"callbacks": [{"class_path": "LambdaCallback", "init_args": {"setup": "os.abort"}}]}
    ),
    "builtins": of_model(optimizer="builtins.eval"),
    "import": of_model(optimizer="importlib.import_module"),
    "instantiator": lambda config, hparams: hparams.update(_instantiator="os.system"),
    "tests of Python": of_model(optimizer="test.support.os.system"),
    "code loader of torch": of_model(
        loss={"class_path": "torch.nn.Linear", "init_args": {**LINEAR, "device": {"class_path": "torch.hub.load"}}}
    ),
    "process of torch": of_model(
        loss={
            "class_path": "torch.nn.Linear",
            "init_args": {
                **LINEAR,
                "device": {
                    "class_path": "torch.distributed.elastic.multiprocessing.subprocess_handler.SubprocessHandler",
                    "init_args": {"entrypoint": "touch", "args": ["marker"], "env": {}},
                },
            },
        }
    ),
}


@pytest.mark.parametrize("name", FORGED)
def test_other_code_is_refused_and_not_run(genuine: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = forge(genuine, FORGED[name])
    with pytest.raises(UserError, match="is refused: its configuration names"):
        load_run(path)
    if name in ("class_path", "behind a trusted package", "callback"):
        commands = [["fit"], ["test"], ["predict", "--images", "."]]
        for command in commands:
            assert main([*command, "--ckpt_path", str(path)]) == 2
            assert capsys.readouterr().err.count("\n") == 2
    assert not Path("marker").exists()


def test_other_packages_are_named_before_they_are_imported(genuine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("stranger.py").write_text(
        "import torch, os\nfrom subprocess import run\nprint('imported')\nclass Loss(torch.nn.CrossEntropyLoss): pass\n"
    )
    sys.path.insert(0, str(Path.cwd()))
    try:
        model, _ = load_run(forge(genuine, of_model(loss="stranger.Loss", label_smoothing=0.0)))
        assert type(model.criterion).__name__ == "Loss"
        note, imported = capsys.readouterr().out.partition("imported")[::2]
        assert "stranger" in note and imported
        # Not by way of another package either.
        for hidden in ("stranger.run", "stranger.os.system"):
            with pytest.raises(UserError, match="is refused"):
                layer = {"class_path": "torch.nn.Linear", "init_args": {**LINEAR, "device": {"class_path": hidden}}}
                load_run(forge(genuine, of_model(loss=layer, label_smoothing=0.0)))
    finally:
        sys.path.remove(str(Path.cwd()))
        sys.modules.pop("stranger", None)


TEXTS = [
    "test.pth",
    "email.jpg",
    "/data/os.path/test.jpg",
    "my-os.system",
    "code.v2",
    "val/top1",
    "random.png",
    "nowhere.b.c",
]


@pytest.mark.parametrize("text", TEXTS)
def test_other_text_is_not_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    check_names({"name": text, "data": {"init_args": {"root": text}}, "model": [text]}, Path("x.ckpt"))
    assert not capsys.readouterr().out


def test_class_names_are_text(genuine: Path) -> None:
    names = ["os.system", "socket.io", *"abcdefgh"]
    assert load_run(forge(genuine, of_model(class_names=names)))[0].class_names == names


def test_what_a_configuration_consists_of_is_accepted() -> None:
    names = [
        *("torch.optim.SGD", "torch.nn.CrossEntropyLoss", "torch.nn.functional.relu", "torchvision.models.resnet18"),
        *("torchvision.models.alexnet", "torchvision.models.googlenet"),  # modules have the same names
        *(
            "resnet_pl.models.resnet18",
            "resnet_pl.CIFAR10",
            "resnet_pl.data.RandomFlip",
            "torchvision.ops.Conv2dNormActivation",
        ),
        *("torchmetrics.classification.MulticlassF1Score", "torchmetrics.F1Score", "torch.optim.lr_scheduler.StepLR"),
        *("lightning.pytorch.callbacks.EarlyStopping", "lightning.pytorch.strategies.DDPStrategy"),
        *("lightning.pytorch.loggers.CSVLogger", "lightning.pytorch.plugins.MixedPrecision", "tests.tiny.Tiny"),
    ]
    check_names(names, Path("x.ckpt"))
    check_objects([{"class_path": name} for name in names], Path("x.ckpt"))
