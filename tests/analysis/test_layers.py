"""Per-layer measurements as CSV and as plots."""

import csv
from pathlib import Path

import numpy as np
import pytest

from resnet_pl.analysis.layers import LayerMeasurements, plot_gradients, plot_responses, write_layers
from resnet_pl.reports.run_reader import Run

BLUE, ORANGE, GREEN = (31, 119, 180), (255, 127, 14), (44, 160, 44)


def measured(
    name: str, values: list[float], plain: bool = False, run: str = "a", **columns: list[float]
) -> LayerMeasurements:
    backbone = {"class_path": name, "init_args": {"shortcut": "none" if plain else "A"}}
    made = Run(Path(f"runs/{run}/version_0/checkpoints/best.ckpt"), {"model": {"backbone": backbone}})
    named = {key: {f"layer{i}": v for i, v in enumerate(own)} for key, own in (columns or {"std": values}).items()}
    return LayerMeasurements(made, 1234, "5 images, val", named)


def count(image: np.ndarray, color: tuple[int, int, int]) -> int:
    """Number of pixels of exactly this color."""
    return int((image == color).all(-1).sum())


def columns_of(image: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """The columns of the lower half of a plot that have the color."""
    return (image[len(image) // 2 :] == color).all(-1).any(0).nonzero()[0]


def test_the_csv_has_one_row_per_layer(tmp_path: Path) -> None:
    measurements = [measured("one", [1.5, float("nan")]), measured("zwei, \udcff", [0.125], plain=True, run="b")]
    write_layers(measurements, tmp_path / "new/layers.csv")
    with (tmp_path / "new/layers.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["std"] for row in rows] == ["1.5", "nan", "0.125"]
    assert [(row["index"], row["layer"]) for row in rows] == [("1", "layer0"), ("2", "layer1"), ("1", "layer0")]
    assert rows[0]["model"] == "one" and rows[0]["step"] == "1234" and rows[0]["measured_on"] == "5 images, val"
    assert rows[2]["model"] == r"zwei, \udcff" and rows[2]["checkpoint"] == "runs/b/version_0/checkpoints/best.ckpt"


def test_one_color_per_depth_and_plain_networks_dashed() -> None:
    solid = plot_responses([measured("ResNet", [1.0] * 20)])
    dashed = plot_responses([measured("ResNet", [1.0] * 20, plain=True)])
    assert 0 < len(columns_of(dashed, BLUE)) < 0.9 * len(columns_of(solid, BLUE))
    pair = plot_responses([measured("a", [1.0] * 20), measured("b", [2.0] * 20, plain=True)])
    assert count(pair, BLUE) > 1.5 * count(dashed, BLUE) and not count(pair, ORANGE)
    deeper = plot_responses(
        [measured("a", [1.0] * 20), measured("b", [2.0] * 20, plain=True), measured("c", [3.0] * 32)]
    )
    assert count(deeper, ORANGE) and not count(deeper, GREEN)
    # A second network of the same depth and kind has another color.
    seeds = plot_responses([measured("a", [1.0] * 20), measured("a", [2.0] * 20, run="b")])
    assert count(seeds, BLUE) and count(seeds, ORANGE)


def test_layers_are_sorted_in_the_lower_panel() -> None:
    values = [1.0, 3.0, 2.0, 5.0, 4.0]
    image = plot_responses([measured("a", values)])
    other = plot_responses([measured("a", values[::-1])])
    half = image.shape[0] // 2 + 60
    assert np.array_equal(image[half:], other[half:]) and not np.array_equal(image[:half], other[:half])
    heights = [(image[half:, x] == BLUE).all(-1).nonzero()[0].min() for x in columns_of(image[half:], BLUE)]
    assert heights[0] < heights[-1] and (np.diff(heights) >= -1).all()


@pytest.mark.filterwarnings("ignore:Data has no positive values")
@pytest.mark.parametrize("values", [[1e-8, 1.0, 300.0], [0.0, 0.0, 0.0], [float("nan")] * 3, [2.0]])
def test_gradients_of_any_size(values: list[float]) -> None:
    measurements = [measured("$a$_1", values, initial=values, trained=values[::-1])]
    image = plot_gradients([*measurements, measured("b", values, plain=True, initial=values, trained=values)])
    assert image.dtype == np.uint8 and image.shape[2] == 3
    # At least the legend, and the bold lines if there are positive values.
    assert count(image, BLUE) > 50 and count(image, ORANGE) > 20
    assert plot_responses([measured("a", values)]).shape[1] == 1080
