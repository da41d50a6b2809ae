"""The examples of one file each: the commands of their docstrings run on a few photos."""

from __future__ import annotations

import csv
import json
import re
import shlex
from collections.abc import Iterable, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageOps

from resnet_pl import UserError, load_run
from tests.analysis.test_cross_validate import started
from tests.cli.commands import PROJECT, rows, run
from tests.conftest import write_photos

__all__ = ["started"]  # a fixture
SMALL = shlex.split(
    "--trainer.max_epochs 1 --dashboard false --model.backbone cifar_resnet --model.backbone.depth 8"
    " --model.weights null --data.image_size 16 --data.num_workers 0"
)

FEW = ["--trainer.max_epochs", "3", "--trainer.limit_train_batches", "6"]


def commands(example: str) -> list[list[str]]:
    """Returns the commands in the docstring or the comment of an example, without `python`."""
    text = (PROJECT / "examples" / example).read_text(encoding="utf-8").replace("\\\\\n", "")
    lines = re.findall(r"^(?:#  |   ) python (.*)$", text, re.MULTILINE)
    assert lines
    return [shlex.split(line) for line in lines]


def run_cli(words: Sequence[str], *more: str) -> None:
    """Runs a command of an example in this process, with further options."""
    assert words[0] == "cli.py"
    paths = [str(PROJECT / word) if word.startswith(("configs/", "examples/")) else word for word in words[1:]]
    run(*paths, *more)


def write(path: str, header: Sequence[str], lines: Iterable[Sequence[Any]]) -> None:
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *lines])


def read(path: str | Path) -> list[dict[str, str]]:
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------------------------ csv_dataset.py
SPECIES = {"ant": "Lasius niger", "bee": "Apis mellifera", "cat": "Felis catus"}


def test_the_class_is_the_genus_and_the_newest_photos_are_the_test_set() -> None:
    photos = sorted(write_photos(Path("my/photos")).glob("*/*.jpg"))
    first = date(2023, 12, 25)
    days = [first + timedelta(days=int(path.stem)) for path in photos]
    lines = [(path.relative_to("my"), SPECIES[path.parent.name], day) for path, day in zip(photos, days, strict=True)]
    write("my/observations.csv", ["path", "species", "observed_on"], lines)
    fit, test = commands("csv_dataset.py")
    run_cli(fit, *SMALL, "--data.val_split", "6")
    run_cli(test)
    folder = Path("runs/observations/version_0")
    splits = json.loads((folder / "splits.json").read_text())["splits"]
    assert sorted(splits["test"]) == [str(path) for path, _, day in lines if day >= date(2024, 1, 1)]
    assert (len(splits["train"]), len(splits["val"]), len(splits["test"])) == (15, 6, 9)
    results = json.loads((folder / "results.json").read_text())
    assert {name: row["images"] for name, row in results["per_class"].items()} == {"Apis": 3, "Felis": 3, "Lasius": 3}


@pytest.mark.parametrize(
    ("header", "line", "problem"),
    [
        (["path", "species", "date"], ["1.jpg", "Apis mellifera", "2023-05-01"], "row 2: 'observed_on'"),
        (["path", "species", "observed_on"], ["1.jpg", "Apis mellifera", "1.5.2023"], "row 2: Invalid isoformat"),
        (["path", "species", "observed_on"], ["1.jpg", "", "2023-05-01"], "row 2: list index"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(header: list[str], line: list[str], problem: str) -> None:
    from examples.csv_dataset import Observations

    write("observations.csv", header, [line])
    with pytest.raises(UserError, match=problem):
        Observations("observations.csv").setup("fit")
    with pytest.raises(UserError, match=r"other\.csv not found"):
        Observations("other.csv").setup("fit")


# ------------------------------------------------------------------------------------ own_metric.py
def test_the_metric_is_exact_and_chooses_the_best_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    fit, test = commands("own_metric.py")
    run_cli(fit, *shlex.split("--model.backbone.depth 8 --model.optimizer.lr 0.02 --dashboard false"), *FEW)
    run_cli(test)
    folder = Path("runs/cost/version_0")
    costs = [float(row["val/cost"]) for row in rows(folder) if row["val/cost"]]
    last_best = max(epoch for epoch, cost in enumerate(costs) if cost == min(costs))
    assert torch.load(folder / "checkpoints/best.ckpt", weights_only=True)["epoch"] == last_best
    assert len({*costs}) > 1
    assert f"Best val/cost: {min(costs):.4f}" in capsys.readouterr().out
    model, data = load_run(folder)
    images = data.split("test")
    with torch.no_grad():
        wrong = images.labels[model(images.images).argmax(1) != images.labels]
    expected = float(torch.where(wrong == 7, 10, 1).sum()) / len(images)
    assert json.loads((folder / "results.json").read_text())["metrics"]["cost"] == pytest.approx(expected)


def test_the_number_of_costs_is_checked_and_all_are_1_by_default() -> None:
    from examples.own_metric import MeanCost

    with pytest.raises(ValueError, match="2 costs for 3 classes"):
        MeanCost(3, [1, 2])
    metric = MeanCost(3)
    metric.update(torch.eye(3), torch.tensor([0, 2, 2]))
    metric.update(torch.eye(3)[:1], torch.tensor([1]))
    assert float(metric.compute()) == 0.5


# ------------------------------------------------------------------------------------ multi_label.yaml
def test_photos_with_several_labels_or_none() -> None:
    photos = sorted(write_photos(Path("my/photos"), ["ant", "bee"], count=16).glob("*/*.jpg"))
    write_photos(Path("new/photos"), ["other"], count=2)
    labels = [["ant"] * (path.parent.name == "ant") + ["dark"] * (int(path.stem) >= 8) for path in photos]
    lines = [(path.relative_to("my"), ";".join(own)) for path, own in zip(photos, labels, strict=True)]
    write("my/labels.csv", ["path", "labels"], lines)
    fit, test, predict = commands("multi_label.yaml")
    run_cli(fit, *SMALL)
    run_cli(test)
    run_cli(predict)
    folder = Path("runs/multi-label/version_0")
    best = torch.load(folder / "checkpoints/best.ckpt", weights_only=True)["resnet_pl"]
    results = json.loads((folder / "results.json").read_text())
    assert [*results["per_class"]] == ["ant", "dark"] and 0 < results["map"] <= 1
    thresholds = dict(zip(["ant", "dark"], best["thresholds"], strict=True))
    predictions = read(folder / "predictions.csv")
    assert len(predictions) == 2
    for row in predictions:
        scores = {row["class_1"]: float(row["probability_1"]), row["class_2"]: float(row["probability_2"])}
        assert row["prediction"] == "|".join(name for name in ("ant", "dark") if scores[name] >= thresholds[name])


# ------------------------------------------------------------------------------------ competition.py
def test_a_submission_like_the_sample(started: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    from examples import competition

    photos = sorted(write_photos(Path("my/train")).glob("*/*.jpg"))
    write("my/train.csv", ["image", "label"], [(path.relative_to("my/train"), path.parent.name) for path in photos])
    ids = [path.stem for path in sorted(write_photos(Path("my/made"), ["ant"], count=3, first=50).glob("*/*"))][::-1]
    (Path("my/made/ant")).rename("my/test")
    write("my/sample_submission.csv", ["image", "cat", "bee", "ant"], [[name, 0, 0, 0] for name in ids])
    write("my/classes.csv", ["image", "kind"], [[f"{name}.jpg", "cat"] for name in ids])
    folds, predict, write_submission = commands("competition.py")
    run_cli([*folds[:2], "--folds", "2", *folds[2:]], *SMALL)
    names = [str(path) for path in sorted(Path().glob("runs/folds/fold*/version_0"))]  # as a shell expands it
    run_cli([each for word in predict for each in (names if "*" in word else [word])])
    assert len(started) == len(names) == 2 and write_submission[:2] == ["-m", "examples.competition"]
    competition.main(write_submission[2:])
    submitted = read("my/submission.csv")
    assert [row["image"] for row in submitted] == ids and [*submitted[0]] == ["image", "cat", "bee", "ant"]
    images = [Image.open(f"my/test/{name}.jpg") for name in ids]
    models, views = [load_run(name)[0] for name in names], [images, [ImageOps.mirror(image) for image in images]]
    single = [[each.probabilities for each in model.predict(view)] for model in models for view in views]
    for row, *scores in zip(submitted, *single, strict=True):
        expected = torch.stack(scores).mean(0).tolist()
        assert [float(row[name]) for name in ("ant", "bee", "cat")] == pytest.approx(expected, abs=0.01)

    competition.main(["my/predictions.csv", "my/classes.csv", "my/classes_out.csv"])
    best = [max(("ant", "bee", "cat"), key=lambda name: float(row[name])) for row in submitted]
    assert [(row["image"], row["kind"]) for row in read("my/classes_out.csv")] == [
        (f"{name}.jpg", kind) for name, kind in zip(ids, best, strict=True)
    ]


def test_a_submission_that_cannot_be_written_is_refused() -> None:
    from examples import competition

    head = ["path", "truth", "prediction", "probability", "class_2", "probability_2"]
    rows = {"a/1.jpg": ["", "cat", 0.6, "bee", 0.3], "b/1.jpg": ["", "cat", 0.6, "bee", 0.3]}
    write("two.csv", head, [[path, *row] for path, row in rows.items()])
    write("one.csv", head, [["a/1.jpg", *rows["a/1.jpg"]]])
    for name, columns, image in [("classes", ["cat", "ant"], "1"), ("images", ["label"], "2")]:
        write(f"{name}.csv", ["id", *columns], [[image, *columns]])
    for predictions, sample, message in [
        ("two.csv", "images.csv", "same id, such as b/1.jpg"),
        ("one.csv", "images.csv", "no image 2"),
        ("one.csv", "classes.csv", "no probability of ant: use `predict --top_k 1000`"),
    ]:
        with pytest.raises(SystemExit, match=message):
            competition.main([predictions, sample, "out.csv"])
    assert not Path("out.csv").exists()


# ------------------------------------------------------------------------------------ README.md
def lines_of(path: Path) -> int:
    """Returns the number of lines of an example; of a notebook, those of its code that are not empty."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        code = ["".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
        return sum(line.strip() != "" for line in "\n".join(code).splitlines())
    return len(text.splitlines())


def test_the_table_lists_every_example_and_its_lines() -> None:
    folder = PROJECT / "examples"
    table = (folder / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| (\[.*?) \| .* \| ([\d+ to]+) \|$", table, re.MULTILINE)
    names = [re.findall(r"\]\(([^)]*)\)", links) for links, _ in listed]
    files = {path.name for path in folder.iterdir() if path.suffix in (".py", ".yaml", ".ipynb")}
    assert {name for group in names for name in group} == files | {"cluster"}
    for group, (_, lines) in zip(names, listed, strict=True):
        if group == ["cluster"]:
            counts = [lines_of(path) for path in (folder / "cluster").iterdir() if path.is_file()]
            assert lines == f"{min(counts)} to {max(counts)}"
        else:
            assert lines == " + ".join(str(lines_of(folder / name)) for name in group), group
