"""`report`: the page, its tables and the model card; label errors; data and modules of other kinds."""

from __future__ import annotations

import csv
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from resnet_pl.evaluation.metrics import wilson_interval
from resnet_pl.models import cifar_resnet
from resnet_pl.reports.results import read_results
from tests.cli.commands import refused, run
from tests.conftest import write_photos

EXPLAIN = ("captum", "cleanlab")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


class Page(HTMLParser):
    """The tags and the texts of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())

    def attributes(self, name: str) -> list[str]:
        return [str(attrs[name]) for _, attrs in self.tags if name in attrs]


def front_matter(card: Path) -> dict[str, Any]:
    return yaml.safe_load(card.read_text(encoding="utf-8").split("---\n")[1])


def test_the_report_agrees_with_the_test_and_is_one_file(copy: Path) -> None:
    for package in EXPLAIN:
        pytest.importorskip(package)
    run("test", "--ckpt_path", "best")
    run("report", "--ckpt_path", "best")
    folder, results = copy / "report", read_results(copy / "results.json")
    metrics = {row["metric"]: row for row in rows(folder / "metrics.csv")}
    for name in ("top1", "f1_macro", "loss", "calibration_error"):
        assert float(metrics[name]["value"]) == results[name], name
    interval = [float(metrics["top1"][limit]) for limit in ("low", "high")]
    assert interval == pytest.approx(wilson_interval(round(360 * results["top1"]), 360))
    assert float(metrics["loss"]["low"]) < results["loss"] < float(metrics["loss"]["high"])
    predictions = rows(folder / "predictions.csv")
    wrong = [row for row in predictions if row["truth"] != row["prediction"]]
    assert len(predictions) == 360 and 1 - len(wrong) / 360 == pytest.approx(results["top1"])
    pairs = rows(folder / "confused_pairs.csv")
    first = [row for row in wrong if (row["truth"], row["prediction"]) == (pairs[0]["truth"], pairs[0]["prediction"])]
    assert int(pairs[0]["images"]) == len(first) and sum(int(row["images"]) for row in pairs) == len(wrong)
    assert [int(row["test"]) for row in rows(folder / "data.csv")] == [
        entry["images"] for entry in results["per_class"].values()
    ]

    page = Page(folder / "index.html")
    # Nothing is requested from anywhere: all images are in the file, all links are to its own sections.
    assert all(uri.startswith("data:image/") for uri in page.attributes("src"))
    assert all(link.startswith(("#", "data:")) for link in page.attributes("href"))
    assert not re.search(r"url\(|@import|<script|https?:", page.source)
    mistakes = sorted((row for row in wrong), key=lambda row: -float(row["probability"]))[:24]
    shown = [text for text in page.texts if text.startswith("predicted: ")]
    assert shown == [f"predicted: {row['prediction']} ({float(row['probability']):.1%})" for row in mistakes]
    assert sum(alt.startswith("heat map for ") for alt in page.attributes("alt")) == len(mistakes)
    assert "Searched: the 540 validation and test images" in page.source
    assert f"{results['top1']:.2%}" in page.texts and "model.optimizer.lr" in page.texts

    assert front_matter(folder / "README.md")["pipeline_tag"] == "image-classification"
    hub = pytest.importorskip("huggingface_hub")
    found = {each.metric_type: each for each in hub.ModelCard.load(folder / "README.md").data.eval_results}
    assert found["accuracy"].metric_value == pytest.approx(results["top1"], abs=1e-6)
    assert (found["f1"].dataset_name, found["f1"].dataset_split) == ("Digits", "test")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a small network for photos whose names of files and classes are markup."""
    root = tmp_path_factory.mktemp("photos")
    write_photos(root / "photos", classes=(ODD, "bee", "cat"), count=12)
    (root / "photos/bee/0003.jpg").rename(root / "photos/bee/<img src=x onerror=alert(1)>.jpg")
    run("fit", *PHOTOS, "--data.root", root / "photos", "--trainer.default_root_dir", root / "runs")
    return root / "runs/resnet/version_0"


ODD = "<b>ant & | *x*"
PHOTOS = [
    *["--model.backbone", "cifar_resnet", "--model.backbone.depth", "8", "--data", "ImageFolder"],
    *["--data.image_size", "16", "--data.num_workers", "0", "--trainer.max_epochs", "1", "--trainer.logger", "false"],
    *["--data.val_split", "9", "--data.test_split", "9", "--dashboard", "false"],
]


def test_planted_label_errors_are_found_in_folds(photos: Path, capsys: pytest.CaptureFixture[str], place: Path) -> None:
    """`--folds` is searched with the labels of now; without it, folds of the same images next to the run are found."""
    pytest.importorskip("cleanlab")
    splits = json.loads((photos / "splits.json").read_text())
    names, files = splits["classes"], sorted(name for split in splits["splits"].values() for name in split)
    planted = files[::9]

    def write(folder: Path, listed: list[str], classes: list[str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "out_of_fold.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["file", "fold", "truth", "prediction", *(f"probability_{name}" for name in classes)])
            for name in listed:
                given = classes.index(Path(name).parent.name) if Path(name).parent.name in classes else 0
                likely = (given + 1) % len(classes) if name in planted else given
                values = [0.94 if index == likely else 0.03 for index in range(len(classes))]
                table.writerow([name, 0, classes[given], classes[likely], *values])

    write(place / "asked", files, names)
    run("report", "--ckpt_path", photos, "--folds", "asked", "--output", "out")
    found = rows(Path("out/report/label_errors.csv"))
    assert sorted(row["file"] for row in found) == planted
    for row in found:
        assert row["given_label"] == Path(row["file"]).parent.name
        assert row["suggested_label"] == names[(names.index(row["given_label"]) + 1) % 3]
    page = Page(Path("out/report/index.html"))
    assert f"Searched: {len(files)} images, each predicted by a network that was not trained" in page.source
    accuracy = 1 - len(planted) / len(files)
    text = f"(cross-validation in the folder asked). The prediction is the label for {accuracy:.0%} of them."
    assert text in page.source
    assert "note: the cross-validation" not in capsys.readouterr().out
    assert [text for text in page.texts if text.startswith("suggested: ")] == [
        f"suggested: {row['suggested_label']}" for row in found
    ]

    # The names of files and classes are markup.
    assert ODD in page.texts and ODD not in page.source and not page.attributes("onerror")
    table = Path("out/report/README.md").read_text().split("| Class |")[1]
    assert table.splitlines()[2].startswith(r"| \<b\>ant \& \| \*x\* | 3 |")

    write(photos.parents[1] / "folds", [*files, "other.jpg"], names)
    write(photos.parents[1] / "cross", files, names)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("resnet_pl.cli.unseen_images.UnseenImages.accuracy", 0.1)  # of the checkpoint it is a third
        run("report", "--ckpt_path", photos, "--output", "found")
    assert "has an accuracy of 10.0%" in capsys.readouterr().out
    assert "cross-validation in the folder cross)" in Path("found/report/index.html").read_text()

    # In another folder, the data of the training is still named, and its images are not counted twice.
    write_photos(place / "new", classes=(ODD, "bee", "cat"), count=3, first=70)
    run("report", "--ckpt_path", photos, "--data.root", "new", "--output", "new_folder")
    text = Path("new_folder/report/README.md").read_text()
    assert "Trained on ImageFolder photos, evaluated on ImageFolder new." in text and "| Class | test |" in text
    assert "Searched: the 9 evaluated images" in Path("new_folder/report/index.html").read_text()

    # A path can hold the name of a person.
    assert all(str(photos.parents[2]) not in path.read_text() for path in place.rglob("report/*"))

    write(place / "other", ["other.jpg"], names)
    write(place / "classes", files, ["ant", "bee"])
    (place / "damaged").mkdir()
    (place / "damaged/out_of_fold.csv").write_text((place / "asked/out_of_fold.csv").read_text()[:-9])
    line = ["report", "--ckpt_path", photos, "--folds"]
    assert "nowhere" in refused(capsys, *line, "nowhere") and "other images" in refused(capsys, *line, "other")
    assert "other classes" in refused(capsys, *line, "classes") and "damaged" in refused(capsys, *line, "damaged")
    assert not (photos / "report").exists()


def test_without_the_packages_of_the_extra_the_rest_of_the_report_is_written(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in EXPLAIN]:
        monkeypatch.delitem(sys.modules, name)
    for package in EXPLAIN:
        monkeypatch.setitem(sys.modules, package, None)
    run("report", "--ckpt_path", "best")
    page = (copy / "report/index.html").read_text()
    assert "Without heat maps: " in page and "needs the package captum" in page
    assert (
        "Not searched for label errors: " in page
        and "needs the package cleanlab" in page
        and page.count("pip install") == 2
    )
    assert not (copy / "report/label_errors.csv").exists()


def test_several_classes_per_image(place: Path) -> None:
    run(
        *["fit", "--model.backbone", "cifar_resnet", "--model.backbone.depth", "8", "--dashboard", "false"],
        *["--data", "tests.test_multi_label.Several", "--trainer.max_epochs", "2", "--trainer.logger", "false"],
    )
    run("report", "--ckpt_path", "best")
    folder = Path("runs/resnet/version_0/report")
    page = Page(folder / "index.html")
    assert "there is no confusion matrix" in page.source and "are not searched for label errors" in page.source
    metrics = {row["metric"]: float(row["value"]) for row in rows(folder / "metrics.csv")}
    table = rows(folder / "predictions.csv")
    exact = sum(row["truth"] == row["prediction"] for row in table) / len(table)
    assert metrics["exact_match"] == pytest.approx(exact) and "map" in metrics
    assert front_matter(folder / "README.md")["metrics"] == ["mAP", "f1"]


def test_published_weights_have_no_report(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(cifar_resnet(8).state_dict(), "weights.pth")
    line = ["report", "--model.backbone", "cifar_resnet", "--model.backbone.depth", "8", "--data", "Digits"]
    assert "give --ckpt_path" in refused(capsys, *line, "--model.weights", "weights.pth")


def test_data_of_another_kind_has_a_report_without_images(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--trainer.max_epochs", "1", "--trainer.logger", "false", "--data", "tests.own.PlainData"]
    run("fit", "--model.backbone", "cifar_resnet", "--model.backbone.depth", "8", "--dashboard", "false", *small)
    run("report", "--ckpt_path", "best")
    folder = Path("runs/resnet/version_0/report")
    assert len(rows(folder / "predictions.csv")) == 60
    images = Page(folder / "index.html").attributes("alt")
    assert not [alt for alt in images if not alt.startswith(("confusion", "reliability", "heat"))]
    run("fit", "--model", "tests.own.PlainModule", *small)
    message = refused(capsys, "report", "--ckpt_path", "last", "--output", "out")
    assert "PlainModule is not an ImageClassifier" in message and not Path("out").exists()
