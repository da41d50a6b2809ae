"""`curves` on the command line."""

import csv
from pathlib import Path

import pytest
from PIL import Image

from resnet_pl.cli.main import main
from tests.reports.made import write_run


def test_runs_are_drawn_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = write_run(tmp_path / "runs/a/version_0", "cifar_plain", tested=False)
    residual = write_run(tmp_path / "runs/b/version_0", train_top1=0.75)
    (tmp_path / "runs/c/version_0").mkdir(parents=True)
    assert main(["curves", str(tmp_path / "runs"), "--output", str(tmp_path / "out.png")]) == 0
    assert "left out: " in capsys.readouterr().out
    assert Image.open(tmp_path / "out.png").size == (1740, 720)
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["run"] for row in rows} == {str(plain), str(residual)}
    own = {(row["split"], int(row["step"])): float(row["error"]) for row in rows if row["run"] == str(residual)}
    assert own == pytest.approx({
        ("train", 8): 90, ("train", 9): 50, ("train", 18): 25, ("train", 19): 45, ("val", 9): 60, ("val", 19): 30,
    })  # fmt: skip
    assert main(["curves", str(residual), "--output", str(tmp_path / "one.png")]) == 0
    assert Image.open(tmp_path / "one.png").size == (1080, 720)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--output", "a.pdf"], "a.pdf is no PNG"),
        (["--nonsense"], "curves: "),
    ],
)
def test_what_cannot_be_drawn_is_said_in_a_line_or_two(
    args: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "version_0")
    assert main(["curves", ".", *args]) == 2
    err = capsys.readouterr().err
    assert message in err and len(err.strip().splitlines()) <= 2
    assert [path.name for path in tmp_path.iterdir()] == ["version_0"]
