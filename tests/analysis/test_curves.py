"""Training curves of runs, and `paper curves` on the command line."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnet_pl.analysis.curves import training_curves
from resnet_pl.cli.main import main
from resnet_pl.reports.run_reader import Run, read_metrics
from resnet_pl.utils import UserError
from tests.reports.made import write_metrics, write_run


def run(folder: Path, metrics: str | None = None, plain: bool = False, **shape: float) -> Run:
    """A run with these metrics, by default those of `write_metrics`."""
    if metrics is None:
        write_metrics(folder / "metrics.csv", **shape)
    else:
        folder.mkdir(exist_ok=True)
        (folder / "metrics.csv").write_text(metrics)
    backbone = {"class_path": "cifar_plain" if plain else "cifar_resnet"}
    return Run(folder, {"model": {"backbone": backbone}}, {}, [], read_metrics(folder / "metrics.csv"))


def colored(path: Path) -> np.ndarray:
    """Where a plot has the blue of the first run."""
    red, _, blue = np.moveaxis(np.asarray(Image.open(path)).astype(int), -1, 0)
    return blue - red > 60


def test_one_run_is_plotted(tmp_path):
    training_curves({"digits": [run(tmp_path)]}, tmp_path / "curves.png")
    image = Image.open(tmp_path / "curves.png")
    assert image.mode == "RGB" and image.size == (1080, 720)
    assert colored(tmp_path / "curves.png").sum() > 1000


def test_every_run_has_a_color(tmp_path):
    runs = {f"run {index}": [run(tmp_path / f"{index}", floor=0.05 * index)] for index in range(3)}
    training_curves(runs, tmp_path / "curves.png")
    image = np.asarray(Image.open(tmp_path / "curves.png")).astype(int)
    for color in [(31, 119, 180), (255, 127, 14), (44, 160, 44)]:
        assert (np.abs(image - color).max(axis=-1) < 12).sum() > 500


def test_validation_is_bolder_than_training(tmp_path):
    inks = {}
    for part in ("train", "val"):
        training_curves({"": [run(tmp_path, f"step,{part}/top1\n0,0.5\n100,0.5\n")]}, tmp_path / f"{part}.png")
        # Outside the legend a column of the plot crosses only this line.
        inks[part] = colored(tmp_path / f"{part}.png")[:, 400].sum()
    assert inks["val"] >= inks["train"] + 2 > 2


def test_a_decreasing_error_goes_down(tmp_path):
    training_curves({"": [run(tmp_path, "step,val/top1\n0,0.2\n100,0.8\n")]}, tmp_path / "curves.png")
    inked = colored(tmp_path / "curves.png")
    early, late = (np.nonzero(inked[:, x])[0].mean() for x in (250, 700))
    assert early < late


def test_a_single_point_is_visible(tmp_path):
    training_curves({"one": [run(tmp_path, epochs=1)]}, tmp_path / "curves.png")
    assert colored(tmp_path / "curves.png")[:, 980:].sum() > 100


@pytest.mark.parametrize("name", ["plain-56 $x_", "жираф", "_hidden", ""])
def test_any_name_of_a_run_is_in_the_legend(tmp_path, name):
    training_curves({name: [run(tmp_path)]}, tmp_path / "named.png")
    assert colored(tmp_path / "named.png")[60:160, 700:].any(), "no line in the legend"


@pytest.mark.filterwarnings("error")
def test_many_runs_with_long_names_fit(tmp_path):
    runs = {f"花 a-very-long-name-{'x' * 80}-{index}": [run(tmp_path / f"{index}")] for index in range(20)}
    training_curves(runs, tmp_path / "curves.png")
    # Vertical lines of the grid show that the panel takes most of the width.
    grid = np.abs(np.asarray(Image.open(tmp_path / "curves.png")).astype(int) - (216, 222, 228)).max(axis=-1) < 12
    assert np.ptp((grid.sum(axis=0) > 100).nonzero()[0]) > 700


@pytest.mark.parametrize("values", [("nan", "nan"), ("1", "1"), ("0", "0")])
def test_constant_and_undefined_values_are_plotted(tmp_path, values):
    made = run(tmp_path, "step,val/top1\n" + "".join(f"{i},{value}\n" for i, value in enumerate(values)))
    training_curves({"flat": [made]}, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").exists()


def test_missing_metrics_are_named(tmp_path):
    with pytest.raises(UserError, match="neither train/top1 nor val/top1\nit has lr, train/loss"):
        training_curves({"a": [run(tmp_path, "step,train/loss,lr\n0,1,0.1\n")]}, tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_plain_networks_are_in_the_left_panel(tmp_path):
    plain, residual = run(tmp_path / "p", floor=0.4, plain=True), run(tmp_path / "r", floor=0.0)
    training_curves({"r": [residual], "p": [plain]}, tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").size == (1740, 720)
    # The last values, below the legends: the plain error of 52 % left, the residual error of 12 % right.
    left, right = np.hsplit(colored(tmp_path / "curves.png")[200:], 2)
    lowest = [np.nonzero(panel.any(axis=1))[0].max() for panel in (left, right)]
    assert lowest[0] < lowest[1] - 100
    training_curves({"p": [plain]}, tmp_path / "one.png")
    assert Image.open(tmp_path / "one.png").size == (1080, 720)


def test_panels_share_the_axis_of_the_longest_run(tmp_path):
    short, long = run(tmp_path / "s", epochs=4, plain=True), run(tmp_path / "l", epochs=40)
    training_curves({"s": [short], "l": [long]}, tmp_path / "curves.png")
    left, right = np.hsplit(colored(tmp_path / "curves.png")[200:], 2)
    widths = [np.ptp(np.nonzero(panel.any(axis=0))[0]) for panel in (left, right)]
    assert widths[0] < widths[1] / 5 and widths[1] > 600


def test_seeds_are_plotted_as_mean_and_band(tmp_path):
    seeds = [
        run(tmp_path / "0", "step,val/top1\n0,0.2\n50,0.2\n"),
        run(tmp_path / "1", "step,val/top1\n0,0.6\n50,0.6\n100,0.9\n"),
    ]
    training_curves({"a": seeds}, tmp_path / "seeds.png")
    image = np.asarray(Image.open(tmp_path / "seeds.png")).astype(int)
    band = np.abs(image - (222, 235, 244)).max(axis=-1) < 6
    assert band.sum() > 10_000, "no band"
    # The mean, up to step 50: step 100 is missing in one of the runs.
    training_curves({"a": [run(tmp_path / "mean", "step,val/top1\n0,0.4\n50,0.4\n")]}, tmp_path / "mean.png")
    drawn, expected = (colored(tmp_path / name)[:, :700] for name in ("seeds.png", "mean.png"))
    assert expected.any() and (drawn == expected).mean() > 0.999


# On the command line


def test_runs_are_plotted_and_saved_as_csv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = write_run(tmp_path / "runs/a/version_0", "cifar_plain", tested=False)
    residual = write_run(tmp_path / "runs/b/version_0", train_top1=0.75)
    (tmp_path / "runs/c/version_0").mkdir(parents=True)
    other = write_run(tmp_path / "runs/other/version_0", tested=False) / "metrics.csv"
    other.write_text("epoch,step,val/iou\n0,9,0.5\n")
    assert main(["paper", "curves", str(tmp_path / "runs"), "--output", str(tmp_path / "out.png")]) == 0
    out = capsys.readouterr().out
    assert "Skipped: " in out and f"Skipped: {other} has neither train/top1 nor val/top1" in out
    assert Image.open(tmp_path / "out.png").size == (1740, 720)
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["run"] for row in rows} == {str(plain), str(residual)}
    own = {(row["split"], int(row["step"])): float(row["error"]) for row in rows if row["run"] == str(residual)}
    assert own == pytest.approx({
        ("train", 8): 90, ("train", 9): 50, ("train", 18): 25, ("train", 19): 45, ("val", 9): 60, ("val", 19): 30,
    })  # fmt: skip
    assert main(["paper", "curves", str(residual), "--output", str(tmp_path / "one.png")]) == 0
    assert Image.open(tmp_path / "one.png").size == (1080, 720)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--output", "a.pdf"], "a.pdf"),
        (["--nonsense"], "paper curves: "),
    ],
)
def test_wrong_options_are_an_error_of_at_most_two_lines(
    args: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "version_0")
    assert main(["paper", "curves", ".", *args]) == 2
    err = capsys.readouterr().err
    assert message in err and len(err.strip().splitlines()) <= 2
    assert [path.name for path in tmp_path.iterdir()] == ["version_0"]
