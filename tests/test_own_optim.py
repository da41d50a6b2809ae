"""Schedulers, optimizers and losses of torch, timm and the user's own; SWA and Lightning's finders."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from lightning.pytorch.tuner.tuning import Tuner
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingWarmRestarts,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
    StepLR,
)
from torch.utils.data import DataLoader, IterableDataset

from resnet_pl import ImageClassifier
from resnet_pl.callbacks import LastCheckpoint
from resnet_pl.cli.main import main
from resnet_pl.cli.train import check_resume
from resnet_pl.lr_schedulers import LRSequence
from resnet_pl.optim import Schedule
from resnet_pl.utils import UserError
from tests.cli.commands import SMALL, refused
from tests.tiny import Tiny, classifier, trainer

QUICK = [*SMALL, "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.logger", "false"]
LAST = "runs/digits/version_{}/checkpoints/last.ckpt"
FUNCTIONS = {"optimizer": "make_optimizer", "lr_scheduler": "make_scheduler"}
sgd = partial(SGD, lr=0.1, momentum=0.9)


class Halving(LambdaLR):
    """A user's scheduler with an argument."""

    def __init__(self, optimizer: Optimizer, every: int = 1) -> None:
        super().__init__(optimizer, lambda epoch: 0.5 ** (epoch // every))


def make_scheduler(optimizer: Optimizer, total_steps: int | None = None) -> LRScheduler:
    """A user's function."""
    assert total_steps is not None
    return LinearLR(optimizer, 1.0, 0.0, total_steps)


def make_optimizer(params: Any) -> Optimizer:
    """A user's function that goes over the parameters."""
    return SGD([parameter for parameter in params if parameter.requires_grad], lr=0.5)


def with_argument(optimizer: Optimizer, every: int = 1) -> LRScheduler:
    """A user's function whose argument cannot be set from the command line."""
    return StepLR(optimizer, every)


class TwoSteps(Optimizer):
    """An optimizer around another one, as SAM is."""

    def __init__(self, params: Any, base_optimizer: Callable[..., Optimizer]) -> None:
        self.base_optimizer = base_optimizer(params)
        super().__init__(self.base_optimizer.param_groups, self.base_optimizer.defaults)

    def step(self, closure: Any = None) -> Any:
        closure()
        return self.base_optimizer.step(closure)


class Recorder(Callback):
    """Records the learning rate of each step."""

    def __init__(self) -> None:
        self.lrs: list[float] = []

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        self.lrs.append(trainer.optimizers[0].param_groups[0]["lr"])


class Stop(Callback):
    """Ends a new run by an exception in its second epoch; a resumed run continues."""

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 1 and trainer.ckpt_path is None:
            raise RuntimeError("stopped")


def fit(*callbacks: Callback, model: dict[str, Any], ckpt_path: Path | None = None, **kwargs: Any) -> ImageClassifier:
    module = classifier(**({"optimizer": sgd} | model))
    saves = any(isinstance(callback, LastCheckpoint) for callback in callbacks)
    run = trainer(callbacks=list(callbacks), enable_checkpointing=saves, **kwargs)
    run.fit(module, datamodule=Tiny(), ckpt_path=ckpt_path)
    return module


def learning_rates(factory: Any, interval: Any = None, **kwargs: Any) -> list[float]:
    """The learning rates of two epochs of four steps."""
    model = {"lr_scheduler": factory, "lr_scheduler_interval": interval, "optimizer": partial(SGD, lr=1.0)}
    fit(seen := Recorder(), model=model, **({"max_epochs": 2, "limit_val_batches": 0} | kwargs))
    return seen.lrs


def run(*argv: object, expected: int = 0) -> None:
    """Runs a command line."""
    assert main([str(arg) for arg in argv]) == expected


def last_checkpoint(version: int = 0) -> dict[str, Any]:
    return torch.load(LAST.format(version), weights_only=True)


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items() if "metrics" not in name}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# ------------------------------------------------------------------------------------ schedulers


def test_a_scheduler_is_updated_per_step_or_epoch() -> None:
    one_cycle = OneCycleLR(SGD([nn.Parameter(torch.zeros(1))], 1.0), 0.5, total_steps=8)
    expected = []
    for _ in range(8):
        expected.append(one_cycle.get_last_lr()[0])
        one_cycle.optimizer.step()
        one_cycle.step()
    # Its length is that of the run, as it is that of the argument `total_steps` of a function.
    assert learning_rates(partial(OneCycleLR, max_lr=0.5)) == pytest.approx(expected)
    assert learning_rates(make_scheduler) == pytest.approx([1 - step / 8 for step in range(8)])
    assert learning_rates(make_scheduler, "epoch") == [1] * 4 + [0.5] * 4
    halving = partial(Halving, every=2)
    assert learning_rates(halving) == [1] * 8
    assert learning_rates(halving, "step", accumulate_grad_batches=2) == [1] * 4 + [0.5] * 4
    sequence = partial(LRSequence, schedulers=[partial(LinearLR, total_iters=2), partial(ExponentialLR, gamma=0.5)])
    rates = learning_rates(partial(sequence, milestones=[2]), "step")
    assert rates == pytest.approx([1 / 3, 2 / 3, 1, 0.5, 0.25, 1 / 8, 1 / 16, 1 / 32])


@pytest.mark.parametrize(
    "model",
    [
        {"lr_scheduler": partial(OneCycleLR, max_lr=0.2)},
        {"lr_scheduler": partial(ReduceLROnPlateau, mode="max", patience=0, factor=0.5)},
        {"lr_scheduler": partial(CosineAnnealingWarmRestarts, T_0=2), "optimizer": "timm.optim.Muon"},
        {"schedule": Schedule("cosine"), "optimizer": "timm.optim.Lamb"},
        {"lr_scheduler": Halving, "optimizer": make_optimizer},
    ],
    ids=["one cycle", "plateau", "Muon", "LAMB", "own"],
)
def test_an_interrupted_run_resumes_exactly(model: dict[str, Any], tmp_path: Path) -> None:
    if isinstance(name := model.get("optimizer"), str):
        timm_optim = pytest.importorskip("timm.optim")
        model = model | {"optimizer": partial(getattr(timm_optim, name.rpartition(".")[2]), lr=0.01)}
    uninterrupted, after = Recorder(), Recorder()
    expected = weights(fit(uninterrupted, model=model, max_epochs=3))
    with pytest.raises(RuntimeError, match="stopped"):
        fit(LastCheckpoint(tmp_path), Stop(), model=model, max_epochs=3)
    resumed = fit(Stop(), after, model=model, ckpt_path=tmp_path / "last.ckpt", max_epochs=3)
    assert uninterrupted.lrs[4:] == after.lrs
    assert equal(expected, weights(resumed))


def test_a_plateau_is_measured_by_the_mode_of_the_scheduler() -> None:
    # Without BatchNorm and with a tiny learning rate, no validation is better than the first.
    model: dict[str, Any] = {
        "backbone": nn.Sequential(nn.Flatten(), nn.Linear(192, 4)),
        "optimizer": partial(SGD, lr=1e-12),
    }
    plateau = partial(ReduceLROnPlateau, mode="max", patience=0, eps=0)
    fit(seen := Recorder(), model=model | {"lr_scheduler": plateau}, max_epochs=4, check_val_every_n_epoch=2)
    assert [lr / 1e-12 for lr in seen.lrs] == pytest.approx([1] * 16)
    fit(seen := Recorder(), model=model | {"lr_scheduler": plateau}, max_epochs=3)
    assert [lr / 1e-12 for lr in seen.lrs] == pytest.approx([1] * 8 + [0.1] * 4)
    with pytest.raises(UserError, match="val_split"):
        fit(model=model | {"lr_scheduler": plateau}, limit_val_batches=0)


def test_a_longer_run_of_one_cycle_is_refused(tmp_path: Path) -> None:
    model = {"lr_scheduler": partial(OneCycleLR, max_lr=0.2)}
    fit(LastCheckpoint(tmp_path), model=model)
    with pytest.raises(UserError, match=r"model\.lr_scheduler"):
        fit(model=model, ckpt_path=tmp_path / "last.ckpt", max_epochs=2)


def test_a_module_with_its_own_plateau_scheduler_is_left_to_lightning() -> None:
    class Own(ImageClassifier):
        def configure_optimizers(self) -> Any:
            optimizer = SGD(self.parameters(), lr=1.0)
            scheduler = ReduceLROnPlateau(optimizer, mode="max", patience=0, threshold=10)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "train/loss"}}

    run = trainer(callbacks=[seen := Recorder()], max_epochs=3)
    run.fit(Own(nn.Sequential(nn.Flatten(), nn.Linear(192, 4))), datamodule=Tiny())
    assert seen.lrs == pytest.approx([1] * 8 + [0.1] * 4)


def config(**model: Any) -> dict[str, Any]:
    """The configuration of a run with a model."""
    arguments = {"optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}} | model
    return {"model": {"class_path": "resnet_pl.ImageClassifier", "init_args": arguments}}


def test_a_resumed_run_keeps_its_scheduler() -> None:
    step = {"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 2, "gamma": 0.1}}
    exponential = {"class_path": "torch.optim.lr_scheduler.ExponentialLR", "init_args": {"gamma": 0.1}}
    own = config(lr_scheduler=step)
    faster = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.2}}
    changes = {
        "model.lr_scheduler:": config(lr_scheduler=exponential),
        "model.lr_scheduler.step_size": config(lr_scheduler=step | {"init_args": {"step_size": 3}}),
        "model.lr_scheduler_interval": config(lr_scheduler=step, lr_scheduler_interval="step"),
        "model.optimizer.lr": config(lr_scheduler=step, optimizer=faster),
        "model.optimizer:": config(lr_scheduler=step, optimizer="own.make_optimizer"),
    }
    checkpoint = {"optimizer_states": [{}], "resnet_pl": {"config": own}}
    check_resume(checkpoint, own)
    for name, changed in changes.items():
        with pytest.raises(UserError, match=name):
            check_resume(checkpoint, changed)
    # Only `schedule` takes another learning rate.
    check_resume({"optimizer_states": [{}], "resnet_pl": {"config": config()}}, config(optimizer=faster))


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    """Images without end."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield torch.zeros(3, 8, 8), torch.tensor(1)


def test_a_stream_is_scheduled_over_max_steps() -> None:
    def rates(schedule: Schedule, **kwargs: Any) -> list[float]:
        run = trainer(callbacks=[seen := Recorder()], **{"max_epochs": -1, "limit_val_batches": 0} | kwargs)
        module = classifier(schedule=schedule, optimizer=partial(SGD, lr=1.0))
        run.fit(module, train_dataloaders=DataLoader(Stream(), batch_size=4))
        return seen.lrs

    assert rates(Schedule("cosine"), max_steps=4) == pytest.approx(
        [(1 + math.cos(math.pi * i / 4)) / 2 for i in range(4)]
    )
    assert rates(Schedule("constant", "iterations", warmup=1), max_steps=3) == [0.5, 1, 1]
    with pytest.raises(UserError, match=r"model\.schedule\.unit: epochs"):
        rates(Schedule("constant", warmup=1), max_steps=2)
    with pytest.raises(UserError, match=r"trainer\.max_steps"):
        rates(Schedule("cosine"), max_epochs=2)


# ------------------------------------------------------------------------------------ on the command line


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([*QUICK, "--model.lr_scheduler", "SequentialLR"], "LRSequence"),
        pytest.param([*QUICK, "--model.lr_scheduler", "ChainedScheduler"], "function", marks=pytest.mark.slow),
        ([*QUICK, "--model.lr_scheduler", "OneCycl"], "did you mean OneCycleLR"),
        ([*QUICK, "--model.lr_scheduler", f"{__name__}.with_argument", "--model.lr_scheduler.every", "2"],
         "a function is given by its name alone"),
        ([*QUICK, "--model.optimizer", "torch.optim.Muon"], "timm.optim.Muon"),
        ([*QUICK, "--model.optimizer", "LBFGS"], "channels_last"),
        pytest.param(
            [*QUICK, "--trainer.callbacks+=ModelPruning", "--trainer.callbacks.pruning_fn", "l1_unstructured"],
            "channels_last", marks=pytest.mark.slow,
        ),
        ([*QUICK, "--model.label_smoothing", "0", "--model.loss", "BCEWithLogitsLoss"], "one_hot"),
        ([*QUICK, "--model.label_smoothing", "0", "--model.loss", "CrossEntropyLoss", "--model.loss.weight", "[1,2]"],
         "model.loss.weight: 2 weights for 10 classes"),
    ],
)  # fmt: skip
def test_what_does_not_work_is_one_line(options: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert words in refused(capsys, "fit", *options)


def test_class_weights_of_a_loss(tmp_path: Path) -> None:
    loss = ["--model.label_smoothing", "0", "--model.loss", "torch.nn.CrossEntropyLoss"]
    numbers = [1, 2, 3, 4, 5, 6, 7, 8, 9, 0.5]
    run("fit", *QUICK, *loss, "--model.loss.weight", numbers)
    stored, path = last_checkpoint(), LAST.format(0)
    for arguments in (stored["hyper_parameters"], stored["resnet_pl"]["config"]["model"]["init_args"]):
        assert arguments["loss"]["init_args"]["weight"] == numbers
    assert ImageClassifier.load_from_checkpoint(path).criterion.weight.tolist() == numbers
    run("test", "--ckpt_path", path, "--output", tmp_path)


@pytest.mark.slow
def test_functions_of_the_user_by_name() -> None:
    functions = [f"--model.{key}={__name__}.{name}" for key, name in FUNCTIONS.items()]
    run("fit", *QUICK, *functions, "--trainer.max_epochs", "2", f"--trainer.callbacks+={__name__}.Stop", expected=1)
    run("fit", *QUICK, *functions, "--trainer.max_epochs", "2", "--ckpt_path", "last")
    assert last_checkpoint()["global_step"] == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "lr_scheduler", [[], ["--model.lr_scheduler", "OneCycleLR", "--model.lr_scheduler.max_lr", "0.1"]]
)
def test_stochastic_weight_averaging(lr_scheduler: list[str]) -> None:
    swa = ["--trainer.callbacks+=StochasticWeightAveraging", "--trainer.callbacks.swa_lrs", "0.01"]
    run("fit", *QUICK, *swa, "--trainer.max_epochs", "3", *lr_scheduler)
    assert Path("runs/digits/version_0/checkpoints/last.ckpt").is_file()


def test_stochastic_weight_averaging_with_another_head() -> None:
    # The backbone has 10 outputs, the data 3 classes.
    model = ["--data", "tests.own.PlainData", "--model.backbone", "cifar_resnet", "--model.backbone.depth", "8"]
    swa = ["--trainer.callbacks+=StochasticWeightAveraging", "--trainer.callbacks.swa_lrs", "0.01"]
    run("fit", *model, *swa, "--trainer.max_epochs", "2", "--trainer.limit_train_batches", "1")


@pytest.mark.slow
def test_an_optimizer_around_another_one() -> None:
    model = {"optimizer": partial(TwoSteps, base_optimizer=sgd), "decay_norm_and_bias": False}
    before, after = classifier(), fit(model=model)
    assert not torch.equal(before.backbone.fc.weight, after.backbone.fc.weight)


@pytest.mark.slow
def test_lbfgs_trains_without_channels_last() -> None:
    model: dict[str, Any] = {"optimizer": partial(torch.optim.LBFGS, lr=0.1), "channels_last": False}
    fit(model=model, limit_train_batches=1)
    with pytest.raises(UserError, match="accumulate_grad_batches"):
        fit(model=model, accumulate_grad_batches=2)


# ------------------------------------------------------------------------------------ finders


@pytest.mark.slow
def test_the_tuner_finds_learning_rate_and_batch_size() -> None:
    module, data = classifier(backbone=nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), optimizer=sgd), Tiny()
    run = trainer(max_epochs=30, check_val_every_n_epoch=30)
    assert Tuner(run).scale_batch_size(module, datamodule=data, max_trials=2) == data.batch_size == 4
    found = Tuner(run).lr_find(module, datamodule=data)
    assert found is not None and module.lr == found.suggestion()
    run = trainer(callbacks=[seen := Recorder()], limit_val_batches=0)
    run.fit(module, datamodule=data)
    assert (seen.lrs[0], len(seen.lrs)) == (module.lr, 10)
    assert not list(Path().rglob("*.ckpt"))


def test_what_the_finders_found_replaces_them_in_the_configuration() -> None:
    options = [
        *[*QUICK, "--trainer.max_epochs", "2", "--trainer.limit_train_batches", "8"],
        *["--model.base_batch_size", "32", "--trainer.callbacks+=BatchSizeFinder"],
        *["--trainer.callbacks.max_trials", "2", "--trainer.callbacks.init_val", "4"],
        *["--trainer.callbacks+=LearningRateFinder", "--trainer.callbacks.num_training_steps", "15"],
    ]
    stop = f"--trainer.callbacks+={__name__}.Stop"
    run("fit", *options, stop, expected=1)
    first = Path("runs/digits/version_0")
    assert {path.name for path in Path().rglob("*.ckpt")} == {"best.ckpt", "last.ckpt"}
    config = yaml.safe_load((first / "config.yaml").read_text())
    model, data = (config[name]["init_args"] for name in ("model", "data"))
    assert [entry["class_path"] for entry in config["trainer"]["callbacks"]] == [f"{__name__}.Stop"]
    assert (data["batch_size"], data["eval_batch_size"], model["base_batch_size"]) == (8, 64, None)
    assert model["optimizer"]["init_args"]["lr"] != 0.1
    # The same command resumes without searching, and its config.yaml gives the same run.
    run("fit", *options, stop, "--ckpt_path", "last")
    run("fit", "--config", first / "config.yaml", "--trainer.callbacks", "null")
    assert equal(*(last_checkpoint(version)["state_dict"] for version in (0, 1)))
