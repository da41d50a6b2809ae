"""The comparison table and its picture, from runs with known numbers."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnet_pl.reports.comparison import cells, error_over_depth, group_runs, label_groups, markdown
from resnet_pl.reports.run_reader import Run, read_run
from tests.reports.made import write_run


def seeds(folder: Path, net: str, depth: int, *top1: float, **facts: object) -> list[Run]:
    """Runs of one net, seed by seed."""
    made = folder / f"{net}-{depth}-{'-'.join(map(str, facts.values()))}"
    paths = [write_run(made / f"version_{i}", net, depth, seed=i, top1=share, **facts) for i, share in enumerate(top1)]
    return [read_run(path) for path in paths]


def test_seeds_are_taken_together(tmp_path: Path) -> None:
    runs = seeds(tmp_path, "cifar_resnet", 20, 0.90, 0.92, 0.94) + seeds(tmp_path, "cifar_plain", 20, 0.8)
    plain, residual = group_runs(runs)
    row = residual.row()
    # Errors of 10, 8 and 6 per cent: deviations of 2, 0 and 2 over n − 1 = 2.
    assert (row["net"], row["data"], row["n"], row["seeds"]) == ("cifar_resnet 20 (A)", "CIFAR10", 3, "0 1 2")
    assert [row[key] for key in ("test_error", "test_error_std", "best")] == pytest.approx([8, 2, 6])
    assert [row[key] for key in ("train_error", "train_error_std")] == pytest.approx([22, 0])
    assert (row["paper"], row["iterations"], row["minutes"], row["parameters"]) == (8.75, 20, 3, 20_000)
    assert (row["images_per_second"], row["commit"]) == (300, "abc")
    assert plain.row()["test_error_std"] is None and plain.row()["paper"] is None
    texts = [cells(group) for group in (plain, residual)]
    assert [text["test error (%)"] for text in texts] == ["20.00", "8.00 ± 2.00"]
    assert [text["paper"] for text in texts] == ["–", "8.75"]


def test_rows_go_by_kind_and_depth_and_say_what_tells_them_apart(tmp_path: Path) -> None:
    runs = [
        *seeds(tmp_path, "cifar_resnet", 110, 0.9),
        *seeds(tmp_path, "cifar_resnet", 20, 0.9, lr=0.1),
        *seeds(tmp_path, "cifar_resnet", 20, 0.8, lr=0.2),
        *seeds(tmp_path, "cifar_resnet", 20, 0.9, shortcut="B"),
        *seeds(tmp_path, "cifar_plain", 56, 0.9),
    ]
    names = [group.net for group in group_runs(runs)]
    assert names[0] == "cifar_plain 56"
    assert set(names) == {
        "cifar_plain 56", "cifar_resnet 110 (A)", "cifar_resnet 20 (A), lr 0.1", "cifar_resnet 20 (A), lr 0.2",
        "cifar_resnet 20 (B)",
    }  # fmt: skip


def test_both_forms_of_the_model_are_one_group(tmp_path: Path) -> None:
    runs = seeds(tmp_path, "cifar_resnet", 20, 0.9)
    runs += seeds(tmp_path, "cifar_resnet", 20, 0.8, classifier="resnet_pl.ImageClassifier")
    assert [group.net for group in group_runs(runs)] == ["cifar_resnet 20 (A)"]
    runs += seeds(tmp_path, "cifar_resnet", 20, 0.7, classifier="mine.Classifier")
    assert {group.net: len(group.runs) for group in group_runs(runs)} == {
        "cifar_resnet 20 (A), model ImageClassifier": 2,
        "cifar_resnet 20 (A), model Classifier": 1,
    }


def test_markdown_has_a_line_a_group(tmp_path: Path) -> None:
    lines = markdown(group_runs(seeds(tmp_path, "cifar_resnet", 20, 0.9, 0.91))).splitlines()
    assert len(lines) == 3 and lines[2].startswith("| cifar_resnet 20 (A) | CIFAR10 | 2 | 9.50 ± 0.71 | 9.00 | 8.75 |")


def test_names_for_the_curves_tell_data_sets_apart(tmp_path: Path) -> None:
    runs = seeds(tmp_path, "cifar_plain", 20, 0.9, 0.8) + seeds(tmp_path, "cifar_plain", 20, 0.9, data="Digits")
    found = label_groups(group_runs(runs + seeds(tmp_path, "cifar_resnet", 20, 0.9)))
    assert set(found) == {"cifar_plain 20, CIFAR10", "cifar_plain 20, Digits", "cifar_resnet 20 (A), CIFAR10"}
    assert len(found["cifar_plain 20, CIFAR10"]) == 2
    assert set(label_groups(group_runs(runs[:2]))) == {"cifar_plain 20"}


def heights(path: Path, colour: tuple[int, int, int]) -> np.ndarray:
    """Rows of the left panel, legend apart, that have a colour, seen from the top."""
    picture = np.asarray(Image.open(path)).astype(int)[:560, :700]
    return np.nonzero((np.abs(picture - colour).max(axis=-1) < 12).any(axis=1))[0]


def test_error_is_drawn_over_depth_and_the_higher_stands_higher(tmp_path: Path) -> None:
    runs = [run for depth, top1 in ((20, 0.9), (56, 0.5)) for run in seeds(tmp_path, "cifar_plain", depth, top1)]
    runs += [run for depth in (20, 56) for run in seeds(tmp_path, "cifar_resnet", depth, 0.9, 0.92)]
    error_over_depth(group_runs(runs), tmp_path / "nets.png")
    blue, orange = (heights(tmp_path / "nets.png", colour) for colour in ((31, 119, 180), (255, 127, 14)))
    assert len(blue) > 100 and len(orange) > 5
    assert blue.min() < orange.min() - 100


@pytest.mark.parametrize("count", [1, 2])
def test_nets_of_one_depth_are_drawn_side_by_side(tmp_path: Path, count: int) -> None:
    runs = [run for net in ("cifar_plain", "cifar_resnet")[:count] for run in seeds(tmp_path, net, 20, 0.9)]
    error_over_depth(group_runs(runs), tmp_path / "nets.png")
    assert len(heights(tmp_path / "nets.png", (31, 119, 180))) > 3
