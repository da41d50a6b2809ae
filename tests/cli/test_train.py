"""`fit`: the files of a run, resuming, and the options that may change on resume."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from resnet_pl import ImageClassifier
from resnet_pl.cli.main import main
from resnet_pl.cli.train import check_resume
from resnet_pl.data import Digits
from resnet_pl.utils import UserError
from tests.cli.commands import PROJECT, SMALL, refused, rows, run

# One short epoch without TensorBoard.
QUICK = [
    *[*SMALL[:4], "--trainer.logger", "false", "--trainer.max_epochs", "1"],
    *["--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1"],
]


def last_of(run_folder: Path) -> dict[str, Any]:
    """A run's last checkpoint."""
    return torch.load(run_folder / "checkpoints/last.ckpt", weights_only=True)


def files(folder: Path) -> dict[Path, int]:
    """All files with their modification times."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


# ------------------------------------------------------------------------------------ a run


def test_a_run_is_one_folder(trained: Path) -> None:
    assert sorted(path.name for path in (trained / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["model"]["class_path"] == "resnet_pl.ImageClassifier"
    assert config["model"]["init_args"]["backbone"]["init_args"]["depth"] == 8 and config["name"] == "digits"
    assert list(trained.glob("events.out.tfevents.*"))
    logged = rows(trained)
    assert [int(row["step"]) for row in logged if row["val/top1"]] == [5, 11]
    assert [int(row["step"]) for row in logged if row["lr"]] == [1, 3, 5, 7, 9, 11]


def test_a_run_records_versions_machine_and_data(trained: Path) -> None:
    (session,) = json.loads((trained / "sessions.json").read_text())
    assert session["versions"].keys() == {"resnet_pl", "torch", "torchvision", "lightning", "python"}
    assert session["device"].startswith("1 × ") and f"{os.cpu_count()} cores" in session["machine"]
    assert session["command"].endswith(shlex.join(["--trainer.default_root_dir", str(trained.parents[2] / "runs")]))
    assert session["commit"] is None or re.fullmatch(r"[0-9a-f]{12}(-dirty)?", session["commit"])
    data = Digits(image_size=16, val_split=180, test_split=360)
    data.setup("fit")
    assert session["data"] == {part: images.digest() for part, images in data.splits.items()}


def test_the_start_is_printed_once(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    run("fit", *SMALL, "--trainer.accumulate_grad_batches", 3)
    out = capsys.readouterr().out
    batch = "192 = 64 images × 3 accumulated"
    images = "1,257 train + 180 val + 360 test"
    end = ["Best validation top-1: ", "Evaluate: ", "TensorBoard: "]
    for words in (batch, images, "SGD", "learning rate 0.1", "precision 32-true", "1 × cpu", *end):
        assert out.count(words) == 1, words


def test_same_seed_same_run(place: Path) -> None:
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        run("fit", *QUICK, "--name", name, "--seed_everything", seed)
    one, two, three = (last_of(Path(f"runs/{name}/version_0"))["state_dict"] for name in ("one", "two", "three"))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not torch.equal(one["backbone.conv1.weight"], three["backbone.conv1.weight"])


def test_the_number_of_workers_does_not_change_the_training(photo_folder: Path, tmp_path: Path) -> None:
    model = ["--model.backbone", "cifar_resnet", "--model.backbone.depth", 8, "--model.weights", "null"]
    data = ["--data.root", photo_folder, "--data.image_size", 16, "--data.batch_size", 4, "--data.mix", "MixUp"]
    more = ["--trainer.max_epochs", 2, "--trainer.log_every_n_steps", 1, "--trainer.default_root_dir", tmp_path]
    recipe = ["--config", PROJECT / "configs/recipes/trivial-augment.yaml"]
    found = []
    for workers in (0, 2):
        name = ["--name", f"by{workers}", "--data.num_workers", workers]
        run("fit", "--config", PROJECT / "configs/folder.yaml", *recipe, *model, *data, *more, *name)
        folder = tmp_path / f"by{workers}/version_0"
        losses = [(row["step"], row["train/loss"], row["val/loss"]) for row in rows(folder)]
        found.append((losses, last_of(folder)["state_dict"]))
    (losses, weights), (others, other_weights) = found
    assert losses == others and sum(bool(loss) for _, loss, _ in losses) == 12
    assert all(torch.equal(weights[key], other_weights[key]) for key in weights)


def test_class_names_can_be_given(place: Path) -> None:
    names = [f"digit {i}" for i in range(10)]
    run("fit", *QUICK, "--model.class_names", json.dumps(names))
    checkpoint = "runs/digits/version_0/checkpoints/last.ckpt"
    assert ImageClassifier.load_from_checkpoint(checkpoint).class_names == names


def test_a_non_finite_loss_stops_the_run(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    message = refused(capsys, "fit", *SMALL, "--model.optimizer.lr", "1e30", "--model.schedule.warmup", 0)
    assert "loss is nan" in message and "learning rate" in message
    assert not list(place.rglob("*.ckpt"))
    (session,) = json.loads(Path("runs/digits/version_0/sessions.json").read_text())
    assert "diverged" in session and "ended" not in session


def test_a_warm_up_that_takes_too_long_is_an_error(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    never = ["--trainer.callbacks+=ErrorWarmup", "--trainer.callbacks.error", 0]
    never += ["--trainer.callbacks.max_iterations", 3, "--trainer.max_epochs", 3]
    message = refused(capsys, "fit", *QUICK, *never)
    assert "after 3 iterations" in message and "max_iterations" in message
    last = last_of(Path("runs/digits/version_0"))
    assert last["global_step"] == last["lr_schedulers"][0]["last_epoch"] == 2
    assert len(last["callbacks"]["ErrorWarmup"]["errors"]) == 2


def test_checkpoints_within_an_epoch(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = []
    monkeypatch.setattr(
        "lightning.pytorch.Trainer.save_checkpoint", lambda trainer, path, *args: saved.append(trainer.global_step)
    )
    often = ["--checkpoint.every_n_steps", 2, "--trainer.limit_train_batches", 7, "--trainer.limit_val_batches", 0]
    run("fit", *QUICK, *often)
    assert saved == [2, 4, 6, 7]


# ------------------------------------------------------------------------------------ stopping


class Signal(Callback):
    """Sends this process the signals that SIGNALS names, in the second step."""

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        for name in os.environ["SIGNALS"].split() if trainer.global_step == 2 else ():
            signal.raise_signal(signal.Signals[name])


@pytest.mark.parametrize(("signals", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGINT SIGTERM", 130)])
def test_an_interrupted_run_prints_how_to_resume_and_resumes(
    signals: str,
    code: int,
    trained: Path,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setenv("SIGNALS", signals)
    assert main([*map(str, ("fit", *SMALL, "--trainer.callbacks+", f"{__name__}.Signal"))]) == code
    out, err = capsys.readouterr()
    assert (
        "Resume with: python cli.py fit --ckpt_path runs/digits/version_0/checkpoints/last.ckpt" in out
        and "Traceback" not in err
    )
    assert last_of(Path("runs/digits/version_0"))["global_step"] == 2
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    monkeypatch.setenv("SIGNALS", "")
    run("fit", "--ckpt_path", "last")
    assert last_of(Path("runs/digits/version_0"))["global_step"] == 12
    resumed, complete = (last_of(folder)["state_dict"] for folder in (Path("runs/digits/version_0"), trained))
    assert all(torch.equal(resumed[key], complete[key]) for key in complete)


def test_a_second_ctrl_c_ends_a_run_at_once(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SIGNALS", "SIGINT SIGINT")
    assert main([*map(str, ("fit", *SMALL, "--trainer.callbacks+", f"{__name__}.Signal"))]) == 130
    assert "Traceback" not in capsys.readouterr().err
    assert not list(place.rglob("*.ckpt"))  # the first one alone would save


# ------------------------------------------------------------------------------------ resuming


@pytest.mark.parametrize("how", ["last", "path", "folder"])
def test_fit_resumes_in_the_same_run(copy: Path, how: str, capsys: pytest.CaptureFixture[str]) -> None:
    before, started = rows(copy), yaml.safe_load((copy / "config.yaml").read_text())
    path = {"last": "last", "path": copy / "checkpoints/last.ckpt", "folder": copy}[how]
    run("fit", "--ckpt_path", path, "--trainer.max_epochs", 3)
    after = rows(copy)
    assert [row["step"] for row in after[: len(before)]] == [row["step"] for row in before]
    assert [int(row["step"]) for row in after if row["val/top1"]] == [5, 11, 17]
    assert "step 12" in capsys.readouterr().out
    assert not Path("runs/digits/version_1").exists()
    assert last_of(copy)["epoch"] == 2
    config = yaml.safe_load((copy / "config.yaml").read_text())
    assert config.pop("trainer") == started.pop("trainer") | {"max_epochs": 3}
    assert config == started


def test_a_checkpoint_outside_a_run_resumes_in_a_new_one(copy: Path) -> None:
    shutil.move(copy / "checkpoints/last.ckpt", "mine.ckpt")
    shutil.rmtree("runs")
    run("fit", "--ckpt_path", "mine.ckpt", "--trainer.max_epochs", 3, "--trainer.default_root_dir", "runs")
    assert [int(row["step"]) for row in rows(Path("runs/digits/version_0")) if row["val/top1"]] == [17]


def test_a_complete_run_has_nothing_to_do(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("fit", "--ckpt_path", "last")
    assert "Nothing to do: " in capsys.readouterr().out


def test_steps_after_the_checkpoint_are_not_shown_twice(place: Path) -> None:
    often = ["--trainer.log_every_n_steps", 1, "--dashboard.images", 0, "--dashboard.graph", "false"]
    run("fit", *QUICK, *often, "--trainer.logger", "true")
    folder = Path("runs/digits/version_0")
    last = folder / "checkpoints/last.ckpt"
    saved = last.read_bytes()
    for _ in range(2):
        # As if the process had been killed after some more steps.
        last.write_bytes(saved)
        run("fit", "--ckpt_path", "last", "--trainer.max_epochs", 3)
    logged = [(int(row["step"]), float(row["train/loss"])) for row in rows(folder) if row["train/loss"]]
    shown = EventAccumulator(str(folder)).Reload().Scalars("curves/loss")
    assert [step for step, _ in logged] == [event.step for event in shown] == list(range(6))
    assert [loss for _, loss in logged] == pytest.approx([event.value for event in shown])


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run without weight decay on normalization layers and biases."""
    root = tmp_path_factory.mktemp("quick")
    run("fit", *QUICK, "--model.decay_norm_and_bias", "false", "--trainer.default_root_dir", root / "runs")
    return root / "runs"


@pytest.fixture
def runs(quick: Path, place: Path) -> Path:
    """A copy of it in an empty working folder."""
    return Path(shutil.copytree(quick, place / "runs")).relative_to(place)


@pytest.mark.parametrize(
    ("option", "value", "was"),
    [
        *[("data.val_split", "0.2", "180"), ("data.test_split", "100", "360"), ("data.split_seed", "1", "0")],
        *[("data.num_folds", "5", "None"), ("data.fold", "1", "0"), ("model.decay_norm_and_bias", "true", "False")],
        *[("model.optimizer.weight_decay", "0.01", "0.0005"), ("model.optimizer.momentum", "0.5", "0.9")],
        *[("model.optimizer.nesterov", "true", "False"), ("model.optimizer", "Adam", "torch.optim.SGD")],
    ],
)
def test_an_option_that_cannot_change_is_rejected_by_name(
    option: str, value: str, was: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(runs)
    message = refused(capsys, "fit", "--ckpt_path", "last", "--trainer.max_epochs", 2, f"--{option}", value)
    assert f"error: {option}: the run was trained with {was}" in message and "--model.weights" in message
    assert files(runs) == before


@pytest.mark.parametrize(
    "argv",
    [
        ["--model.backbone.depth", "14"],
        ["--trainer.accelerator", "tpu"],
        ["--data.mean", "pixel"],
        ["--trainer.max_epochs", "x"],
        ["--model.backbone", "resnet18"],
    ],
)
def test_a_rejected_resume_changes_no_file(argv: list[str], runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(runs)
    refused(capsys, "fit", "--ckpt_path", "last", *argv)
    # TensorBoard's file is created before the model is compared with the checkpoint.
    after = {path: when for path, when in files(runs).items() if "tfevents" not in path.name}
    assert after == before


def test_the_same_options_again_are_accepted(runs: Path) -> None:
    same = ["--data.val_split", 180, "--data.split_seed", 0, "--model.optimizer.momentum", 0.9]
    run("fit", "--ckpt_path", "last", "--trainer.max_epochs", 2, *same)
    folder = runs / "digits/version_0"
    run("fit", "--ckpt_path", folder, "--config", folder / "config.yaml", "--trainer.max_epochs", 3)
    assert last_of(folder)["epoch"] == 2


def test_learning_rate_schedule_and_batch_size_may_change(runs: Path) -> None:
    other = ["--model.optimizer.lr", 0.03125, "--model.schedule.shape", "constant", "--model.schedule.warmup", 0]
    run("fit", "--ckpt_path", "last", "--trainer.max_epochs", 2, *other, "--data.batch_size", 32)
    learning_rates = {
        group["lr"] for group in last_of(runs / "digits/version_0")["optimizer_states"][0]["param_groups"]
    }
    assert learning_rates == {0.03125}


def test_another_length_of_a_resumed_cosine_is_noted(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    constant = ["--model.schedule.shape", "constant", "--model.schedule.warmup", 0]
    for options, noted in (([], True), ([], False), (constant, False)):
        length = 3 if options else 2
        capsys.readouterr()
        run("fit", "--ckpt_path", "last", "--trainer.max_epochs", length, *options)
        assert ("note: trainer.max_epochs was " in capsys.readouterr().out) == noted


@pytest.mark.parametrize(
    ("options", "noted"),
    [
        (["--model.optimizer", "AdamW"], {"lr 0.1": "0.001", "weight_decay 0.0005": "0.01"}),
        (["--model.optimizer", "AdamW", "--model.optimizer.lr", 0.002], {"weight_decay 0.0005": "0.01"}),
        (["--model.optimizer", "SGD"], {}),
        (["--config", "named.yaml"], {}),
        (["--config", PROJECT / "configs/recipes/adamw.yaml"], {}),
    ],
)
def test_an_optimizer_with_values_of_another_one_is_noted(
    options: list[object], noted: dict[str, str], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("named.yaml").write_text("model: {optimizer: torch.optim.AdamW}", encoding="utf-8")
    run("fit", *SMALL, *options, "--trainer.fast_dev_run", "true")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert [line.partition(", as SGD before")[0] for line in lines] == [f"note: AdamW has {value}" for value in noted]
    for line, (value, default) in zip(lines, noted.items(), strict=True):
        assert line.endswith(f"its default is {default}: --model.optimizer.{value.split()[0]}")


def test_configurations_that_cannot_be_compared_are_accepted() -> None:
    def config(data: str, val_split: float, **optimizer: float) -> dict[str, Any]:
        return {
            "model": {"init_args": {"optimizer": {"class_path": "SGD", "init_args": optimizer}}},
            "data": {"class_path": data, "init_args": {"val_split": val_split}},
        }

    def checkpoint(before: dict[str, Any]) -> dict[str, Any]:
        return {"optimizer_states": [{}], "resnet_pl": {"config": before}}

    now = config("A", 0.2, lr=1, momentum=0.9)
    check_resume(checkpoint({}), now)
    check_resume(checkpoint(config("B", 0.1, lr=2, momentum=0.9)), now)
    # An argument that this version of the optimizer does not have is not compared.
    check_resume(checkpoint(config("A", 0.2, gone=3)), now)
    with pytest.raises(UserError, match=r"data\.val_split: .* 0\.1 .* 0\.2"):
        check_resume(checkpoint(config("A", 0.1, lr=1)), now)
    with pytest.raises(UserError, match=r"model\.optimizer\.momentum: .* 0\.5 .* 0\.9"):
        check_resume(checkpoint(config("A", 0.2, momentum=0.5)), now)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("model", "class_weights", [9.0, 1.0]),
        ("model", "class_weights", "balanced"),
        ("model", "loss", {"class_path": "CrossEntropyLoss", "init_args": {"weight": [9.0, 1.0]}}),
        ("data", "group_pattern", r"(g\d)_"),
        ("data", "group_column", "patient"),
    ],
)
def test_options_that_a_resume_would_ignore_are_refused(section: str, key: str, value: Any) -> None:
    arguments = {"model": {"backbone": "A"}, "data": {}}
    before = {name: {"class_path": name, "init_args": given} for name, given in arguments.items()}
    now = before | {section: {"class_path": section, "init_args": arguments[section] | {key: value}}}
    checkpoint = {"optimizer_states": [{}], "resnet_pl": {"config": before}}
    check_resume(checkpoint, before)
    with pytest.raises(UserError, match=rf"^{section}\.{key}[.\w]*: "):
        check_resume(checkpoint, now)


def test_the_memory_layout_of_a_resumed_run_is_that_of_its_optimizer() -> None:
    before, now = ({"model": {"init_args": {"channels_last": value}}} for value in (True, False))
    with pytest.raises(UserError, match=r"model\.channels_last: "):
        check_resume({"optimizer_states": [{}], "resnet_pl": {"config": before}}, now)
    check_resume({"optimizer_states": [{}], "resnet_pl": {"config": {"model": {}}}}, now)


def test_a_checkpoint_without_optimizer_state_cannot_be_resumed(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last = runs / "digits/version_0/checkpoints/last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    torch.save(checkpoint | {"optimizer_states": []}, last)
    assert "--model.weights" in refused(capsys, "fit", "--ckpt_path", "last", "--trainer.max_epochs", 2)


def flipped(good: bytes) -> bytes:
    """The bytes with one changed in the middle."""
    middle = len(good) // 2
    return good[:middle] + bytes([good[middle] ^ 0xFF]) + good[middle + 1 :]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("empty", lambda good: b""),
        ("text", lambda good: b"words"),
        ("half", lambda good: good[: len(good) // 2]),
        ("flipped", flipped),
    ],
)
def test_a_damaged_checkpoint_is_named_with_a_good_one(
    name: str, change: Callable[[bytes], bytes], copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copy / f"checkpoints/{name}.ckpt"
    path.write_bytes(change((copy / "checkpoints/best.ckpt").read_bytes()))
    for subcommand in ("fit", "test"):
        message = refused(capsys, subcommand, "--ckpt_path", path)
        assert f"{name}.ckpt" in message and "last.ckpt" in message


def test_a_checkpoint_of_another_project_is_rejected(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"fc.weight": torch.zeros(2)}, "weights.pth")
    assert "--model.weights weights.pth" in refused(capsys, "test", "--ckpt_path", "weights.pth")
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6.6"}, "foreign.ckpt")
    assert "--model.weights foreign.ckpt" in refused(capsys, "fit", *SMALL, "--ckpt_path", "foreign.ckpt")
