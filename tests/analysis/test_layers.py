"""The numbers of layers, as a table and drawn."""

import csv
from pathlib import Path

import numpy as np
import pytest

from resnet_pl.analysis.layers import LayerMeasurements, gradients_picture, responses_picture, write_layers
from resnet_pl.reports.run_reader import Run

BLUE, ORANGE, GREEN = (31, 119, 180), (255, 127, 14), (44, 160, 44)


def net(
    name: str, values: list[float], plain: bool = False, run: str = "a", **columns: list[float]
) -> LayerMeasurements:
    backbone = {"class_path": name, "init_args": {"shortcut": "none" if plain else "A"}}
    made = Run(Path(f"runs/{run}/version_0/checkpoints/best.ckpt"), {"model": {"backbone": backbone}})
    named = {key: {f"layer{i}": v for i, v in enumerate(own)} for key, own in (columns or {"std": values}).items()}
    return LayerMeasurements(made, 1234, "5 images, val", named)


def count(picture: np.ndarray, colour: tuple[int, int, int]) -> int:
    """Pixels of just this colour."""
    return int((picture == colour).all(-1).sum())


def columns_of(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Where from left to right the lower half of a picture has the colour."""
    return (picture[len(picture) // 2 :] == colour).all(-1).any(0).nonzero()[0]


def test_the_table_has_a_row_a_layer(tmp_path: Path) -> None:
    nets = [net("one", [1.5, float("nan")]), net("zwei, \udcff", [0.125], plain=True, run="b")]
    write_layers(nets, tmp_path / "new/layers.csv")
    with (tmp_path / "new/layers.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["std"] for row in rows] == ["1.5", "nan", "0.125"]
    assert [(row["index"], row["layer"]) for row in rows] == [("1", "layer0"), ("2", "layer1"), ("1", "layer0")]
    assert rows[0]["net"] == "one" and rows[0]["step"] == "1234" and rows[0]["measured_on"] == "5 images, val"
    assert rows[2]["net"] == r"zwei, \udcff" and rows[2]["checkpoint"] == "runs/b/version_0/checkpoints/best.ckpt"


def test_one_colour_a_depth_and_plain_nets_dashed() -> None:
    solid = responses_picture([net("ResNet", [1.0] * 20)])
    dashed = responses_picture([net("ResNet", [1.0] * 20, plain=True)])
    assert 0 < len(columns_of(dashed, BLUE)) < 0.9 * len(columns_of(solid, BLUE))
    pair = responses_picture([net("a", [1.0] * 20), net("b", [2.0] * 20, plain=True)])
    assert count(pair, BLUE) > 1.5 * count(dashed, BLUE) and not count(pair, ORANGE)
    deeper = responses_picture([net("a", [1.0] * 20), net("b", [2.0] * 20, plain=True), net("c", [3.0] * 32)])
    assert count(deeper, ORANGE) and not count(deeper, GREEN)
    # A second net of the same depth and kind is told apart.
    seeds = responses_picture([net("a", [1.0] * 20), net("a", [2.0] * 20, run="b")])
    assert count(seeds, BLUE) and count(seeds, ORANGE)


def test_below_the_layers_are_sorted() -> None:
    values = [1.0, 3.0, 2.0, 5.0, 4.0]
    picture = responses_picture([net("a", values)])
    other = responses_picture([net("a", values[::-1])])
    half = picture.shape[0] // 2 + 60
    assert np.array_equal(picture[half:], other[half:]) and not np.array_equal(picture[:half], other[:half])
    heights = [(picture[half:, x] == BLUE).all(-1).nonzero()[0].min() for x in columns_of(picture[half:], BLUE)]
    assert heights[0] < heights[-1] and (np.diff(heights) >= -1).all()


@pytest.mark.filterwarnings("ignore:Data has no positive values")
@pytest.mark.parametrize("values", [[1e-8, 1.0, 300.0], [0.0, 0.0, 0.0], [float("nan")] * 3, [2.0]])
def test_gradients_of_any_size(values: list[float]) -> None:
    nets = [net("$a$_1", values, initial=values, trained=values[::-1])]
    picture = gradients_picture([*nets, net("b", values, plain=True, initial=values, trained=values)])
    assert picture.dtype == np.uint8 and picture.shape[2] == 3
    # The legend at least, and the bold lines where there is something to draw.
    assert count(picture, BLUE) > 50 and count(picture, ORANGE) > 20
    assert responses_picture([net("a", values)]).shape[1] == 1080
