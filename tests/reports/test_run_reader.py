"""Reading of complete, incomplete and damaged run folders."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import yaml

from resnet_pl.reports.run_finder import find_runs, read_runs
from resnet_pl.reports.run_reader import duration, find_single_view_test, read_metrics, read_run
from resnet_pl.utils import UserError
from tests.reports.made import METRICS as HEADER
from tests.reports.made import NAMES, write_metrics, write_run, write_test


def test_a_run_has_the_values_of_its_files(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "a" / "version_0", depth=56, top1=0.93, train_top1=0.9))
    assert (run.model, run.depth, run.shortcut, run.plain, run.data) == ("cifar_resnet 56", 56, "A", False, "CIFAR10")
    assert (run.test_top1, run.val_top1) == (0.93, 0.7)
    # The last ten iterations: nine at 90 % and one at 70 %.
    assert run.train_top1 == pytest.approx((9 * 0.9 + 0.7) / 10)
    assert (run.iterations, run.seconds, run.images_per_second) == (20, 180, 300)
    assert run.paper_error == 6.97


def test_blocks_and_an_unusual_width_are_part_of_the_model(tmp_path: Path) -> None:
    path = write_run(tmp_path / "a" / "version_0") / "config.yaml"
    config = yaml.safe_load(path.read_text())
    for name, arguments, model in (
        ("resnet18", {"width": 32}, "resnet18 (width 32)"),
        ("resnet18", {"width": 64}, "resnet18"),
        ("resnet_pl.models.ResNet", {"layers": [1, 2, 2]}, "ResNet [1, 2, 2]"),
    ):
        config["model"]["backbone"] = {"class_path": name, "init_args": arguments}
        path.write_text(yaml.safe_dump(config))
        assert read_run(path.parent).model == model


def test_training_accuracy_covers_one_epoch_of_iterations_if_the_last_epoch_is_incomplete(tmp_path: Path) -> None:
    path = write_run(tmp_path / "a" / "version_0")
    path.joinpath("metrics.csv").write_text(f"{NAMES}\n0,4,0.2,,,\n0,9,0.4,,,\n1,14,0.6,,,\n1,19,0.8,,,\n2,20,1,,,\n")
    # Steps 11 to 20: the rows of steps 14, 19 and 20, which average 5, 5 and 1 iterations.
    assert read_run(path).train_top1 == pytest.approx((5 * 0.6 + 5 * 0.8 + 1) / 11)


def test_both_forms_of_the_model_section_are_read(tmp_path: Path) -> None:
    flat = read_run(write_run(tmp_path / "a" / "version_0", depth=56))
    named = read_run(write_run(tmp_path / "b" / "version_0", depth=56, classifier="resnet_pl.ImageClassifier"))
    for name in ("model", "depth", "shortcut", "plain", "data", "paper_error"):
        assert getattr(named, name) == getattr(flat, name)


@pytest.mark.parametrize("damaged", ["model", "data"])
def test_a_configuration_without_a_class_is_damaged(tmp_path: Path, damaged: str) -> None:
    path = write_run(tmp_path / "a" / "version_0") / "config.yaml"
    config = yaml.safe_load(path.read_text())
    del (config["data"] if damaged == "data" else config["model"]["backbone"])["class_path"]
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match="is incomplete: its files lack class_path"):
        read_run(path.parent)


@pytest.mark.parametrize(
    ("model", "facts", "paper"),
    [
        ("cifar_resnet", {}, 8.75),
        ("cifar_resnet", {"shortcut": "B"}, None),
        ("cifar_resnet", {"data": "Digits"}, None),
        ("cifar_plain", {}, None),
    ],
)
def test_only_models_of_the_paper_have_a_paper_error(
    tmp_path: Path, model: str, facts: dict[str, str], paper: float | None
) -> None:
    assert read_run(write_run(tmp_path / "a" / "version_0", model, **facts)).paper_error == paper


def test_plain_networks_are_recognized_by_name_and_by_shortcut(tmp_path: Path) -> None:
    assert read_run(write_run(tmp_path / "a" / "version_0", "cifar_plain")).plain
    assert read_run(write_run(tmp_path / "b" / "version_0", shortcut="none")).plain


def test_the_single_view_test_is_found_among_others(tmp_path: Path) -> None:
    other = {"protocol": "single view, image_size 64", "split": "test", "checkpoint": "best.ckpt", "data": "CIFAR10"}
    plain = {**other, "protocol": "single view", "top1": 0.9}
    write_test(tmp_path, 0.5, protocol="10-crop", **{"image_size 64": {**other, "top1": 0.7}, "single": plain})
    assert (find_single_view_test(tmp_path) or {})["top1"] == 0.9
    write_test(tmp_path, 0.5, protocol="10-crop", **{"image_size 64": {**other, "top1": 0.7}})
    assert (find_single_view_test(tmp_path) or {})["top1"] == 0.7
    write_test(tmp_path, 0.5, protocol="10-crop")
    assert find_single_view_test(tmp_path) is None
    assert find_single_view_test(tmp_path / "missing") is None


def test_a_run_without_a_test_set_is_tested_but_has_no_test_accuracy(tmp_path: Path) -> None:
    path = write_run(tmp_path / "a" / "version_0", tested=False)
    write_test(path, 0.9, split="val (no test set)")
    (path / "results.json").rename(path / "results-val-no-test.json")
    run = read_run(path)
    assert run.results["top1"] == 0.9 and math.isnan(run.test_top1) and math.isnan(run.test_score)
    write_test(path, 0.8)
    assert read_run(path).test_top1 == 0.8


def test_an_untested_run(tmp_path: Path) -> None:
    path = write_run(tmp_path / "a" / "version_0", tested=False)
    run = read_run(path)
    assert math.isnan(run.test_top1) and run.val_top1 == 0.7
    (path / "sessions.json").unlink()
    assert read_run(path).sessions == []
    (path / "results.json").write_text("{")
    with pytest.raises(UserError, match=r"results\.json"):
        read_run(path)


def test_runs_below_a_folder_are_found_in_order_of_their_versions(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / name) for name in ("a/version_2", "a/version_10", "study/b/version_0")]
    assert find_runs([tmp_path]) == paths
    assert find_runs([paths[1], tmp_path / "a"]) == [paths[1], paths[0]]
    copied = write_run(tmp_path / "copied")
    assert find_runs([copied]) == [copied]


def test_each_incomplete_run_is_reported(tmp_path: Path) -> None:
    for name in ("complete", "config.yaml", "metrics.csv"):
        path = write_run(tmp_path / name / "version_0")
        if name != "complete":
            (path / name).unlink()
    (write_run(tmp_path / "truncated" / "version_0") / "results.json").write_text('{"top1": 0.')
    (write_run(tmp_path / "bad" / "version_0") / "config.yaml").write_text("model: [")
    (write_run(tmp_path / "list" / "version_0") / "config.yaml").write_text("[1]")
    (write_run(tmp_path / "early" / "version_0") / "metrics.csv").write_text(NAMES)
    runs, skipped = read_runs([tmp_path])
    assert [run.path.parent.name for run in runs] == ["complete"]
    assert len(skipped) == 6 and all(line.startswith("Skipped: ") and "\n" not in line for line in skipped)
    for name in ("config.yaml", "metrics.csv", "truncated", "bad", "list", "early"):
        assert sum(f"/{name}/version_0" in line for line in skipped) == 1, name


def test_no_complete_run_is_an_error_with_the_reason(tmp_path: Path) -> None:
    (write_run(tmp_path / "a" / "version_0") / "metrics.csv").unlink()
    with pytest.raises(UserError, match=r"no complete runs\n.*a/version_0/metrics.csv cannot be read"):
        read_runs([tmp_path])
    with pytest.raises(UserError, match="no runs in"):
        find_runs([tmp_path / "a" / "version_0" / "checkpoints"])
    with pytest.raises(UserError, match=r"no runs in .*nowhere"):
        find_runs([tmp_path / "nowhere"])


def test_values_that_were_not_logged_are_nan(tmp_path: Path) -> None:
    path = write_run(tmp_path / "a" / "version_0")
    path.joinpath("metrics.csv").write_text("epoch,step,val/top1\n0,9,0.5\n")
    sessions = json.loads(path.joinpath("sessions.json").read_text())
    path.joinpath("sessions.json").write_text(json.dumps([{**sessions[0], "parameters": None}]))
    run = read_run(path)
    assert math.isnan(run.train_top1) and math.isnan(run.seconds) and math.isnan(run.images_per_second)


def test_every_metric_is_read_at_the_steps_where_it_was_logged(tmp_path):
    metrics = read_metrics(write_metrics(tmp_path / "metrics.csv"))
    assert sorted(metrics) == sorted(set(HEADER.split(",")) - {"step"})
    for name in ("train/loss", "val/top1", "lr"):
        steps, values = metrics[name]
        assert steps.tolist() == [9, 19, 29, 39] and steps.dtype == np.int64
        assert values.shape == (4,) and values.dtype == np.float64
    assert metrics["train/top1"][1][0] == pytest.approx(0.1)
    assert metrics["val/loss"][1] == pytest.approx([2.7, 1.5, 0.9, 0.6])


@pytest.mark.parametrize("partial", ["4,49,0.3,0.9", "4,49,0.3,0.9,0.1,0.2,0.", "4", "4,49,0.3,,,,0.1\r", "\0\0\0\0"])
def test_an_incomplete_last_line_is_dropped(tmp_path, partial):
    path = write_metrics(tmp_path / "metrics.csv")
    path.write_text(path.read_text(encoding="utf-8") + partial, encoding="utf-8", newline="")
    assert read_metrics(path)["train/loss"][0].tolist() == [9, 19, 29, 39]


@pytest.mark.parametrize(
    "line", ["4,49,0.3", "4,49,abc,,,,", "4,,0.3,,,,", "4,inf,0.3,,,,", "\0\0\0", "1,2,3,4,5,6,7,8"]
)
def test_a_damaged_line_is_reported_with_its_number(tmp_path, line):
    path = tmp_path / "metrics.csv"
    path.write_text(f"{HEADER}\n0,9,1,,,,\n{line}\n1,19,1,,,,\n")
    with pytest.raises(UserError, match=r"metrics\.csv, line 3 is damaged") as error:
        read_metrics(path)
    assert str(error.value).count("\n") <= 1


def test_blank_lines_and_nan_are_accepted(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text(f"{HEADER}\n0,9,nan,,,,\n\n1,19.0,2,,,,\n")
    assert np.isnan(read_metrics(path)["train/loss"][1][0])


def test_the_last_value_of_a_step_counts(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,train/loss\n9,1\n19,2\n29,3\n19,5\n29,6\n39,7\n")
    steps, values = read_metrics(path)["train/loss"]
    assert steps.tolist() == [9, 19, 29, 39] and values.tolist() == [1, 5, 6, 7]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("", "no header"),
        (HEADER, "no header"),
        ("a,b\n1,2\n", "no header"),
        (f"{HEADER}\n", "no metrics yet"),
        (f"{HEADER}\n0,9,0.", "no metrics yet"),
        ("x" * 200_000 + "\n", "cannot be read"),
    ],
)
def test_an_unusable_file_is_named(tmp_path, content, message):
    path = tmp_path / "metrics.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        read_metrics(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(("seconds", "text"), [(9, "9 seconds"), (3360, "56 minutes"), (9000, "2.5 hours")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_checkpoint_that_is_better_than_the_tested_one(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a/version_0")
    assert not read_run(folder).has_better_checkpoint
    for checkpoint, expected in (("best", True), ("last", False)):
        write_test(folder, 0.9, step=10, checkpoint=f"checkpoints/{checkpoint}.ckpt")
        assert read_run(folder).has_better_checkpoint is expected
