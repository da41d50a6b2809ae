"""Metrics files, whole and torn, and the curves drawn from them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnet_pl.errors import UserError
from resnet_pl.reports.curves import _several, read_metrics, training_curves

HEADER = "epoch,step,train/loss,train/top1,val/loss,val/top1,lr"


def write_run(path: Path, epochs: int = 4, floor: float = 0.1) -> Path:
    """A metrics.csv with the rows of training and validation apart, as Lightning writes it."""
    lines = [HEADER]
    for epoch in range(epochs):
        step, error = 10 * epoch + 9, floor + 0.8 * 0.5**epoch
        lines += [f"{epoch},{step},{2 * error},{1 - error},,,0.1", f"{epoch},{step},,,{3 * error},{0.98 - error},"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{line}\r\n" for line in lines).encode())
    return path


def coloured(path: Path) -> np.ndarray:
    """Where a picture has the blue of the first run."""
    red, _, blue = np.moveaxis(np.asarray(Image.open(path)).astype(int), -1, 0)
    return blue - red > 60


def test_every_metric_is_read_where_it_was_logged(tmp_path):
    metrics = read_metrics(write_run(tmp_path / "metrics.csv"))
    assert sorted(metrics) == sorted(set(HEADER.split(",")) - {"step"})
    for name in ("train/loss", "val/top1", "lr"):
        steps, values = metrics[name]
        assert steps.tolist() == [9, 19, 29, 39] and steps.dtype == np.int64
        assert values.shape == (4,) and values.dtype == np.float64
    assert metrics["train/top1"][1][0] == pytest.approx(0.1)
    assert metrics["val/loss"][1] == pytest.approx([2.7, 1.5, 0.9, 0.6])


@pytest.mark.parametrize("torn", ["4,49,0.3,0.9", "4,49,0.3,0.9,0.1,0.2,0.", "4", "4,49,0.3,,,,0.1\r", "\0\0\0\0"])
def test_torn_last_line_is_dropped(tmp_path, torn):
    path = write_run(tmp_path / "metrics.csv")
    path.write_text(path.read_text(encoding="utf-8") + torn, encoding="utf-8", newline="")
    assert read_metrics(path)["train/loss"][0].tolist() == [9, 19, 29, 39]


@pytest.mark.parametrize(
    "line", ["4,49,0.3", "4,49,abc,,,,", "4,,0.3,,,,", "4,inf,0.3,,,,", "\0\0\0", "1,2,3,4,5,6,7,8"]
)
def test_damage_within_is_named_with_its_line(tmp_path, line):
    path = tmp_path / "metrics.csv"
    path.write_text(f"{HEADER}\n0,9,1,,,,\n{line}\n1,19,1,,,,\n")
    with pytest.raises(UserError, match=r"metrics\.csv, line 3 is damaged") as error:
        read_metrics(path)
    assert str(error.value).count("\n") <= 1


def test_blank_lines_and_nan_are_no_damage(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text(f"{HEADER}\n0,9,nan,,,,\n\n1,19.0,2,,,,\n")
    assert np.isnan(read_metrics(path)["train/loss"][1][0])


def test_step_logged_again_after_a_resume_counts_as_last_logged(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,train/loss\n9,1\n19,2\n29,3\n19,5\n29,6\n39,7\n")
    steps, values = read_metrics(path)["train/loss"]
    assert steps.tolist() == [9, 19, 29, 39] and values.tolist() == [1, 5, 6, 7]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("", "names its columns"),
        (HEADER, "names its columns"),
        ("a,b\n1,2\n", "names its columns"),
        (f"{HEADER}\n", "no metrics yet"),
        (f"{HEADER}\n0,9,0.", "no metrics yet"),
        ("x" * 200_000 + "\n", "cannot be read"),
    ],
)
def test_unusable_file_is_named(tmp_path, content, message):
    path = tmp_path / "metrics.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        read_metrics(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("metric", ["error", "top1", "loss"])
def test_one_run_is_drawn(tmp_path, metric):
    training_curves({"digits": write_run(tmp_path / "metrics.csv")}, tmp_path / "curves.png", metric)
    picture = Image.open(tmp_path / "curves.png")
    assert picture.mode == "RGB" and picture.size == (1080, 720)
    assert coloured(tmp_path / "curves.png").sum() > 1000


def test_every_run_has_its_colour(tmp_path):
    runs = {f"run {index}": write_run(tmp_path / f"{index}" / "metrics.csv", floor=0.05 * index) for index in range(3)}
    training_curves(runs, tmp_path / "curves.png")
    picture = np.asarray(Image.open(tmp_path / "curves.png")).astype(int)
    for colour in [(31, 119, 180), (255, 127, 14), (44, 160, 44)]:
        assert (np.abs(picture - colour).max(axis=-1) < 12).sum() > 500


def test_validation_is_bolder_than_training(tmp_path):
    path = tmp_path / "metrics.csv"
    inks = {}
    for part in ("train", "val"):
        path.write_text(f"step,{part}/top1\n0,0.5\n100,0.5\n")
        training_curves({"": path}, tmp_path / f"{part}.png")
        # Away from the legend, a column of the picture crosses the line and nothing else that is blue.
        inks[part] = coloured(tmp_path / f"{part}.png")[:, 400].sum()
    assert inks["val"] >= inks["train"] + 2 > 2


def test_falling_error_and_rising_top1_go_opposite_ways(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,val/top1\n0,0.2\n100,0.8\n")
    ends = {}
    for metric in ("error", "top1"):
        training_curves({"": path}, tmp_path / "curves.png", metric)
        inked = coloured(tmp_path / "curves.png")
        ends[metric] = [np.nonzero(inked[:, x])[0].mean() for x in (250, 700)]
    assert ends["error"][0] < ends["error"][1] and ends["top1"][0] > ends["top1"][1]


def test_single_point_is_visible(tmp_path):
    path = write_run(tmp_path / "metrics.csv", epochs=1)
    training_curves({"one": path}, tmp_path / "curves.png")
    assert coloured(tmp_path / "curves.png")[:, 980:].sum() > 100


def test_folder_of_a_run_will_do(tmp_path):
    write_run(tmp_path / "run" / "metrics.csv")
    training_curves({"a": tmp_path / "run"}, tmp_path / "folder.png")
    training_curves({"a": tmp_path / "run" / "metrics.csv"}, tmp_path / "file.png")
    assert (tmp_path / "folder.png").read_bytes() == (tmp_path / "file.png").read_bytes()


@pytest.mark.parametrize("name", ["plain-56 $x_", "жираф", "_hidden", ""])
def test_any_name_of_a_run_is_in_the_legend(tmp_path, name):
    path = write_run(tmp_path / "metrics.csv")
    training_curves({name: path}, tmp_path / "named.png")
    assert coloured(tmp_path / "named.png")[60:160, 700:].any(), "no line in the legend"


@pytest.mark.parametrize("values", [("nan", "nan"), ("1", "1"), ("0", "0")])
@pytest.mark.parametrize("metric", ["error", "top1", "loss"])
def test_flat_and_undefined_values_are_drawn(tmp_path, values, metric):
    path = tmp_path / "metrics.csv"
    path.write_text("step,val/top1,val/loss\n" + "".join(f"{i},{value},{value}\n" for i, value in enumerate(values)))
    training_curves({"flat": path}, tmp_path / "curves.png", metric)
    assert (tmp_path / "curves.png").exists()


def test_errors_say_what_is_missing(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,train/loss,lr\n0,1,0.1\n")
    with pytest.raises(UserError, match="neither train/top1 nor val/top1; it has lr, train/loss"):
        training_curves({"a": path}, tmp_path / "curves.png")
    with pytest.raises(UserError, match="no runs"):
        training_curves({}, tmp_path / "curves.png")
    with pytest.raises(UserError, match="cannot be read"):
        training_curves({"a": tmp_path / "nowhere"}, tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_plain_nets_stand_left_of_the_others(tmp_path):
    plain, residual = (
        write_run(tmp_path / name / "metrics.csv", floor=floor) for name, floor in (("p", 0.4), ("r", 0.0))
    )
    training_curves({"r": residual, "p": plain}, tmp_path / "curves.png", plain=["p"])
    assert Image.open(tmp_path / "curves.png").size == (1740, 720)
    # Each panel's last value, below its legend: the plain net's error of 52 % left, the residual net's of 12 % right.
    left, right = np.hsplit(coloured(tmp_path / "curves.png")[200:], 2)
    lowest = [np.nonzero(panel.any(axis=1))[0].max() for panel in (left, right)]
    assert lowest[0] < lowest[1] - 100
    training_curves({"p": plain}, tmp_path / "one.png", plain=["p"])
    assert Image.open(tmp_path / "one.png").size == (1080, 720)


def test_panels_share_the_longest_runs_axis(tmp_path):
    short, long = (write_run(tmp_path / name / "metrics.csv", epochs=epochs) for name, epochs in (("s", 4), ("l", 40)))
    training_curves({"s": short, "l": long}, tmp_path / "curves.png", plain=["s"])
    left, right = np.hsplit(coloured(tmp_path / "curves.png")[200:], 2)
    widths = [np.ptp(np.nonzero(panel.any(axis=0))[0]) for panel in (left, right)]
    assert widths[0] < widths[1] / 5 and widths[1] > 600


def test_seeds_are_their_mean_in_a_band(tmp_path):
    for seed, values in enumerate(["0.2", "0.6"]):
        write = tmp_path / str(seed) / "metrics.csv"
        write.parent.mkdir()
        write.write_text(f"step,val/top1\n0,{values}\n50,{values}\n" + ("100,0.9\n" if seed else ""))
    training_curves({"a": [tmp_path / "0", tmp_path / "1"]}, tmp_path / "seeds.png")
    both = _several([tmp_path / "0", tmp_path / "1"], "error")
    steps, means, least, greatest = (array.tolist() for array in both["val"])
    assert steps == [0, 50]
    assert (means, least, greatest) == (pytest.approx([60, 60]), pytest.approx([40, 40]), pytest.approx([80, 80]))
    picture = np.asarray(Image.open(tmp_path / "seeds.png")).astype(int)
    assert (np.abs(picture - (222, 235, 244)).max(axis=-1) < 6).sum() > 10_000, "no band"
