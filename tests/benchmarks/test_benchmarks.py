"""Every benchmark runs at a tiny size, its sides do the same work, and its table gets to the page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import accuracy, epoch, gpu, growth, loader, overhead, report, startup
from benchmarks.steps import Nothing, Stopwatch, bare, build, fit, ready, unseen_terminal
from resnet_pl.models import cifar_resnet


@pytest.fixture(autouse=True)
def own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs go elsewhere, and what compiles takes no minute."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "PAGE", tmp_path / "benchmarks.md")
    monkeypatch.setattr(report, "README", tmp_path / "README.md")
    (tmp_path / "README.md").write_text(f"before\n{report.START}{report.END}after\n")
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda call, **kwargs: compile_(call, **kwargs | {"backend": "eager"}))


def lines(text: str, start: str) -> list[list[str]]:
    """Cells of the table lines that start so."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if start in line]


def test_sides_take_turns() -> None:
    order: list[str] = []
    sides = {name: (lambda name=name: order.append(name) or len(order)) for name in "ab"}
    assert report.take_turns(sides, 3) == {"a": [1, 4, 5], "b": [2, 3, 6]}
    assert "".join(order) == "abbaab"


def test_a_section_replaces_its_elder(tmp_path: Path) -> None:
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


def test_targets_are_told_on_both_pages(tmp_path: Path) -> None:
    report.report("One", ["python one.py"], "", True, {"loop": "0.99", "step": "1 µs"})
    report.report("Two", ["python two.py"], "", True, {"step": "2 µs: as it is", "epoch": None})
    page, readme = ((tmp_path / name).read_text() for name in ("benchmarks.md", "README.md"))
    rows = lines(page.split(report.END)[0], "| ")[2:]
    assert [row[1] for row in rows] == [target for _, target in report.TARGETS.values()]
    assert [row[2] for row in rows] == ["0.99", "2 µs: as it is", *["not measured"] * (len(rows) - 2)]
    assert [row[2] for row in lines(readme, "| ")[2:]] == ["0.99", "2 µs: as it is"]
    assert readme.startswith("before\n") and readme.endswith("after\n")


def test_recipes_that_have_a_target_are_there() -> None:
    configs = Path(report.__file__).parents[1] / "configs"
    files = [name for name in report.TARGETS if name.endswith(".yaml")]
    assert len(files) == 3 and all((configs / name).is_file() for name in files)


def test_a_missed_target_has_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    seconds = {epoch.CLASSICAL: 60.0, epoch.EAGER: 50.0, epoch.COMPILED: 48.0}
    missed = epoch.reached(seconds, 0.7)
    assert missed["epoch"] == "1.20" and re.match(r"1.25: 70% of .* convolutions", missed["compiled"])
    assert epoch.reached(seconds | {epoch.COMPILED: 40.0}, 0.7)["compiled"] == "1.50"


def test_fit_and_the_bare_loop_learn_the_same(tmp_path: Path) -> None:
    data = "--data benchmarks.steps.Noise --data.count 40 --data.image_size 16 --data.batch_size 8 --data.augment true"
    net = "--model.backbone cifar_resnet --model.backbone.depth 8 --model.schedule.shape constant --trainer.devices 1"
    states = []
    for side in ("bare", "fit"):
        with unseen_terminal():
            built = build(str(tmp_path / side), *data.split(), *net.split(), "--trainer.accelerator", "cpu")
            if side == "fit":
                fit(built, Stopwatch(1, 4))
            else:
                ready(built)
                bare(built.model, built.datamodule, Stopwatch(1, 4))
        states.append(built.model.backbone.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert int(states[0]["bn1.num_batches_tracked"]) == 5


def test_accuracy_over_seeds_and_going_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = str(Path(accuracy.__file__).parents[1] / "configs" / "digits.yaml")
    line = ["--config", digits, "--state", str(tmp_path / "kept.json"), "--trainer.max_steps", "2", "--tta", "flip"]
    accuracy.main([*line, "--seeds", "1"])
    measured, seeds = accuracy.measure, []
    monkeypatch.setattr(accuracy, "measure", lambda *args, **kw: seeds.append(kw["seed"]) or measured(*args, **kw))
    accuracy.main([*line, "--seeds", "2"])
    assert seeds == [1], "a seed is measured twice"
    out = capsys.readouterr().out
    (*seeds, mean) = [row for row in lines(out, "|") if len(row) == 3][-3:]
    top1 = [float(row[1].rstrip("%")) for row in seeds]
    assert [row[0] for row in (*seeds, mean)] == ["0", "1", "mean"] and top1[0] != top1[1]
    assert float(mean[1].split("%")[0]) == pytest.approx(sum(top1) / 2, abs=0.01)


@pytest.mark.parametrize(("extra", "told"), [(0.01, "0.909 (0.909 to 0.909): what costs 10,000 µs"), (0.001, "0.990")])
def test_a_slow_loop_has_its_reason_beside_it(monkeypatch: pytest.MonkeyPatch, extra: float, told: str) -> None:
    reached: dict[str, str] = {}
    monkeypatch.setattr(overhead, "alone", lambda script, one: 0.1 + extra * (one["side"] == overhead.FULL))
    monkeypatch.setattr(overhead, "step", lambda *args: 0.0)
    monkeypatch.setattr(overhead, "places", lambda *args: [])
    monkeypatch.setattr(overhead.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(overhead, "report", lambda *args: reached.update(args[-1]))
    overhead.main(["--rounds", "1"])
    assert reached["loop"].startswith(told) and ("empties the caches" in reached["loop"]) == (extra > 0.002)


def test_overhead(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "alone", lambda script, one: overhead.step(**one))
    overhead.main(["--nets", str(list(overhead.NETS).index(overhead.LINEAR)), "--rounds", "1", "--steps", "10"])
    told = capsys.readouterr().out
    rows = lines(told, "a linear layer")
    assert [row[1] for row in rows] == [overhead.BARE, overhead.OFF, overhead.FULL, overhead.PLAIN]
    base = float(rows[0][2])
    for row in rows[1:]:
        # Not which is faster: that is for the machine to say.
        assert float(row[3].split()[0]) == pytest.approx(base / float(row[2]), abs=0.005)
        assert float(row[4].replace(",", "")) == pytest.approx((float(row[2]) - base) * 1e3, abs=1.1)
    assert "lightning/pytorch" in told


def test_epoch(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epoch, "BATCH", 8)
    monkeypatch.setattr(epoch, "cifar_resnet", lambda depth: cifar_resnet(8))
    monkeypatch.setattr(epoch, "alone", lambda script, one: epoch.measured(**one))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    line = ["--images", "40", "--steps", "3", "--rounds", "1", "--workers", "0"]
    epoch.main([*line, "--model.backbone.depth", "8", "--data.batch_size", "8"])
    told = capsys.readouterr().out
    rows = [row for row in lines(told, "|") if len(row) == 5][2:]
    fits = [epoch.EAGER, epoch.COMPILED, epoch.HALF]
    assert [row[0] for row in rows if row[0] != epoch.TIMM] == [epoch.CLASSICAL, epoch.V2, *fits]
    assert rows[0][3] == "1.00"
    assert "an epoch is 5 steps" in told and "Compiling costs" in told.replace("\n", " ")
    share = int(re.search(r"operations (\d+)% are convolutions", told.replace("\n", " "))[1])
    assert 1 < share < 99


def test_the_scripts_see_the_images_of_fit(tmp_path: Path) -> None:
    epoch.write_noise(tmp_path, 5300)
    with unseen_terminal():
        built = epoch.built(str(tmp_path), str(tmp_path))
    built.datamodule.setup("fit")
    dataset = epoch.cifar(str(tmp_path), None)
    image, label = dataset[7]
    split = built.datamodule.splits["train"]
    assert len(dataset) == 300
    assert torch.equal(torch.tensor(image.getdata()).reshape(32, 32, 3).permute(2, 0, 1), split.images[7].long())
    assert label == int(split.labels[7])


def test_loader(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, photo_folder: Path) -> None:
    monkeypatch.setattr(loader, "alone", lambda script, one: loader.measured(**one))
    loader.main(["--root", str(photo_folder), "--rounds", "1"])
    told = capsys.readouterr().out
    rows = [row for row in lines(told, "| ") if len(row) == 3][2:]
    wanted = [loader.PIL, loader.IO, loader.OURS, loader.FLOAT, loader.CACHED, loader.REDUCED, loader.ALONE]
    assert [row[0] for row in rows if row[0] != loader.TIMM] == wanted
    assert rows[0][2] == "1.00" and "loader.py --root FOLDER --rounds 1" in told


@pytest.mark.process
def test_startup(capsys: pytest.CaptureFixture[str]) -> None:
    startup.main(["--rounds", "1", "--sides", "0", "1", "2"])
    rows = lines(capsys.readouterr().out, "`")
    assert [row[0] for row in rows if len(row) == 4] == ["`--help`", "`fit --config no.yaml`, refused"]


def test_growth(capsys: pytest.CaptureFixture[str]) -> None:
    growth.main(["--batches", "--sizes", "--images", "128", "--rounds", "1"])
    rows = [row for row in lines(capsys.readouterr().out, "|") if row[0] in ("128", "256", "512")]
    assert [row[0] for row in rows] == ["128", "256", "512"] and rows[0][2] == "1.00"


def test_growth_is_told_over_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    def alone(script: str, one: dict[str, int]) -> dict[str, float]:
        pixels = one["batch"] * one["size"] ** 2
        return {"seconds": pixels / 1000, "peak": pixels**2}

    monkeypatch.setattr(growth, "alone", alone)
    rows = lines(growth.grown("any", [(2, 8), (4, 16)], 1), "|")
    assert [row[4:] for row in rows[2:]] == [["1.00", "1.00"], ["1.00", "8.00"]]


def test_one_measurement_of_growth(capsys: pytest.CaptureFixture[str]) -> None:
    growth.main(["--one", json.dumps({"name": "cifar_resnet", "depth": 8, "batch": 2, "size": 16})])
    found = json.loads(capsys.readouterr().out)
    assert found["seconds"] > 0 and found["peak"] >= 0


@pytest.mark.process
def test_nothing_is_said_of_a_commit_where_there_is_no_git(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: object, **kwargs: object) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(report.subprocess, "run", missing)
    assert report.commit() is None


def test_a_measurement_in_a_process_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("import sys; assert sys.argv[1] == '--one'; print(sys.argv[2])")
    assert report.alone(str(tmp_path / "one.py"), {"size": [1, 2]}) == {"size": [1, 2]}


def small() -> nn.Module:
    return Nothing()


def test_gpu_and_going_on(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(gpu.models, "cifar_resnet", small)
    words = "--nets cifar_resnet --precisions TF32 --size 8 --batch 4 --steps 2 --rounds 1 --side 16"
    line = [*words.split(), "--state", str(tmp_path / "kept.json")]
    gpu.main(line)
    told = capsys.readouterr().out
    assert [row[2] for row in lines(told, "8 px, batch 4")] == gpu.WAYS
    assert lines(told, gpu.BARE)[0][5] == "1.000"
    monkeypatch.setattr(gpu, "measure", lambda *args: pytest.fail("measured again"))
    gpu.main(line)
    assert capsys.readouterr().out.split("## GPU")[1] == told.split("## GPU")[1]
