"""The comparison as a table and as a plot, from runs with known values."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resnet_pl.reports.comparison import MAX_OPTIONS, comparison_table, markdown, table_cells, table_title
from resnet_pl.reports.comparison_plot import plot_comparison
from resnet_pl.reports.run_groups import Group, group_runs, is_depth_study
from resnet_pl.reports.run_reader import read_run
from resnet_pl.reports.tables import print_report
from tests.reports.made import write_run
from tests.reports.test_run_groups import one, seeds

BLUE, ORANGE = (31, 119, 180), (255, 127, 14)


def groups(folder: Path, *facts: dict[str, Any]) -> list[Group]:
    """A group for each run; runs are called a, b, c and so on."""
    return group_runs([one(folder, f"{chr(97 + index)}/version_0", **own) for index, own in enumerate(facts)])


def test_two_runs_show_their_names_what_differs_and_the_results(tmp_path: Path) -> None:
    compared = groups(tmp_path, {"lr": 0.1, "val_top1": 0.6}, {"lr": 0.05, "val_top1": 0.8, "tested": False})
    assert table_cells(compared) == [
        {
            "run": "b/version_0",
            "lr": "0.05",
            "best val top-1 (%)": "80.00",
            "test top-1 (%)": "–",
            "paper top-1 (%)": "91.25",
        },
        {
            "run": "a/version_0",
            "lr": "0.1",
            "best val top-1 (%)": "60.00",
            "test top-1 (%)": "90.00",
            "paper top-1 (%)": "91.25",
        },
    ]
    assert table_title(compared) == "cifar_resnet 20 (A) · CIFAR10"


def test_columns_without_values_are_omitted(tmp_path: Path) -> None:
    untested = groups(tmp_path, {"data": "Digits", "tested": False}, {"data": "Digits", "tested": False, "lr": 1})
    assert [*table_cells(untested)[0]] == ["run", "lr", "best val top-1 (%)"]
    unvalidated = groups(tmp_path / "x", {"data": "Digits", "val_top1": "0.4"})
    assert [*table_cells(unvalidated)[0]] == ["run", "best val top-1 (%)", "test top-1 (%)"]


@pytest.mark.parametrize(
    ("facts", "column"),
    [({"model": "cifar_plain"}, "model"), ({"data": "Digits"}, "data"), ({"commit": "def"}, "commit")],
)
def test_a_difference_that_is_not_an_option_has_a_column(tmp_path: Path, facts: dict[str, str], column: str) -> None:
    row, other = table_cells(groups(tmp_path, {}, facts))
    assert list(row)[:2] == ["run", column] and row[column] != other[column]


def test_different_lengths_are_shown_unless_an_option_explains_them(tmp_path: Path) -> None:
    interrupted, complete = write_run(tmp_path / "a/version_0"), write_run(tmp_path / "b/version_0")
    lines = (interrupted / "metrics.csv").read_text().splitlines()
    (interrupted / "metrics.csv").write_text("\n".join(lines[:4]) + "\n")
    runs = [one(tmp_path / "x", "version_0"), one(tmp_path / "y", "version_0", options={"trainer.max_steps": 30})]
    assert "iterations" not in table_cells(group_runs(runs))[0]
    cells = table_cells(group_runs([read_run(interrupted), read_run(complete)]))
    assert sorted(row["iterations"] for row in cells) == ["10", "20"]


def test_seeds_are_mean_and_deviation(tmp_path: Path) -> None:
    runs = seeds(tmp_path, "cifar_resnet", 20, 0.9, 0.91, 0.92) + seeds(tmp_path, "cifar_plain", 20, 0.8)
    row, other = table_cells(group_runs(runs))
    assert (other["n"], other["test top-1 (%)"]) == ("3", "91.00 ± 1.00")
    assert (row["n"], row["test top-1 (%)"], row["paper top-1 (%)"]) == ("1", "80.00", "–")
    same = group_runs(seeds(tmp_path / "x", "cifar_resnet", 20, 0.9, 0.91))
    assert "n" not in table_cells(same)[0] and table_title(same).endswith("n = 2")
    partly = [one(tmp_path, f"p/version_{i}", seed=i, tested=i < 2, top1=0.5) for i in range(3)]
    assert table_cells(group_runs(partly))[0]["test top-1 (%)"] == "50.00 ± 0.00 (n = 2)"


def test_a_study_of_depth_shows_the_training_accuracy(tmp_path: Path) -> None:
    runs = [run for depth in (20, 56) for run in seeds(tmp_path, "cifar_plain", depth, 0.9)]
    assert table_cells(group_runs(runs))[0]["train top-1 (%)"] == "78.00"


def test_widths_are_not_a_study_of_depth(tmp_path: Path) -> None:
    width = "model.backbone.init_args.width"
    runs = [one(tmp_path, f"{filters}/version_0", depth=20, options={width: filters}) for filters in (16, 32)]
    assert not is_depth_study(group_runs(runs))
    assert is_depth_study(group_runs([*runs, one(tmp_path, "56/version_0", depth=56, options={width: 16})]))


def test_markdown_has_a_line_per_group_and_all_options(tmp_path: Path) -> None:
    facts = [{"options": {f"trainer.option{i}": number for i in range(MAX_OPTIONS + 2)}} for number in (1, 2)]
    lines = markdown(groups(tmp_path, *facts)).splitlines()
    assert len(lines) == 4 and lines[0].count("option") == MAX_OPTIONS + 2
    assert lines[2].startswith("| a/version_0 | 1 | 1 |")
    assert {line.count(" | ") for line in lines} == {MAX_OPTIONS + 5}


def test_the_terminal_shows_some_of_many_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = [{"options": {f"trainer.o{i}": number for i in range(MAX_OPTIONS + 2)}} for number in (1, 2)]
    print_report(comparison_table(groups(tmp_path, *facts)))
    shown = capsys.readouterr().out
    assert f"2 more differing options: o{MAX_OPTIONS}, o{MAX_OPTIONS + 1}" in shown and " o0 " in shown


# The plot


def plot(compared: list[Group], path: Path) -> np.ndarray:
    """The plot `(H, W, 3)`; any warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_comparison(compared, path)
    return np.asarray(Image.open(path)).astype(int)


def mask(image: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    return np.abs(image - color).max(axis=-1) < 12


@pytest.mark.parametrize(
    ("name", "count"), [("a", 1), ("a-$very_long$-name-" * 8, 3), ("a-$very_long$-name-" * 8, 10), ("花🌸\n", 2)]
)
def test_names_of_any_length_are_not_clipped(tmp_path: Path, name: str, count: int) -> None:
    runs = [one(tmp_path, f"{name}{i}/version_0", lr=0.1 * (i + 1), tested=i != 1) for i in range(count)]
    image = plot(group_runs(runs), tmp_path / "plot.png")
    border = np.concatenate([image[:2].reshape(-1, 3), image[-2:].reshape(-1, 3), image[:, :2].reshape(-1, 3)])
    assert (border.min(axis=-1) > 200).all(), "text touches the border"
    assert mask(image, BLUE).any() and mask(image, ORANGE).any()


def test_higher_accuracy_is_further_right(tmp_path: Path) -> None:
    image = plot(groups(tmp_path, {"val_top1": 0.9, "top1": 0.5}), tmp_path / "plot.png")
    upper = image[: len(image) // 2]
    assert mask(upper, BLUE).any(axis=0).nonzero()[0].min() > mask(upper, ORANGE).any(axis=0).nonzero()[0].max()


def test_runs_without_top1_are_plotted_by_the_monitored_metric(tmp_path: Path) -> None:
    runs = [one(tmp_path, f"{name}/version_0", depth=depth, lr=depth) for name, depth in (("a", 20), ("b", 56))]
    for run in runs:
        run.results.pop("top1")
        run.metrics["val/map"] = run.metrics.pop("val/top1")
    image = plot(group_runs(runs), tmp_path / "plot.png")
    assert mask(image, BLUE).any()


def test_runs_without_results_are_plotted(tmp_path: Path) -> None:
    run = one(tmp_path, "a/version_0", tested=False)
    run.metrics.pop("val/top1")
    assert plot(group_runs([run]), tmp_path / "plot.png").shape[2] == 3


def test_error_is_plotted_over_depth(tmp_path: Path) -> None:
    runs = [run for depth, top1 in ((20, 0.9), (56, 0.5)) for run in seeds(tmp_path, "cifar_plain", depth, top1)]
    runs += [run for depth in (20, 56, 1202) for run in seeds(tmp_path, "cifar_resnet", depth, 0.9, 0.92)]
    image = plot(group_runs(runs), tmp_path / "plot.png")
    test_panel = image[: int(0.85 * len(image)), image.shape[1] * 2 // 3 :]
    blue, orange = (mask(test_panel, color).any(axis=1).nonzero()[0] for color in (BLUE, ORANGE))
    assert len(blue) > 100 and len(orange) > 5
    assert blue.min() < orange.min() - 100
