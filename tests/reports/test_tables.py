"""Tables as printed, and predictions as CSV."""

import csv
import io
from pathlib import Path

import pytest

from resnet_pl.evaluation.metrics import class_scores
from resnet_pl.reports.tables import predictions_table, print_report, results_table, write_csv, write_predictions
from resnet_pl.utils import UserError

RESULTS = {
    "top1": 0.9806,
    "top5": 0.999,
    "loss": 0.05123,
    "calibration_error": 0.0123,
    "images": 3600,
    "per_class": {
        "daisy": {"images": 63, **class_scores(60, 63, 64)},
        "roses [red]": {"images": 41, **class_scores(37, 41, 40)},
    },
    "protocol": "single view",
    "split": "test",
    "data": "Digits",
    "checkpoint": "checkpoints/best.ckpt",
}


def text_of(renderable, capsys) -> str:
    print_report(renderable)
    return capsys.readouterr().out


def line_of(text: str, word: str) -> list[str]:
    """The words of the only line that contains `word`."""
    (line,) = [line for line in text.splitlines() if word in line]
    return line.split()


def many_classes(count: int) -> dict:
    return {f"c{i:02}": {"images": i, **class_scores(i // 2, i, i // 2)} for i in range(count)}


def test_overall_metrics(capsys):
    text = text_of(results_table(RESULTS), capsys)
    assert "Digits · test · single view · checkpoints/best.ckpt" in text
    assert line_of(text, "98.06%") == ["98.06%", "99.90%", "0.0512", "1.23%", "3,600"]
    assert line_of(text, "calibration") == ["top-1", "top-5", "loss", "calibration", "error", "images"]


def test_top5_is_omitted_if_it_does_not_apply(capsys):
    assert "top-5" not in text_of(results_table(RESULTS | {"top5": None}), capsys)


def test_undefined_numbers_are_shown_as_a_dash(capsys):
    text = text_of(results_table(RESULTS | {"top1": None, "loss": float("nan"), "calibration_error": None}), capsys)
    assert line_of(text, "99.90%") == ["–", "99.90%", "–", "–", "3,600"]


def test_class_names_may_contain_brackets(capsys):
    text = text_of(results_table(RESULTS), capsys)
    assert line_of(text, "precision") == ["class", "images", "precision", "recall", "F1"]
    assert line_of(text, "daisy") == ["daisy", "63", "93.8%", "85–98", "95.2%", "87–98", "94.5%", "89–97"]
    assert line_of(text, "roses") == ["roses", "[red]", "41", "92.5%", "80–97", "90.2%", "77–96", "91.4%", "83–96"]
    assert text.index("daisy") < text.index("roses")


def test_many_classes_show_the_ten_worst(capsys):
    text = text_of(results_table(RESULTS | {"per_class": many_classes(26)}), capsys)
    shown = [
        line.split()[0] for line in text.splitlines() if line.strip().startswith("c") and line.split()[0][1:].isdigit()
    ]
    assert shown == [f"c{i:02}" for i in range(1, 21, 2)]
    assert "10 classes with the lowest F1, of 26" in text


def test_twenty_five_classes_are_all_shown(capsys):
    text = text_of(results_table(RESULTS | {"per_class": many_classes(25)}), capsys)
    assert all(f"c{i:02}" in text for i in range(25)) and "lowest" not in text
    assert line_of(text, "c00") == ["c00", "0", "–", "–", "–"]


def test_macro_averages_have_a_table_of_their_own_and_fit_on_80_columns(capsys, monkeypatch):
    averages = {"precision_macro": 0.97, "recall_macro": 0.96, "f1_macro": 0.965, "balanced_accuracy": 0.96}
    monkeypatch.setattr("resnet_pl.reports.tables.report_width", lambda: 80)
    long = {"a class with a long name": RESULTS["per_class"]["daisy"]}
    text = text_of(results_table(RESULTS | averages | {"auroc": 0.999, "per_class": long}), capsys)
    assert line_of(text, "96.50%") == ["97.00%", "96.00%", "96.50%", "96.00%", "99.90%"]
    assert line_of(text, "macro F1")[-3:] == ["balanced", "accuracy", "AUROC"]
    assert line_of(text, "a class with a long name")[-2:] == ["94.5%", "89–97"]


def test_a_metric_of_the_user_with_the_name_of_an_average_may_have_several_values(capsys):
    text = text_of(results_table(RESULTS | {"auroc": [0.5, 0.75]}), capsys)
    assert "AUROC" not in text


def rows(count: int = 3, truth: bool = True) -> list[dict]:
    truths = ["daisy", "tulips", None]
    return [
        {
            "path": f"images/{index}.jpg",
            "truth": truths[index % 3] if truth else None,
            "classes": ["daisy", "roses [b]", "tulips"],
            "probabilities": [0.9, 0.0825, 0.0175],
        }
        for index in range(count)
    ]


def test_predictions_are_shown_with_the_true_class(capsys):
    text = text_of(predictions_table(rows(), top_k=2), capsys)
    assert " in images" in text
    assert line_of(text, "0.jpg") == ["0.jpg", "daisy", "daisy", "90.00%", "roses", "[b]", "8.25%"]
    assert line_of(text, "2.jpg") == ["2.jpg", "daisy", "90.00%", "roses", "[b]", "8.25%"]
    assert "1.75%" not in text and "truth" in text and "first" not in text and "2nd" in text and "3rd" not in text


def test_predictions_without_true_classes_have_no_such_column(capsys):
    text = text_of(predictions_table(rows(truth=False), top_k=9), capsys)
    assert "truth" not in text and "1.75%" in text and "3rd" in text


def test_correct_is_green_and_wrong_is_red():
    from rich.console import Console

    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system="standard")
    console.print(predictions_table(rows(), top_k=1))
    correct, wrong, unknown = (line for line in console.file.getvalue().splitlines() if ".jpg" in line)
    assert "\x1b[32mdaisy" in correct and "\x1b[31mdaisy" in wrong and "\x1b[3" not in unknown


def test_a_note_says_how_many_predictions_are_shown(capsys):
    text = text_of(predictions_table(rows(30), top_k=1), capsys)
    assert text.count(".jpg") == 20 and "The first 20 of 30 images." in text


def test_without_predictions_the_table_is_empty(capsys):
    assert "prediction" in text_of(predictions_table([], top_k=5), capsys)


def test_a_long_path_is_printed_completely(capsys):
    row = rows(1)[0] | {"path": "/folder" * 40 + "/last.jpg"}
    text = text_of(predictions_table([row], top_k=3), capsys)
    assert "/folder" * 40 in "".join(line.strip() for line in text.splitlines())
    assert line_of(text, "last.jpg")[0] == "last.jpg"


def test_paths_are_relative_to_their_common_folder(capsys):
    given = [row | {"path": f"/far/away/{name}"} for row, name in zip(rows(2), ("a/1.jpg", "b/2.jpg"), strict=True)]
    text = text_of(predictions_table(given, top_k=1), capsys)
    assert " in /far/away" in text and line_of(text, "2.jpg")[0] == "b/2.jpg" and text.count("/far") == 1
    mixed = [rows(1)[0], rows(1)[0] | {"path": "/far/1.jpg"}]
    assert "/far/1.jpg" in text_of(predictions_table(mixed, top_k=1), capsys)


def test_a_report_to_a_file_has_no_color_and_100_columns(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    text = text_of(predictions_table(rows(), top_k=3), capsys) + text_of("x" * 150, capsys)
    assert "\x1b" not in text
    assert max(len(line) for line in text.splitlines()) == 100


def test_characters_that_the_encoding_lacks_are_replaced(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", out)
    print_report(results_table(RESULTS | {"per_class": {"жираф\udc80": {"images": 7, **class_scores(7, 7, 7)}}}))
    out.flush()
    text = out.buffer.getvalue().decode("ascii")
    assert "??????" in text and "100.0%" in text


def test_predictions_csv_round_trip(tmp_path: Path):
    path = tmp_path / "deep" / "predictions.csv"
    given = [*rows(), rows(1)[0] | {"path": 'комма, "quote"\nline.jpg', "truth": "花"}]
    write_predictions(given, path)
    with path.open(newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert list(read[0]) == [
        "path",
        "truth",
        "prediction",
        "probability",
        "class_2",
        "probability_2",
        "class_3",
        "probability_3",
    ]
    for row, cells in zip(given, read, strict=True):
        assert cells["path"] == row["path"] and cells["truth"] == (row["truth"] or "")
        assert [cells["prediction"], cells["class_2"], cells["class_3"]] == row["classes"]
        assert [cells["probability"], cells["probability_2"], cells["probability_3"]] == [
            "0.900000",
            "0.082500",
            "0.017500",
        ]
    assert list(path.parent.iterdir()) == [path]


def test_without_predictions_only_the_header_is_written(tmp_path: Path):
    write_predictions([], tmp_path / "p.csv")
    assert (tmp_path / "p.csv").read_text() == "path,truth,prediction,probability\n"


def test_a_file_name_that_is_not_utf8_is_escaped(tmp_path: Path):
    write_predictions([rows(1)[0] | {"path": "x\udc80.jpg"}], tmp_path / "p.csv")
    assert r"x\udc80.jpg,daisy" in (tmp_path / "p.csv").read_text(encoding="utf-8")


def test_an_interrupted_write_preserves_the_old_file(tmp_path: Path):
    path = tmp_path / "p.csv"
    write_csv(path, ["a", "b"], [[1, None], [2, 3]])
    before = path.read_text()
    assert before == "a,b\n1,\n2,3\n"

    def interrupted():
        yield [1, 2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_csv(path, ["a", "b"], interrupted())
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_instead_of_the_file_is_a_user_error(tmp_path: Path):
    with pytest.raises(UserError, match="cannot be written"):
        write_predictions(rows(), tmp_path)
