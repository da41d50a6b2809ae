"""results.json: which results are replaced and which are added."""

import json
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from resnet_pl.reports.results import read_results, write_results
from resnet_pl.utils import UserError


def result(top1: float = 0.9, **changes) -> dict:
    first = {"protocol": "single view", "checkpoint": "checkpoints/best.ckpt", "data": "Digits", "split": "test"}
    return (
        {"top1": top1, "images": 360, "per_class": {"top1": {"images": 3, "correct": 2, "top1": 2 / 3}}}
        | first
        | changes
    )


LAST = "checkpoints/last.ckpt"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.json"


def test_the_first_single_view_test_is_at_the_top_level(path):
    write_results(result(), path)
    assert read_results(path) == result()
    assert path.read_text().endswith("}\n") and "\n  " in path.read_text()


def test_a_repeated_test_replaces_its_result(path):
    write_results(result(0.9, note="old"), path)
    write_results(result(0.8), path)
    assert read_results(path) == result(0.8)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"protocol": "10-crop"}, "10-crop"),
        ({"checkpoint": LAST}, "last.ckpt"),
        ({"protocol": "10-crop", "checkpoint": LAST}, "10-crop, last.ckpt"),
        ({"data": "Flowers /photos"}, "Flowers /photos"),
        ({"split": "val"}, "val"),
        ({"protocol": "top1"}, "top1 (2)"),
        ({"protocol": "per_class"}, "per_class (2)"),
        ({"checkpoint": "elsewhere/best.ckpt"}, "best.ckpt"),
        ({"checkpoint": None}, "None"),
    ],
)
def test_another_test_has_a_key_that_names_the_difference(path, changes, key):
    write_results(result(), path)
    write_results(result(0.8, **changes), path)
    assert read_results(path) == {**result(), key: result(0.8, **changes)}
    write_results(result(0.7, **changes), path)
    assert read_results(path) == {**result(), key: result(0.7, **changes)}


def test_tests_with_equal_names_are_both_saved(path):
    for number, folder in enumerate("abc"):
        write_results(result(number / 10, checkpoint=f"{folder}/last.ckpt"), path)
    stored = read_results(path)
    assert stored["checkpoint"] == "a/last.ckpt"
    assert (stored["last.ckpt"]["top1"], stored["last.ckpt (2)"]["top1"]) == (0.1, 0.2)


def test_replacing_the_first_test_preserves_the_others(path):
    write_results(result(0.9), path)
    write_results(result(0.8, protocol="10-crop"), path)
    write_results(result(0.7), path)
    assert read_results(path) == {**result(0.7), "10-crop": result(0.8, protocol="10-crop")}


def test_no_order_of_writing_loses_a_test(tmp_path):
    tests = [result(i / 10, protocol=p, checkpoint=c) for i, (p, c) in enumerate([("a", "x"), ("b", "x"), ("a", "y")])]
    for index, order in enumerate(permutations(tests)):
        path = tmp_path / f"{index}.json"
        for test in (*order, *order):
            write_results(test, path)
        stored = read_results(path)
        others = [value["top1"] for value in stored.values() if isinstance(value, dict) and "split" in value]
        assert sorted([stored["top1"], *others]) == [0.0, 0.1, 0.2]


def test_a_single_view_test_is_at_the_top_level_in_any_order(path):
    write_results(result(0.8, protocol="10-crop"), path)
    write_results(result(0.7, protocol="horizontal flip", checkpoint=LAST), path)
    assert read_results(path)["top1"] == 0.8
    write_results(result(0.6, protocol="single view, precision bf16-mixed"), path)
    assert read_results(path)["top1"] == 0.6
    write_results(result(0.9), path)
    others = {
        "10-crop": result(0.8, protocol="10-crop"),
        "horizontal flip, last.ckpt": result(0.7, protocol="horizontal flip", checkpoint=LAST),
        "single view, precision bf16-mixed": result(0.6, protocol="single view, precision bf16-mixed"),
    }
    assert read_results(path) == {**result(0.9), **others}
    write_results(result(0.5, protocol="10-crop"), path)
    assert read_results(path)["10-crop"]["top1"] == 0.5 and read_results(path)["top1"] == 0.9


def test_tests_at_the_same_time_are_all_saved(path):
    protocols = [f"protocol {number}" for number in range(12)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda protocol: write_results(result(protocol=protocol), path), protocols))
    stored = read_results(path)
    others = [value["protocol"] for value in stored.values() if isinstance(value, dict) and "protocol" in value]
    assert sorted([stored["protocol"], *others]) == sorted(protocols)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_results_without_identity_are_saved_separately(path):
    path.write_text('{"top1": 0.5}')
    write_results(result(), path)
    write_results({"top1": 0.4}, path)
    stored = read_results(path)
    assert stored["top1"] == 0.9
    assert [value["top1"] for value in stored.values() if isinstance(value, dict) and "split" in value] == [0.4]


def test_numpy_values_are_written_as_json(path):
    values = {
        "a": np.float32(0.5),
        "b": np.int64(3),
        "c": np.array([[1, 2]]),
        "d": np.bool_(True),
        "e": (1, np.float64(2)),
    }
    write_results(result(extra=values, folder=Path("runs/x"), none=None, flag=False), path)
    stored = json.loads(path.read_text())
    assert stored["extra"] == {"a": 0.5, "b": 3, "c": [[1, 2]], "d": True, "e": [1, 2.0]}
    assert stored["extra"]["d"] is True and stored["flag"] is False and stored["none"] is None
    assert stored["folder"] == str(Path("runs/x"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32("nan"), np.array([np.nan])])
def test_nan_and_infinity_are_written_as_null(path, value):
    write_results(result(loss=value), path)
    assert "NaN" not in path.read_text() and "Infinity" not in path.read_text()
    assert read_results(path)["loss"] in (None, [None])


def test_nan_in_an_existing_file_is_read_as_none(path):
    path.write_text('{"top1": NaN}')
    write_results(result(protocol="10-crop"), path)
    assert read_results(path)["top1"] is None


def test_any_class_name_can_be_saved(path):
    names = {"žluťoučký": 1, "花": 2, "x\udc80": 3, '"quote"\n': 4}
    write_results(result(names=names), path)
    assert read_results(path)["names"] == names
    assert "花" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("content", [b"", b"{", b'{"top1": 0.', b"[1, 2]", b"\xff\xfe", b"\0\0\0"])
def test_a_damaged_file_is_renamed(path, content):
    path.write_bytes(content)
    with pytest.raises(UserError, match="not valid JSON"):
        read_results(path)
    with pytest.warns(UserWarning, match=r"results\.json is not valid JSON .*results\.json\.bad") as caught:
        write_results(result(), path)
    assert len(caught) == 1 and "\n" not in str(caught[0].message)
    assert read_results(path) == result()
    assert path.with_name("results.json.bad").read_bytes() == content


def test_a_missing_file_is_named(path):
    with pytest.raises(UserError, match=r"results\.json cannot be read"):
        read_results(path)


def test_a_failed_write_preserves_the_old_file(path, monkeypatch):
    write_results(result(), path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises((OSError, UserError)):
        write_results(result(0.1), path)
    assert read_results(path) == result()
    assert list(path.parent.iterdir()) == [path]
