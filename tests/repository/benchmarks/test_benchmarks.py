"""Every benchmark runs at a tiny size, compares variants that do the same work, and writes its section of the page."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import (
    accuracy,
    calibration,
    depth,
    doctor,
    epoch,
    gpu,
    growth,
    heatmaps,
    label_errors,
    latency,
    loader,
    outdated,
    overhead,
    processes,
    recipes,
    report,
    scaled_decoding,
    small_data,
    startup,
)
from benchmarks.steps import (
    LinearModel,
    Stopwatch,
    build_fit,
    hidden_terminal,
    run_fit,
    run_plain_loop,
    setup_without_trainer,
)
from resnet_pl.cli.main import main
from resnet_pl.models import cifar_resnet
from resnet_pl.reports.run_reader import Run
from tests.cli.commands import SMALL, run


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs and the page are in a temporary folder, and torch.compile uses the fast eager backend."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "PAGE", tmp_path / "benchmarks.md")
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda call, **kwargs: compile_(call, **kwargs | {"backend": "eager"}))


def table_rows(text: str, part: str) -> list[list[str]]:
    """Cells of the table rows that contain a text."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if part in line]


def test_rounds_are_interleaved() -> None:
    order: list[str] = []
    variants = {name: (lambda name=name: order.append(name) or len(order)) for name in "ab"}
    assert report.run_interleaved(variants, 3) == {"a": [1, 4, 5], "b": [2, 3, 6]}
    assert "".join(order) == "abbaab"


def test_a_section_replaces_the_older_one(tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    for cell in ("old", "new"):
        report.report(
            "One", report.command("/any/one.py", ["--x", "1", "--record"]), report.table(["h"], [[cell]]), True
        )
    report.report("Two", ["python two.py"], "| 2 |", True)
    text = page.read_text()
    assert text.count("## One") == text.count("## Two") == 1
    assert "| new |" in text and "| old |" not in text
    assert "python benchmarks/one.py --x 1\n" in text


def test_a_record_is_outdated_when_its_script_does_something_else(tmp_path: Path) -> None:
    script, module = tmp_path / "benchmarks/one.py", tmp_path / "benchmarks/steps.py"

    def write(path: Path, text: str) -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'"""A docstring."""\n\n{text}\n', encoding="utf-8")

    def git(*words: str) -> str:
        own = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        return subprocess.run(["git", *own, *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    write(script, "from benchmarks.steps import run\nrun(1)")
    write(module, "def run(x): pass")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "one")
    page = f"# Page\n\n## One\n\npython benchmarks/one.py\n\nx, commit {git('rev-parse', '--short=12', 'HEAD')}\n"
    write(script, "# a comment\nfrom benchmarks.steps import run\nrun(1)")
    assert outdated.outdated(tmp_path, page) == []
    write(module, "def run(x): print(x)")
    assert outdated.outdated(tmp_path, page) == ["One"]
    git("checkout", "-q", ".")
    write(script, "run(2)")
    assert outdated.outdated(tmp_path, page) == ["One"]
    with pytest.raises(OSError):
        outdated.outdated(tmp_path, re.sub("commit .*", "commit 0123456789ab", page))


def test_the_page_starts_with_the_targets(tmp_path: Path) -> None:
    report.report("One", ["python one.py"], "", True, {"loop": "0.99", "step": "1 µs"})
    report.report("Two", ["python two.py"], "", True, {"step": "2 µs: a reason", "epoch": None})
    page = (tmp_path / "benchmarks.md").read_text()
    head, *rows = table_rows(page.split(report.END)[0], "| ")
    assert head == ["Metric", "Target", "Measured"]
    assert [row[1] for row in rows[1:]] == [target for _, target in report.TARGETS.values()]
    assert [row[2] for row in rows[1:]] == ["0.99", "2 µs: a reason", *["not measured"] * (len(rows) - 3)]


def test_the_recorded_page_matches_the_scripts() -> None:
    page = (Path(report.__file__).parents[1] / "docs/benchmarks.md").read_text(encoding="utf-8")
    introduction, end = report.HEAD.split(report.START)[0], report.HEAD.split(report.END)[1]
    assert page.startswith(introduction + report.START) and end in page
    rows = table_rows(page.split(report.END)[0], "| ")[2:]
    assert [tuple(row[:2]) for row in rows] == list(report.TARGETS.values())


def test_recipes_with_a_target_exist() -> None:
    configs = Path(report.__file__).parents[1] / "configs"
    files = [name for name in report.TARGETS if name.endswith(".yaml")]
    assert len(files) == 3 and all((configs / name).is_file() for name in files)


def test_a_missed_target_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    seconds = {epoch.CONVENTIONAL: 60.0, epoch.EAGER: 50.0, epoch.COMPILED: 48.0}
    missed = epoch.target_figures(seconds, 0.7)
    assert missed["epoch"] == "1.20" and re.match(r"1.25: 70% of .* convolutions", missed["compiled"])
    assert epoch.target_figures(seconds | {epoch.COMPILED: 40.0}, 0.7)["compiled"] == "1.50"


def test_fit_and_the_plain_loop_train_the_same_weights(tmp_path: Path) -> None:
    data = "--data benchmarks.steps.Noise --data.count 40 --data.image_size 16 --data.batch_size 8 --data.augment true"
    model = "--model.backbone cifar_resnet --model.backbone.depth 8 --model.schedule.shape constant --trainer.devices 1"
    states = []
    for variant in ("loop", "fit"):
        with hidden_terminal():
            cli = build_fit(str(tmp_path / variant), *data.split(), *model.split(), "--trainer.accelerator", "cpu")
            if variant == "fit":
                run_fit(cli, Stopwatch(1, 4))
            else:
                setup_without_trainer(cli)
                run_plain_loop(cli.model, cli.datamodule, Stopwatch(1, 4))
        states.append(cli.model.backbone.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert int(states[0]["bn1.num_batches_tracked"]) == 5


@pytest.mark.slow
def test_accuracy_over_seeds_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = str(Path(accuracy.__file__).parents[1] / "configs" / "digits.yaml")
    line = ["--config", digits, "--state", str(tmp_path / "state.json"), "--trainer.max_steps", "2", "--tta", "flip"]
    accuracy.main([*line, "--seeds", "1"])
    measure, measured_seeds = accuracy.measure, []

    def record(*args: Any, **kwargs: Any) -> list[float]:
        measured_seeds.append(kwargs["seed"])
        return measure(*args, **kwargs)

    monkeypatch.setattr(accuracy, "measure", record)
    accuracy.main([*line, "--seeds", "2"])
    assert measured_seeds == [1], "a seed is measured twice"
    out = capsys.readouterr().out
    (*seeds, mean) = [row for row in table_rows(out, "|") if len(row) == 3][-3:]
    top1 = [float(row[1].rstrip("%")) for row in seeds]
    assert [row[0] for row in (*seeds, mean)] == ["0", "1", "mean"] and top1[0] != top1[1]
    assert float(mean[1].split("%")[0]) == pytest.approx(sum(top1) / 2, abs=0.01)


@pytest.mark.parametrize(
    ("extra", "figure"), [(0.01, "0.909 (0.909 to 0.909): the overhead of 10,000 µs"), (0.001, "0.990")]
)
def test_a_slow_loop_has_a_reason(monkeypatch: pytest.MonkeyPatch, extra: float, figure: str) -> None:
    measured: dict[str, str] = {}
    monkeypatch.setattr(
        overhead, "run_in_subprocess", lambda script, one: 0.1 + extra * (one["variant"] == overhead.FULL)
    )
    monkeypatch.setattr(overhead, "step_seconds", lambda *args: 0.0)
    monkeypatch.setattr(overhead, "time_by_file", lambda *args: [])
    monkeypatch.setattr(overhead.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(overhead, "report", lambda *args: measured.update(args[-1]))
    overhead.main(["--rounds", "1"])
    assert measured["loop"].startswith(figure) and ("cold CPU caches" in measured["loop"]) == (extra > 0.002)


@pytest.mark.slow
def test_overhead(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "run_in_subprocess", lambda script, one: overhead.step_seconds(**one))
    overhead.main(["--models", str(list(overhead.MODELS).index(overhead.LINEAR)), "--rounds", "1", "--steps", "10"])
    out = capsys.readouterr().out
    rows = table_rows(out, "| a linear layer")
    assert [row[1] for row in rows] == [overhead.LOOP, overhead.OFF, overhead.FULL, overhead.TYPICAL]
    base = float(rows[0][2])
    for row in rows[1:]:
        # Which variant is faster depends on the machine.
        assert float(row[3].split()[0]) == pytest.approx(base / float(row[2]), abs=0.005)
        assert float(row[4].replace(",", "")) == pytest.approx((float(row[2]) - base) * 1e3, abs=1.1)
    assert "lightning/pytorch" in out


@pytest.mark.slow
def test_epoch(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epoch, "BATCH", 8)
    monkeypatch.setattr(epoch, "cifar_resnet", lambda depth: cifar_resnet(8))
    monkeypatch.setattr(epoch, "run_in_subprocess", lambda script, one: epoch.measure(**one))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    line = ["--images", "40", "--steps", "3", "--rounds", "1", "--workers", "0"]
    epoch.main([*line, "--model.backbone.depth", "8", "--data.batch_size", "8"])
    out = capsys.readouterr().out
    rows = [row for row in table_rows(out, "|") if len(row) == 5][2:]
    fits = [epoch.EAGER, epoch.COMPILED, epoch.HALF]
    assert [row[0] for row in rows if row[0] != epoch.TIMM] == [epoch.CONVENTIONAL, epoch.V2, *fits]
    assert rows[0][3] == "1.00"
    assert "An epoch is 5 steps" in out and "Compilation takes" in out
    percent = int(re.search(r"(\d+)% of an eager step's operator time is in convolutions", out)[1])
    assert 1 < percent < 99


def test_the_scripts_train_on_the_images_of_fit(tmp_path: Path) -> None:
    epoch.write_noise(tmp_path, 5300)
    with hidden_terminal():
        cli = epoch.build_epoch(str(tmp_path), str(tmp_path))
    cli.datamodule.setup("fit")
    dataset = epoch.cifar(str(tmp_path), None)
    image, label = dataset[7]
    split = cli.datamodule.splits["train"]
    assert len(dataset) == 300
    assert torch.equal(torch.from_numpy(np.array(image)).permute(2, 0, 1), split.images[7])
    assert label == int(split.labels[7])


@pytest.mark.slow
def test_streaming(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("litdata")
    from benchmarks import streaming

    monkeypatch.setattr(streaming, "run_in_subprocess", lambda script, one: streaming.images_per_second(**one))
    streaming.main(["--count", "20", "--rounds", "1"])
    rows = [row for row in table_rows(capsys.readouterr().out, "| `") if len(row) == 3]
    assert [row[0] for row in rows] == [streaming.FOLDER, streaming.CHUNKS, streaming.CACHED]
    assert rows[0][2] == "1.00" and all(float(row[1].replace(",", "")) > 0 for row in rows)


@pytest.mark.slow
def test_loader(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, photo_folder: Path) -> None:
    monkeypatch.setattr(loader, "run_in_subprocess", lambda script, one: loader.images_per_second(**one))
    loader.main(["--root", str(photo_folder), "--rounds", "1"])
    out = capsys.readouterr().out
    rows = [row for row in table_rows(out, "| ") if len(row) == 2][2:]
    expected = [
        loader.PIL,
        loader.IO,
        loader.OURS,
        loader.FULL,
        loader.FLOAT,
        loader.CACHED,
        loader.REDUCED,
        loader.DECODING,
    ]
    assert [row[0] for row in rows if row[0] != loader.TIMM] == expected
    assert rows[0][1].endswith("(1.00)") and "loader.py --root FOLDER --rounds 1" in out


def test_scaled_decoding(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(config: str, seed: int, tta: str, extra: list[str]) -> list[float]:
        return [0.5 + 0.01 * seed + 0.02 * (extra[-1] == "true"), 1.0]

    monkeypatch.setattr(scaled_decoding, "measure", measure)
    scaled_decoding.main(["--seeds", "2"])
    rows = [row for row in table_rows(capsys.readouterr().out, "| ") if len(row) == 4][2:]
    assert rows == [
        ["0", "50.00%", "52.00%", "+2.00"],
        ["1", "51.00%", "53.00%", "+2.00"],
        ["mean", "", "", "+2.00 ± 0.00"],
    ]


def test_predictions_of_doctor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(script: str, one: dict[str, Any]) -> dict[str, float]:
        calls.append(one["seconds"])
        return {"seconds": 20 if one["seconds"] else 25, "memory": 1.0, "speed": 1500}

    calls: list[float | None] = []
    monkeypatch.setattr(doctor, "run_in_subprocess", measure)
    for _ in range(2):
        doctor.main(["--only", "digits", "--flowers", "/my/photos", "--state", str(tmp_path / "state.json")])
    text = capsys.readouterr().out
    cells = [
        "20 predicted, 25 measured (0.80)",
        "1.0 predicted, 1.0 measured (1.00)",
        "1,500 predicted, 1,500 measured",
    ]
    assert all(cell in text for cell in cells) and "--flowers data/flower_photos" in text
    assert calls == [30, None], "a measurement is repeated"


@pytest.mark.slow
def test_doctor_and_the_run_are_measured(tmp_path: Path) -> None:
    predicted, measured = (doctor.one("digits", {}, seconds) for seconds in (2, None))
    assert all(predicted[name] > 0 and measured[name] > 0 for name in doctor.FORMATS)


@pytest.mark.process
def test_startup(capsys: pytest.CaptureFixture[str]) -> None:
    startup.main(["--rounds", "1", "--rows", "0", "1", "2"])
    rows = table_rows(capsys.readouterr().out, "`")
    assert [row[0] for row in rows if len(row) == 4] == ["`--help`", "`fit --config no.yaml`, which is rejected"]


def test_processes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        processes, "images_per_second", lambda count, images, epochs: images * epochs * (1 + 0.7 * (count - 1))
    )
    processes.main(["--images", "100", "--epochs", "2", "--rounds", "1"])
    text = capsys.readouterr().out
    assert table_rows(text, "| 2 |") == [["2", "340", "1.70"]] and "python benchmarks/processes.py --images 100" in text


@pytest.mark.slow
@pytest.mark.process
def test_two_processes_train() -> None:
    assert processes.images_per_second(2, 256, 2) > 0


@pytest.mark.slow
def test_growth(capsys: pytest.CaptureFixture[str]) -> None:
    growth.main(["--batches", "--sizes", "--images", "128", "--rounds", "1"])
    rows = [row for row in table_rows(capsys.readouterr().out, "|") if row[0] in ("128", "256", "512")]
    assert [row[0] for row in rows] == ["128", "256", "512"] and rows[0][2] == "1.00"


@pytest.mark.slow
def test_latency(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(latency.models, "cifar_resnet", lambda num_classes: cifar_resnet(8, num_classes))
    monkeypatch.setattr(latency, "BATCHES", (1, 3))
    latency.main(["--backbone", "cifar_resnet", "--size", "16", "--calls", "2", "--rounds", "1"])
    rows = [row for row in table_rows(capsys.readouterr().out, "|") if row[0] in ("1", "3")]
    names = [latency.EAGER, latency.COMPILED, latency.ONNX, latency.INT8]
    assert [row[1] for row in rows] == [*names, *names]
    for row in rows:
        assert 0 <= float(row[2]) <= float(row[3]) and float(row[4]) >= 0
    assert [row[4] for row in rows if row[1] == latency.EAGER] == ["1.00", "1.00"]


def test_growth_is_relative_to_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(script: str, one: dict[str, int]) -> dict[str, float]:
        pixels = one["batch"] * one["size"] ** 2
        return {"seconds": pixels / 1000, "peak": pixels**2}

    monkeypatch.setattr(growth, "run_in_subprocess", measure)
    rows = table_rows(growth.scaling_table("any", [(2, 8), (4, 16)], 1), "|")
    assert [row[4:] for row in rows[2:]] == [["1.00", "1.00"], ["1.00", "8.00"]]


def test_one_measurement_of_growth(capsys: pytest.CaptureFixture[str]) -> None:
    growth.main(["--one", json.dumps({"name": "cifar_resnet", "depth": 8, "batch": 2, "size": 16})])
    result = json.loads(capsys.readouterr().out)
    assert result["seconds"] > 0 and result["peak"] >= 0


@pytest.mark.slow
def test_depth(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(depth, "run_in_subprocess", lambda script, one: depth.train_steps(**one))
    depth.main(["--depths", "8", "--batch", "2"])
    rows = table_rows(capsys.readouterr().out, "| 8 |")
    assert [row[1] for row in rows] == ["stored", "checkpointed"]


@pytest.mark.process
def test_no_commit_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: object, **kwargs: object) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(report.subprocess, "run", missing)
    assert report.git_commit() is None


def test_a_measurement_in_its_own_process(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("import sys; assert sys.argv[1] == '--one'; print(sys.argv[2])")
    assert report.run_in_subprocess(str(tmp_path / "one.py"), {"size": [1, 2]}) == {"size": [1, 2]}


def small_model() -> nn.Module:
    return LinearModel()


@pytest.mark.slow
def test_gpu_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(gpu.models, "cifar_resnet", small_model)
    words = "--models cifar_resnet --precisions TF32 --size 8 --batch 4 --steps 2 --rounds 1 --side 16"
    line = [*words.split(), "--state", str(tmp_path / "state.json")]
    gpu.main(line)
    out = capsys.readouterr().out
    assert [row[2] for row in table_rows(out, "8 px, batch 4")] == gpu.VARIANTS
    assert table_rows(out, gpu.LOOP_COMPILED)[0][5] == "1.000"
    monkeypatch.setattr(gpu, "measure", lambda *args: pytest.fail("measured again"))
    gpu.main(line)
    assert capsys.readouterr().out.split("## GPU")[1] == out.split("## GPU")[1]


@pytest.mark.slow
def test_training_on_a_subset_of_photos(tmp_path: Path, photo_folder: Path) -> None:
    line = ["--root", str(photo_folder), "--train", "12", "--val", "6", "--test", "9", "--epochs", "1", "--record"]
    only = ["AdamW, lr 0.001", "SGD, lr 0.05"]
    small = ["--data.image_size=32", "--dashboard.images=0", "--dashboard.graph=false", "--data.batch_size=6"]
    small_data.main([*line, "--seeds", "2", "--only", *only, *small])
    page = (tmp_path / "benchmarks.md").read_text()
    assert "## Training from scratch on 12 photos of photos, 1 epochs" in page
    assert [(row[0], row[2]) for row in table_rows(page, "% ±")] == [(name, "2") for name in only]


def test_a_subset_has_other_images_in_each_split(tmp_path: Path, photo_folder: Path) -> None:
    sizes = {"train": 12, "val": 6, "test": 9}
    for name in ("one", "two"):
        small_data.write_subset(photo_folder, tmp_path / name, sizes)
    files = {split: sorted((tmp_path / "one" / split).rglob("*.jpg")) for split in sizes}
    assert {split: len(found) for split, found in files.items()} == sizes
    used = [f"{path.parent.name}/{path.name}" for found in files.values() for path in found]
    assert len(set(used)) == len(used)
    again = sorted(path.relative_to(tmp_path / "two") for path in (tmp_path / "two").rglob("*.jpg"))
    assert again == sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.jpg"))


@pytest.fixture
def own_names(photo_folder: Path) -> Path:
    """The photos with names that occur once, so that each can be moved into any class."""
    for number, path in enumerate(sorted(photo_folder.rglob("*.jpg"))):
        path.rename(path.with_name(f"{number:04d}-own.jpg"))
    return photo_folder


def test_planted_label_errors(tmp_path: Path, own_names: Path) -> None:
    moved = label_errors.plant(own_names, tmp_path / "one", share=0.1, seed=1, size=12)
    assert moved == label_errors.plant(own_names, tmp_path / "two", share=0.1, seed=1, size=12)
    before, after = ({path.name: path for path in root.rglob("*.jpg")} for root in (own_names, tmp_path / "one"))
    assert before.keys() == after.keys() and len(moved) == 3
    changed = {
        f"{path.parent.name}/{name}" for name, path in after.items() if path.parent.name != before[name].parent.name
    }
    assert changed == moved


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_label_errors_that_are_found(tmp_path: Path, own_names: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cleanlab")
    monkeypatch.setattr(label_errors, "PAGE", tmp_path / "page.md")
    (tmp_path / "page.md").write_text("before\n<!-- label-errors:start -->\nstale\n<!-- label-errors:end -->\nafter\n")
    line = ["--root", str(own_names), "--seeds", "1", "--folds", "2", "--share", "0.1", "--record"]
    label_errors.main([*line, "--trainer.max_epochs", "1", "--model.backbone.depth", "8"])
    page = (tmp_path / "page.md").read_text()
    assert "stale" not in page and page.startswith("before") and page.endswith("after\n")
    rows = table_rows(page, "prediction differs")
    assert len(rows) == 1 and int(rows[0][1]) > 0 and rows[0][4] == "1"


@pytest.mark.slow
def test_calibration_of_a_finished_run(tmp_path: Path) -> None:
    run("fit", *SMALL, "--trainer.max_epochs", "6", "--trainer.limit_train_batches", "1.0")
    stored, results, diagrams = calibration.calibrate(Path("runs/digits/version_0").resolve(), 0.5)
    assert results["temperature"] == stored["temperature"] and diagrams[0].shape == diagrams[1].shape
    best = torch.load("runs/digits/version_0/checkpoints/best.ckpt", weights_only=True)
    assert "calibration" not in best["resnet_pl"]  # a copy is calibrated
    assert "| 360 test, after |" in calibration.describe(stored, results)


def test_recipes_are_compared_by_pairs_of_seeds(tmp_path: Path) -> None:
    def trained(name: str, top1: float, epochs: int = 2) -> Run:
        seconds = {"throughput/epoch_seconds": (np.arange(epochs), np.full(epochs, 10.0))}
        return Run(tmp_path / name / "version_0", {}, {"split": "test", "top1": top1}, [], seconds)

    runs = [trained("seed0-base", 0.5), trained("seed1-base", 0.6), trained("seed2-base", 0.7)]
    runs += [trained("seed0-ema", 0.52), trained("seed1-ema", 0.64), trained("seed0-short", 0.4, epochs=1)]
    runs += [trained("seed3-unpaired", 0.9)]
    assert recipes.rows(runs, "base") == [
        ["`ema`", "+3.00 ± 1.41", "+2.00, +4.00", 2, "58.00%", "2", "× 1.00"],
        ["`short`", "-10.00", "-10.00", 1, "40.00%", "1", "× 0.50"],
    ]


def record_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *argv: str) -> str:
    """Returns the page of recipes after the script has recorded its tables."""
    monkeypatch.setattr(recipes, "PAGE", tmp_path / "page.md")
    (tmp_path / "page.md").write_text("before\n<!-- recipes:start -->\nstale\n<!-- recipes:end -->\nafter\n")
    recipes.main([*argv, "--record"])
    page = (tmp_path / "page.md").read_text()
    assert "stale" not in page and page.startswith("before") and page.endswith("after\n")
    return page


def test_the_page_says_which_recipes_are_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = record_recipes(tmp_path, monkeypatch, "--no-run")
    assert page.count("Not measured yet.") == page.count("### ") == len(recipes.STUDIES)


@pytest.mark.slow
def test_recipes_are_trained_and_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").symlink_to(Path(report.__file__).parents[1] / "configs")
    short = ["--model.backbone.depth", "8", "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "3"]
    study = recipes.Study("Tiny", "tiny", "digits", [("digits", recipes.grid("digits", "ema"), short)])
    monkeypatch.setattr(recipes, "STUDIES", [study])
    monkeypatch.setattr(recipes, "NETS", ["sweep", "--config", "configs/digits.yaml", "--name", "networks"])
    monkeypatch.setattr(recipes, "NETS_OPTIONS", ["--grid", "seed_everything=0", "--", *short])
    page = record_recipes(tmp_path, monkeypatch, "--seeds", "0,1", "--jobs", "2")
    ((name, *_, count, _, epochs, _),) = table_rows(page, "`ema`")
    assert (name, count, epochs) == ("`ema`", "2", "1") and "Not measured" not in page
    start = page.index("### Tiny")
    assert record_recipes(tmp_path, monkeypatch, "--seeds", "0,1", "--jobs", "2")[start:] == page[start:]


def test_every_recipe_is_measured(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(report.__file__).parents[1])
    for study in recipes.STUDIES:
        for words in study.commands("0", "1"):
            assert main([*words[: words.index("--")], "--print", *words[words.index("--") :]]) == 0
    printed = capsys.readouterr().out
    complete = ("cifar10-94-muon", "cifar10-96", "flowers-88")
    overlays = {path.stem for path in Path("configs/recipes").glob("*.yaml")}.difference(complete)
    assert len(overlays) <= 10
    assert overlays == set(re.findall(r"--config configs/recipes/([\w-]+).yaml", printed))
    # A name without a recipe is that of a run.
    assert all(f"--name seed0-{study.without} " in printed for study in recipes.STUDIES)


def test_the_maximum_of_heat_maps_lies_on_the_evidence() -> None:
    """In all of 200 images, with these seeds."""
    model = heatmaps.train(cifar_resnet(8), steps=50, size=32, patch=8)
    images = heatmaps.StripedPatches.make(200, size=32, patch=8, seed=1)
    accuracy, share = heatmaps.localization(model, images)
    assert accuracy > 0.95 and share >= 0.9
