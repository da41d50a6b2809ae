"""The command line as a person uses it, in process: fit, validate, test, predict, and going on."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from resnet_pl import ImageClassifier
from resnet_pl.cli import main
from resnet_pl.data import Digits
from resnet_pl.reports.results import read_results

PROJECT = Path(__file__).parent.parent
SMALL = [
    *["--config", str(PROJECT / "configs/digits.yaml"), "--model.backbone.depth", "8"],
    *["--trainer.max_epochs", "2", "--trainer.limit_train_batches", "6", "--trainer.log_every_n_steps", "2"],
]


def run(*argv: object) -> None:
    """Runs a command line that must succeed."""
    assert main.main([str(arg) for arg in argv]) == 0


def refused(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """Runs a command line that must be refused in a line or two, and returns what is said."""
    capsys.readouterr()
    assert main.main([str(arg) for arg in argv]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    start = next(i for i, line in enumerate(said) if line.startswith("error: "))
    assert len(said[start:]) <= 2 and "Traceback" not in "".join(said)
    return "\n".join(said[start:])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a small training."""
    root = tmp_path_factory.mktemp("trained")
    run("fit", *SMALL, "--trainer.default_root_dir", root / "runs")
    return root / "runs/digits/version_0"


@pytest.fixture
def copy(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run that a test may change, and a working folder of its own."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(trained, tmp_path / "runs/digits/version_0")).relative_to(tmp_path)


def rows(run_folder: Path) -> list[dict[str, str]]:
    with (run_folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_is_one_folder(trained: Path) -> None:
    assert sorted(path.name for path in (trained / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["model"]["backbone"]["init_args"]["depth"] == 8 and config["name"] == "digits"
    assert list(trained.glob("events.out.tfevents.*"))
    logged = rows(trained)
    assert [int(row["step"]) for row in logged if row["val/top1"]] == [5, 11]
    assert [int(row["step"]) for row in logged if row["lr"]] == [1, 3, 5, 7, 9, 11]


def test_a_run_knows_its_surroundings(trained: Path) -> None:
    (session,) = json.loads((trained / "sessions.json").read_text())
    assert session["versions"].keys() == {"resnet_pl", "torch", "torchvision", "lightning", "python"}
    assert session["device"].startswith("1 × ") and f"{os.cpu_count()} cores" in session["machine"]
    assert session["command"].endswith(shlex.join(["--trainer.default_root_dir", str(trained.parents[2] / "runs")]))
    assert session["commit"] is None or re.fullmatch(r"[0-9a-f]{12}(-dirty)?", session["commit"])
    data = Digits(image_size=16, val_split=180, test_split=360)
    data.setup("fit")
    assert session["data"] == {part: images.digest() for part, images in data.splits.items()}


def test_a_config_of_a_run_can_be_run_again(copy: Path) -> None:
    run("fit", "--config", copy / "config.yaml", "--trainer.default_root_dir", "runs", "--trainer.max_epochs", 1)
    assert rows(Path("runs/digits/version_1"))


def test_the_start_is_told_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run("fit", *SMALL, "--trainer.default_root_dir", tmp_path, "--trainer.accumulate_grad_batches", 3)
    out = capsys.readouterr().out
    batch = "192 (64 images × 3 accumulated); the paper's is 128"
    images = "1,257 train + 180 val + 360 test"
    for words in (batch, images, "SGD", "learning rate 0.1", "precision 32-true", "1 × cpu", "best validation top-1"):
        assert out.count(words) == 1, words


@pytest.mark.parametrize("name", ["best.ckpt", "last.ckpt"])
def test_test_needs_the_checkpoint_alone(copy: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    run("test", "--ckpt_path", copy / "checkpoints" / name)
    out = capsys.readouterr().out
    results = read_results(copy / "results.json")
    assert results["images"] == 360 and results["split"] == "test"
    assert results["checkpoint"] == f"checkpoints/{name}"
    assert "test: 360 images, the test split stored in the checkpoint" in out
    assert f"{results['top1']:.2%}" in out and "calibration error" in out
    assert sum(entry["images"] for entry in results["per_class"].values()) == 360
    right = sum(entry["correct"] for entry in results["per_class"].values())
    assert results["top1"] == right / 360
    assert (copy / "confusion.png").is_file()
    assert not Path("runs/digits/version_1").exists()


def test_test_agrees_with_a_plain_computation(copy: Path) -> None:
    run("test", "--ckpt_path", copy / "checkpoints/best.ckpt")
    results = read_results(copy / "results.json")
    from sklearn.datasets import load_digits

    from resnet_pl.data import Digits

    net = ImageClassifier.load_from_checkpoint(copy / "checkpoints/best.ckpt", map_location="cpu").eval()
    data = Digits()
    data.setup("test")
    images = data.splits["test"]
    with torch.no_grad():
        probabilities = net(images.images).softmax(1)
    assert results["top1"] == pytest.approx(float((probabilities.argmax(1) == images.labels).float().mean()))
    loss = -probabilities[torch.arange(360), images.labels].log().mean()
    assert results["loss"] == pytest.approx(float(loss), rel=1e-5)
    where = [int(name.split("/")[1]) for name in images.names]
    assert (load_digits().target[where] == images.labels.numpy()).all()


def test_other_tests_are_kept_beside_the_first(copy: Path) -> None:
    run("test", "--ckpt_path", copy / "checkpoints/best.ckpt")
    first = read_results(copy / "results.json")
    run("test", "--ckpt_path", copy / "checkpoints/last.ckpt")
    both = read_results(copy / "results.json")
    assert both["top1"] == first["top1"] and both["checkpoint"] == "checkpoints/best.ckpt"
    assert any(isinstance(v, dict) and v.get("checkpoint") == "checkpoints/last.ckpt" for v in both.values())


def test_validate_has_a_file_of_its_own(copy: Path) -> None:
    run("validate", "--ckpt_path", copy / "checkpoints/best.ckpt")
    results = read_results(copy / "results-val.json")
    assert results["images"] == 180 and not (copy / "results.json").exists()
    best = max(float(row["val/top1"]) for row in rows(copy) if row["val/top1"])
    assert results["top1"] == pytest.approx(best, abs=1e-6)


def test_output_goes_where_it_is_asked(copy: Path) -> None:
    run("test", "--ckpt_path", copy / "checkpoints/best.ckpt", "--output", "elsewhere")
    assert Path("elsewhere/results.json").is_file() and not (copy / "results.json").exists()


def test_a_checkpoint_outside_a_run_writes_here(copy: Path) -> None:
    shutil.move(copy / "checkpoints/best.ckpt", "mine.ckpt")
    shutil.rmtree("runs")
    run("test", "--ckpt_path", "mine.ckpt")
    assert read_results(Path("results.json"))["checkpoint"] == "mine.ckpt"
    assert not Path("runs").exists()


def test_the_line_wins_over_the_checkpoint(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(
        "test",
        "--ckpt_path",
        copy / "checkpoints/best.ckpt",
        "--data.test_split",
        100,
        "--trainer.precision",
        "bf16-mixed",
    )
    assert read_results(copy / "results.json")["precision"] == "bf16-mixed"


def test_precision_comes_from_the_checkpoint(copy: Path) -> None:
    run("fit", *SMALL, "--trainer.precision", "bf16-mixed", "--trainer.max_epochs", 1)
    run("test", "--ckpt_path", "best")
    assert read_results(Path("runs/digits/version_1/results.json"))["precision"] == "bf16-mixed"


def test_predict_on_the_test_split(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("test", "--ckpt_path", copy / "checkpoints/best.ckpt")
    run("predict", "--ckpt_path", copy / "checkpoints/best.ckpt", "--top_k", 3)
    with (copy / "predictions.csv").open(newline="") as file:
        told = list(csv.DictReader(file))
    assert len(told) == 360 and len({row["path"] for row in told}) == 360
    right = sum(row["truth"] == row["prediction"] for row in told)
    assert right / 360 == read_results(copy / "results.json")["top1"]
    assert {"class_2", "class_3"} <= set(told[0]) and "class_4" not in told[0]
    assert Image.open(copy / "contact_sheet.png").size[0] > 200
    assert "The first 20 of 360 images" in capsys.readouterr().out


def test_predict_takes_files_folders_and_patterns(copy: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("photos/7/a.png", "photos/7/b.jpg", "photos/odd/c.png", "single.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (30, 20, 3), dtype=np.uint8)).save(name)
    checkpoint = copy / "checkpoints/best.ckpt"
    run("predict", "--ckpt_path", checkpoint, "--images", "photos", "single.png", "photos/7/*.png", "--output", "out")
    with Path("out/predictions.csv").open(newline="") as file:
        told = list(csv.DictReader(file))
    assert [row["path"] for row in told] == ["photos/7/a.png", "photos/7/b.jpg", "photos/odd/c.png", "single.png"]
    assert [row["truth"] for row in told] == ["7", "7", "", ""]
    assert 0.1 <= float(told[0]["probability"]) <= 1


def test_predict_names_what_is_no_image(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("notes.png").write_text("no image")
    checkpoint = copy / "checkpoints/best.ckpt"
    assert "nowhere" in refused(capsys, "predict", "--ckpt_path", checkpoint, "--images", "nowhere/*.jpg")
    assert "notes.png" in refused(capsys, "predict", "--ckpt_path", checkpoint, "--images", "notes.png")


@pytest.mark.parametrize("how", ["last", "path"])
def test_fit_goes_on_in_the_same_run(copy: Path, how: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = rows(copy)
    path = "last" if how == "last" else copy / "checkpoints/last.ckpt"
    run("fit", "--ckpt_path", path, "--trainer.max_epochs", 3)
    after = rows(copy)
    assert [row["step"] for row in after[: len(before)]] == [row["step"] for row in before]
    assert [int(row["step"]) for row in after if row["val/top1"]] == [5, 11, 17]
    assert "going on from step 12" in capsys.readouterr().out
    assert not Path("runs/digits/version_1").exists()
    assert torch.load(copy / "checkpoints/last.ckpt", weights_only=True)["epoch"] == 2
    config = yaml.safe_load((copy / "config.yaml").read_text())
    assert config["trainer"]["max_epochs"] == 3


def test_the_best_score_is_remembered(copy: Path) -> None:
    checkpoint = torch.load(copy / "checkpoints/last.ckpt", weights_only=True)
    state = next(v for k, v in checkpoint["callbacks"].items() if k.startswith("BestCheckpoint"))
    best = max(float(row["val/top1"]) for row in rows(copy) if row["val/top1"])
    assert float(state["best_model_score"]) == pytest.approx(best, abs=1e-6)
    # A rate of nothing cannot improve on it, so best.ckpt stays unless the score is equalled.
    stamp = (copy / "checkpoints/best.ckpt").stat().st_mtime_ns
    state["best_model_score"] = torch.tensor(2.0)
    state["best_k_models"] = {key: torch.tensor(2.0) for key in state["best_k_models"]}
    torch.save(checkpoint, copy / "checkpoints/last.ckpt")
    run("fit", "--ckpt_path", "last", "--trainer.max_epochs", 3)
    assert (copy / "checkpoints/best.ckpt").stat().st_mtime_ns == stamp


def test_same_seed_same_run(copy: Path) -> None:
    for name in ("one", "two"):
        run("fit", *SMALL, "--trainer.max_epochs", 1, "--name", name, "--trainer.logger", "false")
    one, two = (
        torch.load(f"runs/{name}/version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for name in ("one", "two")
    )
    assert all(torch.equal(one[key], two[key]) for key in one)
    run("fit", *SMALL, "--trainer.max_epochs", 1, "--name", "three", "--seed_everything", 1)
    three = torch.load("runs/three/version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert not torch.equal(one["backbone.conv1.weight"], three["backbone.conv1.weight"])


def test_any_number_of_workers_learns_the_same(photo_folder: Path, tmp_path: Path) -> None:
    net = ["--model.backbone", "cifar_resnet", "--model.backbone.depth", 8, "--model.weights", "null"]
    data = ["--data.root", photo_folder, "--data.image_size", 16, "--data.batch_size", 4, "--data.mix", "MixUp"]
    more = ["--trainer.max_epochs", 2, "--trainer.log_every_n_steps", 1, "--trainer.default_root_dir", tmp_path]
    recipe = ["--config", PROJECT / "configs/recipes/trivial-augment.yaml"]
    found = []
    for workers in (0, 2):
        name = ["--name", f"by{workers}", "--data.num_workers", workers]
        run("fit", "--config", PROJECT / "configs/folder.yaml", *recipe, *net, *data, *more, *name)
        folder = tmp_path / f"by{workers}/version_0"
        losses = [(row["step"], row["train/loss"], row["val/loss"]) for row in rows(folder)]
        found.append((losses, torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]))
    (losses, weights), (others, other_weights) = found
    assert losses == others and sum(bool(loss) for _, loss, _ in losses) == 12
    assert all(torch.equal(weights[key], other_weights[key]) for key in weights)


def test_best_and_last_mean_the_newest_run_of_the_name(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("fit", *SMALL, "--trainer.max_epochs", 1, "--name", "other")
    run("test", "--ckpt_path", "best", "--name", "digits")
    assert (copy / "results.json").is_file()
    run("test", "--ckpt_path", "best")
    assert Path("runs/other/version_0/results.json").is_file()
    assert "runs/absent/version_N" in refused(capsys, "test", "--ckpt_path", "best", "--name", "absent")


def test_ckpt_path_in_a_file(copy: Path) -> None:
    Path("again.yaml").write_text(f"ckpt_path: {copy}/checkpoints/best.ckpt\n")
    run("test", "--config", "again.yaml")
    assert (copy / "results.json").is_file()


def test_short_class_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run("fit", "--data", "Digits", "--model.backbone", "resnet18", "--data.batch_size", 16, "--trainer.max_steps", 1,
        "--model.schedule.shape", "constant")  # fmt: skip
    config = yaml.safe_load(Path("runs/resnet/version_0/config.yaml").read_text())
    assert config["model"]["backbone"]["class_path"] == "resnet_pl.models.resnet18"
    assert config["data"]["class_path"] == "resnet_pl.data.Digits"


def test_print_config_is_a_config(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as end:
        main.main(["fit", *SMALL, "--print_config"])
    assert end.value.code == 0
    path = tmp_path / "printed.yaml"
    path.write_text(capsys.readouterr().out)
    run("fit", "--config", path, "--trainer.default_root_dir", tmp_path, "--trainer.max_epochs", 1)


def test_a_run_that_never_started_leaves_no_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    said = refused(capsys, "fit", *SMALL, "--model.num_classes", 7, "--trainer.default_root_dir", tmp_path)
    assert "7" in said and "10 classes" in said
    assert not list(tmp_path.rglob("version_*"))


def test_a_refused_resume_leaves_the_run_alone(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(copy.rglob("*"))
    refused(capsys, "fit", "--ckpt_path", "last", "--model.backbone.depth", 14)
    refused(capsys, "fit", "--ckpt_path", "last", "--trainer.accelerator", "tpu")
    assert set(before) <= set(copy.rglob("*"))


def test_a_refused_resume_leaves_the_config_alone(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (copy / "config.yaml").read_text()
    # The state of SGD does not fit Adam.
    said = refused(capsys, "fit", "--ckpt_path", "last", "--trainer.max_epochs", 5, "--model.optimizer", "Adam")
    assert "torch.optim.SGD" in said and "torch.optim.Adam" in said
    assert (copy / "config.yaml").read_text() == before


def test_tests_in_another_way_have_keys_of_their_own(copy: Path) -> None:
    best = copy / "checkpoints/best.ckpt"
    run("test", "--ckpt_path", best)
    first = read_results(copy / "results.json")["top1"]
    run("test", "--ckpt_path", best, "--trainer.precision", "bf16-mixed")
    run("test", "--ckpt_path", best, "--trainer.limit_test_batches", 1)
    run("test", "--ckpt_path", best, "--data.image_size", 24)
    results = read_results(copy / "results.json")
    assert results["top1"] == first and results["protocol"] == "single view"
    others = {key for key, value in results.items() if isinstance(value, dict) and "protocol" in value}
    expected = {"precision bf16-mixed", "64 of 360 images", "image_size 24"}
    assert others == {f"single view, {way}" for way in expected}


def test_a_loss_that_is_not_finite_stops_the_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = refused(capsys, "fit", *SMALL, "--model.optimizer.lr", "1e30", "--model.schedule.warmup", 0)
    assert "loss is nan" in said and "learning rate" in said
    assert not list(tmp_path.rglob("last.ckpt"))


def test_the_line_wins_wherever_it_stands(tmp_path: Path) -> None:
    run("fit", "--trainer.max_epochs", 1, "--name", "first", "--trainer.default_root_dir", tmp_path, *SMALL[:4],
        "--trainer.limit_train_batches", 1)  # fmt: skip
    assert yaml.safe_load((tmp_path / "first/version_0/config.yaml").read_text())["trainer"]["max_epochs"] == 1


def test_a_run_folder_is_its_best_checkpoint(copy: Path) -> None:
    run("test", "--ckpt_path", copy)
    assert read_results(copy / "results.json")["checkpoint"] == "checkpoints/best.ckpt"


def test_names_that_lead_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("../x", "/tmp/x", " "):
        assert "--name" in refused(capsys, "fit", *SMALL, "--name", name)


def test_nothing_to_train_is_said(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("fit", "--ckpt_path", "last")
    assert "nothing was trained" in capsys.readouterr().out


def test_a_run_without_a_step_is_none(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    said = refused(capsys, "fit", *SMALL, "--trainer.default_root_dir", tmp_path, "--trainer.max_epochs", 0)
    assert "trainer.max_epochs: 0 trains nothing" in said and not list(tmp_path.rglob("version_0"))


def test_names_can_be_given_to_the_classes(tmp_path: Path) -> None:
    names = [f"digit {i}" for i in range(10)]
    run("fit", *SMALL, "--model.class_names", json.dumps(names), "--trainer.default_root_dir", tmp_path)
    checkpoint = tmp_path / "digits/version_0/checkpoints/last.ckpt"
    assert ImageClassifier.load_from_checkpoint(checkpoint).class_names == names


def test_classes_that_look_like_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name in ("1e3", "007", "yes"):
        for i in range(6):
            path = tmp_path / "photos" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(path)
    small = ["--data.image_size", 32, "--data.batch_size", 4, "--data.num_workers", 0, "--trainer.max_epochs", 1]
    net = ["--model.backbone", "cifar_resnet", "--model.backbone.depth", 8, "--name", "numbers"]
    run("fit", "--data", "ImageFolder", "--data.root", "photos", *small, *net)
    run("test", "--ckpt_path", "best")
    assert set(read_results(Path("runs/numbers/version_0/results.json"))["per_class"]) == {"1e3", "007", "yes"}


def test_another_net_than_the_checkpoint_holds(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "test", "--ckpt_path", copy / "checkpoints/best.ckpt", "--model.backbone.depth", 14)
    assert "another net" in said


def test_damaged_and_foreign_checkpoints(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = (copy / "checkpoints/best.ckpt").read_bytes()
    for name, content in {"empty": b"", "text": b"words", "half": good[: len(good) // 2]}.items():
        Path(f"{name}.ckpt").write_bytes(content)
        assert f"{name}.ckpt" in refused(capsys, "test", "--ckpt_path", f"{name}.ckpt")
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 0xFF
    (copy / "checkpoints/flipped.ckpt").write_bytes(flipped)
    assert "last.ckpt" in refused(capsys, "test", "--ckpt_path", copy / "checkpoints/flipped.ckpt")
    torch.save({"fc.weight": torch.zeros(2)}, "weights.pth")
    assert "--model.weights weights.pth" in refused(capsys, "test", "--ckpt_path", "weights.pth")
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6.6"}, "foreign.ckpt")
    assert "not written by this project" in refused(capsys, "fit", *SMALL, "--ckpt_path", "foreign.ckpt")


@pytest.mark.parametrize("subcommand", [["test"], ["fit", "--trainer.max_epochs", 3]])
def test_a_checkpoint_of_the_first_version(copy: Path, subcommand: list[object]) -> None:
    checkpoint = torch.load(copy / "checkpoints/last.ckpt", weights_only=True)
    story = checkpoint["resnet_pl"]
    # What later versions have added; and what one may add that is not known here.
    added = [(checkpoint, "exact_resume"), (story, "versions"), (story["data"], "class_names")]
    added += [(story["config"], key) for key in ("tf32", "keep_memory", "checkpoint")]
    added += [(story["config"]["data"]["init_args"], "mix")]
    for model in (story["config"]["model"], checkpoint["hyper_parameters"]):
        added += [(model, "compile"), (model, "on_bad_loss")]
        added += [(model["schedule"], f"warmup_{key}") for key in ("error", "share", "limit")]
    for holder, key in added:
        holder.pop(key, None)
    story["data"]["weather"] = "fine"
    torch.save(checkpoint, copy / "checkpoints/old.ckpt")
    run(*subcommand, "--ckpt_path", copy / "checkpoints/old.ckpt")


def test_load_from_checkpoint_needs_no_data(copy: Path) -> None:
    net = ImageClassifier.load_from_checkpoint(copy / "checkpoints/best.ckpt", map_location="cpu")
    assert net.class_names == [str(i) for i in range(10)]
    assert net.eval()(torch.zeros(1, 3, 16, 16, dtype=torch.uint8)).shape == (1, 10)


def test_results_are_plain_json(copy: Path) -> None:
    run("test", "--ckpt_path", copy / "checkpoints/best.ckpt")
    results = json.loads((copy / "results.json").read_text())
    assert set(results) >= {"top1", "top5", "loss", "calibration_error", "images", "per_class", "versions", "epoch"}


def test_unwritable_place(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("in the way")
    assert "file" in refused(capsys, "fit", *SMALL, "--trainer.default_root_dir", "file")


BAD: dict[str, tuple[Sequence[object], str]] = {
    "unknown key": (["--model.widht", 3], "model.weights"),
    "unknown data key": (["--data.batch_siz", 3], "batch_size"),
    "batch size": (["--data.batch_size", 0], "data.batch_size: 0"),
    "not a number": (["--data.batch_size", "four"], "four is not a whole number"),
    "unknown net": (["--model.backbone", "resnet19"], "resnet18"),
    "depth": (["--model.backbone.depth", 21], "20 and 26"),
    "net argument": (["--model.backbone.dpth", 21], "depth"),
    "unknown data": (["--data", "Digit"], "Digits"),
    "unknown optimiser": (["--model.optimizer", "SGDD"], "SGD"),
    "learning rate": (["--model.optimizer.lr", -1], "learning rate"),
    "unknown callback": (["--trainer.callbacks+=EarlyStoping"], "EarlyStopping"),
    "accelerator": (["--trainer.accelerator", "gqu"], "gqu"),
    "no such device": (["--trainer.accelerator", "tpu"], "torch_xla"),
    "optimiser key": (["--model.optimizer.lrr", 1], "lr"),
    "rate is no number": (["--model.optimizer.lr", "abc"], "abc is not a number"),
    "choice": (["--model.schedule.shape", "cosin"], "cosine"),
    "range": (["--model.label_smoothing", 1.5], "below 1"),
    "unknown option": (["--nmae", "x"], "name"),
    "word": (["extra"], "extra"),
    "epochs": (["--trainer.max_epochs", "x"], "trainer.max_epochs"),
    "list": (["--model.schedule.milestones", "x"], "list"),
    "milestones": (["--model.schedule.shape", "step"], "milestones"),
    "split": (["--data.test_split", 5000], "test"),
    "endless cosine": (["--trainer.max_epochs", -1], "cosine"),
    "mean": (["--data.mean", "[1,2]"], "mean"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    argv, word = BAD[case]
    assert word in refused(capsys, "fit", *SMALL, "--trainer.default_root_dir", tmp_path, *argv)
    assert not list(tmp_path.rglob("version_*"))


def test_bad_input_in_a_file_names_the_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("model:\n  label_smothing: 0.1\n")
    said = refused(capsys, "fit", *SMALL, "--config", path)
    assert f"{path}, line 2" in said and "label_smoothing" in said
    path.write_text("data:\n  class_path: Digits\n  init_args:\n    batch_size: many\n")
    said = refused(capsys, "fit", *SMALL, "--config", path)
    assert f"{path}, line 4" in said
