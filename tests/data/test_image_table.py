"""Images whose labels are in a table."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from resnet_pl.data import ImageTable
from resnet_pl.utils import UserError
from tests.cli.commands import PROJECT, run
from tests.conftest import MakePhotos

QUICK = ["--model.backbone", "cifar_resnet", "--model.backbone.depth", "8", "--trainer.max_epochs", "1"]
QUICK += ["--data.image_size", "16", "--data.num_workers", "0", "--dashboard", "false", "--trainer.accelerator", "cpu"]


def write(
    path: Path, header: Sequence[str], rows: Iterable[Sequence[str]], delimiter: str = ",", encoding: str = "utf-8"
) -> Path:
    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])
    return path


@pytest.fixture
def photos(tmp_path: Path, make_photos: MakePhotos) -> list[str]:
    """Thirty photos of three classes in one folder; returns their paths relative to `tmp_path`."""
    made = sorted(make_photos(tmp_path / "made").glob("*/*"))
    (tmp_path / "images").mkdir()
    names = [f"images/{number:02d}.jpg" for number in range(len(made))]
    for path, name in zip(made, names, strict=True):
        path.rename(tmp_path / name)
    return names


LABELS = ["ant"] * 10 + ["bee"] * 10 + ["cat"] * 10
SPLITS = (["train"] * 6 + ["val"] * 2 + ["test"] * 2) * 3


def table(path: Path, **kwargs: Any) -> ImageTable:
    return ImageTable(str(path), image_size=16, batch_size=4, num_workers=0, **kwargs)


def labels_of(data: ImageTable) -> dict[str, Any]:
    """The labels of all images."""
    return {name: label for listing in data.list_splits().values() for name, label in listing.items()}


# ------------------------------------------------------------------------------------ reading
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_labels_are_text(tmp_path: Path, photos: list[str], delimiter: str, encoding: str) -> None:
    labels = ["007", "yes", "1e3", "NA", "two, words; é", "a|b\tc\nd"]
    expected = dict(zip(photos[:6], labels, strict=True))
    path = write(tmp_path / "labels.csv", ["path", "label"], expected.items(), delimiter, encoding)
    assert labels_of(table(path)) == expected


def test_an_excel_sheet(tmp_path: Path, photos: list[str]) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in [["Image Path", "Class", "Note"], [photos[0], "007", None], [photos[1], 7, 1.5], [None] * 3]:
        book.active.append(row)
    book.save(tmp_path / "labels.xlsx")
    assert labels_of(table(tmp_path / "labels.xlsx")) == {photos[0]: "007", photos[1]: "7"}
    # Without dimensions, a row ends with its last cell.
    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet()
    for row in [["path", "label", "group"], [photos[0], "ant", "1"], [photos[1], "bee"]]:
        sheet.append(row)
    book.save(tmp_path / "streamed.xlsx")
    assert labels_of(table(tmp_path / "streamed.xlsx")) == {photos[0]: "ant", photos[1]: "bee"}


def test_a_parquet_file(tmp_path: Path, photos: list[str]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    columns = {"image": photos[:2], "label": [7, None], "embedding": [[0.5], [0.5]], "raw": [b"a", b"b"]}
    write_table(pyarrow.table(columns), tmp_path / "labels.parquet")
    with pytest.raises(UserError, match="line 2: the label is empty"):
        table(tmp_path / "labels.parquet").list_splits()


def test_columns_are_found_by_usual_names_or_given(
    tmp_path: Path, photos: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [(label, path, "x") for path, label in zip(photos, LABELS, strict=True)]
    path = write(tmp_path / "labels.csv", ["Category", "File Name", "subset"], rows)
    expected = dict(zip(photos, LABELS, strict=True))
    assert labels_of(table(path, split_column="")) == expected
    assert "path = File Name, label = Category" in capsys.readouterr().out
    assert labels_of(table(path, path_column="File Name", label_column="Category", split_column="")) == expected
    assert labels_of(table(path, label_column="subset", split_column=""))[photos[0]] == "x"


def test_a_table_without_a_header(tmp_path: Path, photos: list[str]) -> None:
    path = write(tmp_path / "labels.csv", [photos[0], "ant"], [(photos[1], "bee")])
    with pytest.raises(UserError, match=r"--data\.column_names '\[path, label\]'"):
        table(path).list_splits()
    assert labels_of(table(path, column_names=["path", "label"])) == {photos[0]: "ant", photos[1]: "bee"}


def test_paths_in_other_forms(tmp_path: Path, photos: list[str]) -> None:
    rows = [("00", "ant"), (".\\01", "bee"), (str(tmp_path / "images/02"), "cat")]
    path = write(tmp_path / "labels.csv", ["id", "label"], rows)
    with pytest.raises(UserError, match=r"such as 00 \(line 2\)\nadd the extension with --data\.path_suffix \.jpg"):
        table(path, root=str(tmp_path / "images")).list_splits()
    found = labels_of(table(path, root=str(tmp_path / "images"), path_suffix=".jpg"))
    assert found == {"00.jpg": "ant", "01.jpg": "bee", str(tmp_path / "images/02.jpg"): "cat"}


# ------------------------------------------------------------------------------------ wrong tables
@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        ("path,label", {}, "labels.csv has no rows"),
        ("path,tag\n0,ant", {}, "no column for the label; its columns are path, tag\ngive its name with"),
        ("path,label\n0,a", {"label_column": "labell"}, "columns are path, label\ndid you mean label?"),
        ("path,label,label\n0,a,b", {}, "two columns label"),
        ("path,label\n0,ant,bee", {}, "line 2: 3 cells in this row, 2 columns in the header"),
        ('path,label\n0,"ant\n1,bee', {}, "unexpected end of data"),
        ("path,label\n0,ant\n1,", {}, "line 3: the label is empty"),
        ("path,label\n,ant", {}, "line 2: the path is empty"),
        ("path,label,split\n0,ant,holdout", {}, "line 2: holdout is not a split\nwrite train, val or test"),
        ("path,label,split\n0,ant,", {}, "line 2: the split is empty"),
        ("path,label\n0,ant\n0,bee", {}, "0.jpg is in lines 2 and 3 with the labels ant and bee"),
        ("path,label,split\n0,ant,train\n0,ant,test", {}, "0.jpg is in lines 2 and 3 with other splits"),
        ("path,label\n0,ant\n9,bee", {}, "1 of 2 images are not in"),
        ("path,label\n8,ant\n9,bee", {}, "2 of 2 images are not in"),
        ("path,label\n0,ant\n1,ant", {}, "labels.csv has only one class (ant)"),
        ("path,label,split\n0,ant,val\n1,bee,test", {}, "labels.csv has val/ and test/ but no train/"),
        ("path,ant,bee\n0,1,0\n1,0,2", {"label_columns": "all"}, "line 3: the column bee has 2, not 0 or 1"),
        ("path,ant\n0,1", {"label_columns": ["ant", "be"]}, "no column be"),
    ],
)  # fmt: skip
def test_wrong_tables_are_explained(tmp_path: Path, lines: str, options: dict, message: str) -> None:
    for name in ("0", "1"):
        (tmp_path / f"{name}.jpg").write_bytes(b"")
    (tmp_path / "labels.csv").write_text(lines)
    with pytest.raises(UserError) as error:
        table(tmp_path / "labels.csv", path_suffix=".jpg", on_bad_image="error", **options).find_splits()
    assert message in str(error.value) and len(str(error.value).splitlines()) <= 2


@pytest.mark.parametrize("content", [None, b"path,label\n\xff\xfe,ant", b"PK\x03\x04"])
def test_unreadable_tables_are_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / ("labels.csv" if content is None or content[:4] == b"path" else "labels.xlsx")
    if path.suffix == ".xlsx":
        pytest.importorskip("openpyxl")
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"labels\.(csv|xlsx) (cannot be read|not found)"):
        table(path).find_splits()


def test_missing_images_can_be_skipped(tmp_path: Path, photos: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "labels.csv", ["path", "label"], zip([*photos, "no.jpg"], [*LABELS, "cat"], strict=True))
    data = table(path, on_bad_image="skip")
    data.setup("fit")
    assert sum(map(len, data.splits.values())) == 30
    assert "1 of 31 images are not in" in capsys.readouterr().out


def test_repeated_rows_and_classes_in_other_case_are_noted(
    tmp_path: Path, photos: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [(photos[0], "Ant"), (f"./{photos[0]}", "Ant"), (photos[1], "ant")]
    assert len(labels_of(table(write(tmp_path / "labels.csv", ["path", "label"], rows)))) == 2
    out = capsys.readouterr().out
    assert "1 more rows for the same images" in out and "upper and lower case only: Ant, ant" in out


@pytest.mark.parametrize(("cell", "separator"), [("ant;bee", ";"), ("ant|bee", "|")])
def test_classes_that_look_like_several_labels_are_noted(
    cell: str, separator: str, tmp_path: Path, photos: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "labels.csv", ["path", "label"], [(photos[0], cell), (photos[1], "cat")])
    labels_of(table(path))
    assert f"{cell} is read as one class" in (out := capsys.readouterr().out)
    assert f"--data.label_separator '{separator}'" in out
    labels_of(table(path, label_separator=separator))
    assert "one class" not in capsys.readouterr().out


# ------------------------------------------------------------------------------------ splits
def test_groups_of_the_table_are_in_one_split(tmp_path: Path, photos: list[str]) -> None:
    groups = [f"patient {number // 2}" for number in range(28)] + ["", ""]
    path = write(tmp_path / "labels.csv", ["path", "label", "patient_id"], zip(photos, LABELS, groups, strict=True))
    data = table(path, val_split=0.2, test_split=0.2)
    data.setup("fit")
    members = [{groups[photos.index(name)] for name in split.names} - {""} for split in data.splits.values()]
    assert sum(map(len, members)) == len(set.union(*members)) == 14
    assert data.split_note == "14 groups, none in two splits; 2 images without a group"


def test_the_same_splits_as_a_folder(tmp_path: Path, photo_folder: Path) -> None:
    from resnet_pl.data import ImageFolder

    names = sorted(path.relative_to(photo_folder).as_posix() for path in photo_folder.glob("*/*"))
    path = write(tmp_path / "labels.csv", ["path", "label"], [(name, Path(name).parent.name) for name in names])
    found = []
    for data in (ImageFolder(str(photo_folder)), table(path, root=str(photo_folder))):
        data.setup("fit")
        found.append({split: images.names for split, images in data.splits.items()})
    assert found[0] == found[1]


def test_fit_and_test(tmp_path: Path, photos: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    columns = list(zip(photos, LABELS, SPLITS, strict=True))
    path = write(tmp_path / "labels.csv", ["path", "label", "split"], columns, ";", "utf-8-sig")
    config = PROJECT / "configs/table.yaml"
    run("fit", "--config", config, "--model.weights", "null", *QUICK, "--data.labels", path)
    out = capsys.readouterr().out
    assert f"ImageTable of {path}: 18 train + 6 val + 6 test images, 3 classes" in out
    assert any(line.split() == ["splits", "from", "the", "column", "split"] for line in out.splitlines())

    # The test images are those of the checkpoint, also if the table has changed since.
    write(path, ["path", "label", "split"], [(name, label, "train") for name, label, _ in columns])
    run("test", "--ckpt_path", "best")
    results = next(Path("runs").rglob("results.json"))
    assert "6 images, the test split stored in the checkpoint" in capsys.readouterr().out and results.is_file()

    # Another table is other data, although its images are in the same folder.
    more = tmp_path / "images/new.jpg"
    more.write_bytes((tmp_path / photos[0]).read_bytes() + b"\n")
    other = write(tmp_path / "other.csv", ["path", "label"], [("images/new.jpg", "ant")])
    run("test", "--ckpt_path", "best", "--data.labels", other)
    assert "test: 1 image," in capsys.readouterr().out


@pytest.mark.parametrize("moved", [False, True])
def test_without_a_test_set_a_test_is_labeled_as_validation(tmp_path: Path, photos: list[str], moved: bool) -> None:
    splits = ["train" if split == "train" else "val" for split in SPLITS]
    path = write(tmp_path / "labels.csv", ["path", "label", "split"], zip(photos, LABELS, splits, strict=True))
    trained = table(path)
    trained.setup("fit")
    if moved:
        (tmp_path / "moved").mkdir()
        path = path.rename(tmp_path / "moved/labels.csv")
        (tmp_path / "images").rename(tmp_path / "moved/images")
    tested = table(path)
    tested.use_provenance(trained.provenance())
    tested.setup("test")
    assert tested.splits["test"].names == trained.splits["val"].names
    assert tested.split_labels == trained.split_labels == {"test": "val (no test set)"}
    assert not tested.is_other_data and tested.describe_source("test") == trained.describe_source("test")


def test_rows_that_were_removed_after_the_training(tmp_path: Path, photos: list[str]) -> None:
    rows = list(zip(photos, LABELS, SPLITS, strict=True))
    path = write(tmp_path / "labels.csv", ["path", "label", "split"], rows)
    trained = table(path)
    trained.setup("fit")
    write(path, ["path", "label", "split"], [row for row in rows if row[0] not in (photos[0], photos[8])])
    tested, resumed = (table(path, on_bad_image="skip") for _ in range(2))
    tested.use_provenance(trained.provenance())
    tested.setup("test")
    assert tested.splits["test"].names == [name for name in trained.splits["test"].names if name != photos[8]]
    resumed.use_provenance(trained.provenance())
    with pytest.raises(UserError, match="lacks 2 images of the checkpoint"):
        resumed.setup("fit")


def test_a_resumed_run_keeps_the_order_of_verified_images(tmp_path: Path, photos: list[str]) -> None:
    rows = zip(photos, LABELS, SPLITS, strict=True)
    options = {"verify_images": True, "on_bad_image": "skip"}
    trained = table(write(tmp_path / "labels.csv", ["path", "label", "split"], rows), **options)
    trained.setup("fit")
    (tmp_path / photos[0]).write_bytes(b"no image")
    resumed = table(tmp_path / "labels.csv", **options)
    resumed.use_provenance(trained.provenance())
    resumed.setup("fit")
    assert resumed.splits["train"].names == trained.splits["train"].names


@pytest.mark.parametrize("root", [".", "elsewhere"])
def test_copies_and_bad_files_with_absolute_paths(
    tmp_path: Path, photos: list[str], root: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [str(tmp_path / name) for name in photos]
    Path(names[6]).write_bytes(Path(names[0]).read_bytes())
    Path(names[29]).write_bytes(b"no image")
    path = write(tmp_path / "labels.csv", ["path", "label", "split"], zip(names, LABELS, SPLITS, strict=True))
    (tmp_path / root).mkdir(exist_ok=True)
    data = table(path, root=str(tmp_path / root), verify_images=True, on_bad_image="skip")
    data.setup("fit")
    assert f"{names[0]} = {names[6]}" in capsys.readouterr().out
    assert len(data.splits["test"]) == 5 and names[29] not in data.splits["test"].names


# ------------------------------------------------------------------------------------ several labels
def multi_label(data: ImageTable) -> dict[str, tuple[str, ...]]:
    data.splits = data.find_splits()
    return {
        name: tuple(data.classes[index] for index in label)
        for split in data.splits.values()
        for name, label in zip(split.names, split.labels, strict=True)
    }


def test_several_labels_in_a_cell(tmp_path: Path, photos: list[str]) -> None:
    cells = ["cat| ant", "", "bee"] * 9 + ["ant", "bee", "cat"]
    path = write(tmp_path / "labels.csv", ["path", "labels"], zip(photos, cells, strict=True))
    data = table(path, label_separator="|", test_split=0.2)
    labels = multi_label(data)
    assert data.multi_label and data.classes == ["ant", "bee", "cat"]
    assert [labels[name] for name in photos[:3]] == [("ant", "cat"), (), ("bee",)]
    batch = next(iter(data.train_dataloader()))
    assert batch.labels.shape == (4, 3) and batch.labels.dtype == torch.float32
    names = [data.splits["train"].names[index] for index in batch.indices]
    expected = [[float(each in labels[name]) for each in data.classes] for name in names]
    assert batch.labels.tolist() == expected
    assert json.loads(json.dumps(data.provenance()))["classes"] == data.classes


def test_several_labels_in_columns_or_rows(tmp_path: Path, photos: list[str]) -> None:
    rows = [(path, str(i % 2), "1.0" if i % 3 else "0", "TRUE") for i, path in enumerate(photos)]
    path = write(tmp_path / "columns.csv", ["path", "ant", "bee", "cat"], rows)
    labels = multi_label(table(path, label_columns="all"))
    assert labels[photos[0]] == ("cat",) and labels[photos[1]] == ("ant", "bee", "cat")
    labels = multi_label(table(path, label_columns=["ant", "bee"]))
    assert labels[photos[0]] == () and labels[photos[1]] == ("ant", "bee")
    path = write(tmp_path / "rows.csv", ["path", "label"], [*zip(photos, LABELS, strict=True), (photos[0], "bee")])
    assert multi_label(table(path, label_separator=","))[photos[0]] == ("ant", "bee")
