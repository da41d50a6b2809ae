"""Checkpoints of earlier versions: `fit` resumes them, `test` and `predict` use them.

`old_checkpoint/` has a checkpoint of version 0.1.0 (format 1), at step 30 of 60 of a run on the digits, and the weights
and metrics.csv of the end of that run.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from resnet_pl import checkpoint as ckpt
from resnet_pl._renamed import adopt_checkpoint, upgrade_checkpoint
from resnet_pl.cli.main import main
from resnet_pl.reports.results import read_results
from resnet_pl.run_dir import class_name
from resnet_pl.utils import UserError

OLD = Path(__file__).parent / "old_checkpoint"
DIGITS = str(Path(__file__).parent.parent / "configs/digits.yaml")


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs each test in an empty folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Returns the checkpoint in the folder of an interrupted run."""
    run = tmp_path / "runs/old/version_0"
    (run / "checkpoints").mkdir(parents=True)
    shutil.copy(OLD / "middle.ckpt", run / "checkpoints/last.ckpt")
    (run / "config.yaml").write_text("model: {backbone: resnet18}\n")
    with (OLD / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.reader(file) if row[1] == "step" or int(row[1]) < 35]
    with (run / "metrics.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return run / "checkpoints/last.ckpt"


def read_middle() -> dict[str, Any]:
    """The checkpoint; in a renamed copy of this project, with the name of its package."""
    checkpoint = torch.load(OLD / "middle.ckpt", weights_only=True)
    adopt_checkpoint(checkpoint)
    return checkpoint


def losses(path: Path) -> dict[int, tuple[float, float]]:
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    return {int(row["step"]): (float(row["train/loss"]), float(row["train/top1"])) for row in rows}


def test_a_run_of_format_1_resumes_exactly(checkpoint: Path) -> None:
    assert main(["fit", "--ckpt_path", "last"]) == 0
    end = torch.load(checkpoint, weights_only=True)
    assert end["global_step"] == 60 and end["resnet_pl"]["format"] == ckpt.FORMAT
    resumed, expected = losses(checkpoint.parents[1] / "metrics.csv"), losses(OLD / "metrics.csv")
    assert resumed.keys() == expected.keys()
    for step, values in expected.items():
        assert resumed[step] == pytest.approx(values, rel=1e-4), step
    for name, value in torch.load(OLD / "end.pt", weights_only=True).items():
        torch.testing.assert_close(end["state_dict"][name], value, rtol=1e-3, atol=1e-5)


def test_test_and_predict_use_a_checkpoint_of_format_1(checkpoint: Path) -> None:
    assert main(["test", "--ckpt_path", str(checkpoint)]) == 0
    results = json.loads((checkpoint.parents[1] / "results.json").read_text())
    assert results["images"] == 360 and results["top1"] == pytest.approx(38 / 360, abs=1.5 / 360)
    assert main(["predict", "--ckpt_path", str(checkpoint)]) == 0
    with (checkpoint.parents[1] / "predictions.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 360


# ------------------------------------------------------------------------------------ checkpoints of format 2

SMALL = ["--config", DIGITS, "--model.backbone.depth", "8", "--trainer.limit_train_batches", "2"]
SMALL += ["--trainer.limit_val_batches", "1", "--trainer.logger", "false", "--trainer.max_epochs", "1"]


def downgrade(checkpoint: dict[str, Any]) -> None:
    """Gives a checkpoint the names of format 2."""
    config = checkpoint["resnet_pl"]["config"]
    checkpoint["resnet_pl"]["format"] = 2
    config["dashboard"]["every_seconds"] = 3.0
    del config["dashboard"]["min_interval_seconds"]
    freeze = {"class_path": "resnet_pl.callbacks.Freeze", "init_args": {"up_to": "bn1", "unfreeze_at_epoch": 1}}
    config["trainer"]["callbacks"] = [{"class_path": "resnet_pl.callbacks.EpochLine"}, freeze]
    for scheduler in checkpoint["lr_schedulers"]:
        scheduler["waited"] = scheduler.pop("num_bad_validations")
        scheduler["reductions"] = scheduler.pop("num_decays")


def test_a_run_of_format_2_resumes(capsys: pytest.CaptureFixture[str]) -> None:
    plateau = ["--model.schedule.shape", "plateau", "--model.schedule.patience", "9", "--model.schedule.warmup", "0"]
    assert main(["fit", *SMALL, *plateau]) == 0
    last = Path("runs/digits/version_0/checkpoints/last.ckpt")
    checkpoint = torch.load(last, weights_only=True)
    checkpoint["lr_schedulers"][0] |= {"num_bad_validations": 4, "num_decays": 2, "best": 2.0}
    downgrade(checkpoint)
    torch.save(checkpoint, last)
    capsys.readouterr()
    assert main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "2"]) == 0
    assert "note: " not in capsys.readouterr().err
    resumed = ckpt.read(last)
    assert resumed["epoch"] == 1 and resumed["resnet_pl"]["format"] == ckpt.FORMAT
    assert resumed["lr_schedulers"][0] | {"num_bad_validations": 5, "num_decays": 2} == resumed["lr_schedulers"][0]
    config = resumed["resnet_pl"]["config"]
    assert config["dashboard"]["min_interval_seconds"] == 3
    first, second = config["trainer"]["callbacks"]
    assert class_name(first) == "EpochSummary"
    assert second["init_args"] == {"last_frozen": "bn1", "unfreeze_at_epoch": 1}


def format_2() -> dict[str, Any]:
    """Returns a checkpoint of format 2 with a weighted loss and averaged weights."""
    state = {"backbone.weight": torch.ones(1), "loss.weight": torch.ones(2), "backbone.loss.bias": torch.ones(3)}
    init_args = {"backbone": {"class_path": "resnet_pl.models.gone.ResNet"}}
    return {
        "pytorch-lightning_version": "2.6",
        "epoch": 1,
        "global_step": 10,
        "state_dict": state,
        "current_model_state": dict(state),
        "lr_schedulers": [{"last_epoch": 10, "waited": 3, "reductions": 2, "best": 0.5}],
        "hyper_parameters": dict(init_args),
        "resnet_pl": {
            "format": 2,
            "config": {
                "model": {"class_path": "resnet_pl.ImageClassifier", "init_args": init_args},
                "data": {
                    "class_path": "resnet_pl.data.folder.ImageFolder",
                    "init_args": {
                        "scan": True,
                        "cache": "decoded",
                        "crop": {"class_path": "resnet_pl.data.CentreCrop"},
                    },
                },
                "trainer": None,
            },
            "data": None,
        },
    }


def test_names_in_a_checkpoint_of_format_2(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(format_2(), "old.ckpt")
    checkpoint = ckpt.read(Path("old.ckpt"))
    assert capsys.readouterr() == ("", "")
    for key in ("state_dict", "current_model_state"):
        assert list(checkpoint[key]) == ["backbone.weight", "criterion.weight", "backbone.loss.bias"]
    assert checkpoint["lr_schedulers"] == [{"last_epoch": 10, "num_bad_validations": 3, "num_decays": 2, "best": 0.5}]
    assert checkpoint["hyper_parameters"]["backbone"]["class_path"] == "resnet_pl.models.ResNet"
    assert checkpoint["resnet_pl"]["config"]["data"] == {
        "class_path": "resnet_pl.ImageFolder",
        "init_args": {
            "verify_images": True,
            "cache": True,
            "crop": {"class_path": "resnet_pl.data.ResizeCenterCrop"},
            "scaled_decoding": False,
        },
    }
    torch.save(checkpoint, "new.ckpt")
    assert ckpt.read(Path("new.ckpt"))["resnet_pl"] == checkpoint["resnet_pl"]


def test_a_checkpoint_of_format_2_without_a_configuration() -> None:
    checkpoint = format_2()
    checkpoint["resnet_pl"]["config"] = checkpoint["hyper_parameters"] = None
    del checkpoint["current_model_state"]
    torch.save(checkpoint, "old.ckpt")
    upgraded = ckpt.read(Path("old.ckpt"))
    assert upgraded["resnet_pl"]["config"] is None and upgraded["hyper_parameters"] == {}


def test_an_unknown_format_is_refused_and_not_upgraded() -> None:
    checkpoint = format_2()
    checkpoint["resnet_pl"]["format"] = ckpt.FORMAT + 1
    torch.save(checkpoint, "later.ckpt")
    later = ckpt.read(Path("later.ckpt"))
    assert "loss.weight" in later["state_dict"]
    with pytest.raises(UserError, match=f"reads up to {ckpt.FORMAT}"):
        ckpt.config_of(later, Path("later.ckpt"), "test")


# ------------------------------------------------------------------------------------ checkpoints of format 1


def set_removed_options(checkpoint: dict[str, Any]) -> None:
    """Sets options that were removed, and class paths that were moved."""
    config = checkpoint["resnet_pl"]["config"]
    config["keep_memory"] = False
    config["data"]["init_args"]["decode"] = "auto"
    config["data"]["class_path"] = "resnet_pl.data.gone.Digits"
    for model in (config["model"], checkpoint["hyper_parameters"]):
        model["on_bad_loss"] = "skip"
        model["backbone"]["class_path"] = "resnet_pl.models.gone.ResNet"


def remove_later_keys(checkpoint: dict[str, Any]) -> None:
    """Removes keys that the earliest version did not write, and adds an unknown one."""
    metadata = checkpoint["resnet_pl"]
    later = [(checkpoint, "exact_resume"), (metadata, "versions"), (metadata["data"], "class_names")]
    later += [(metadata["config"], key) for key in ("tf32", "keep_memory", "checkpoint")]
    later += [(metadata["config"]["data"]["init_args"], "mix")]
    for model in (metadata["config"]["model"], checkpoint["hyper_parameters"]):
        later += [(model, "compile"), (model, "on_bad_loss")]
        later += [(model["schedule"], f"warmup_{key}") for key in ("error", "share", "limit")]
    for section, key in later:
        section.pop(key, None)
    metadata["data"]["weather"] = "fine"


@pytest.mark.parametrize("change", [set_removed_options, remove_later_keys])
@pytest.mark.parametrize("subcommand", ["test", "predict", "fit"])
def test_a_checkpoint_of_an_earlier_version_works(subcommand: str, change: Callable[[dict[str, Any]], None]) -> None:
    checkpoint = read_middle()
    change(checkpoint)
    torch.save(checkpoint, "old.ckpt")
    assert main([subcommand, "--ckpt_path", "old.ckpt"]) == 0
    if subcommand == "test":
        assert read_results(Path("results.json"))["images"] == 360
    if subcommand == "fit":
        last = torch.load("runs/old/version_0/checkpoints/last.ckpt", weights_only=True)
        assert (last["resnet_pl"]["format"], last["global_step"]) == (ckpt.FORMAT, 60)


def test_the_warm_up_in_a_checkpoint_resumes() -> None:
    checkpoint = read_middle()
    errors = [0.9] * 30
    for model in (checkpoint["resnet_pl"]["config"]["model"], checkpoint["hyper_parameters"]):
        model["schedule"] |= {"warmup_error": 0.05, "warmup_share": 0.5, "warmup_limit": 4000, "warmup": 0.0}
    checkpoint["lr_schedulers"][0]["errors"] = errors
    torch.save(checkpoint, "old.ckpt")
    assert main(["fit", "--ckpt_path", "old.ckpt"]) == 0
    last = torch.load("runs/old/version_0/checkpoints/last.ckpt", weights_only=True)
    resumed = last["callbacks"]["ErrorWarmup"]["errors"]
    assert last["global_step"] == len(resumed) == 60 and resumed[:30] == errors
    config = yaml.safe_load(Path("runs/old/version_0/config.yaml").read_text())
    (callback,) = config["trainer"]["callbacks"]
    assert callback["init_args"] == {"error": 0.05, "factor": 0.5, "max_iterations": 4000}


def test_a_run_of_before_scaled_decoding_resumes_with_the_same_pixels() -> None:
    def resumed(data: dict[str, Any]) -> dict[str, Any]:
        checkpoint: dict[str, Any] = {"resnet_pl": {"format": 3, "config": {"data": data}}}
        upgrade_checkpoint(checkpoint)
        return checkpoint["resnet_pl"]["config"]["data"]["init_args"]

    photos = {"class_path": "resnet_pl.ImageFolder", "init_args": {"root": "photos", "verify_images": False}}
    assert resumed(photos)["scaled_decoding"] is False
    photos["init_args"] = {"verify_images": False, "scaled_decoding": True}
    assert resumed(photos)["scaled_decoding"] is True
    assert "scaled_decoding" not in resumed({"class_path": "resnet_pl.Digits", "init_args": {"batch_size": 8}})
