"""Training and validation error of several runs over iterations, in the style of Figures 4 and 6, as PNG and CSV.

Training is thin, validation bold; plain nets stand left and residual ones right where there are both; seeds are drawn
as their mean.
"""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from resnet_pl.reports.comparison import grouped, named
from resnet_pl.reports.curves import training_curves, write_curves
from resnet_pl.reports.records import read_runs
from resnet_pl.utils import UserError


def add_arguments(parser: ArgumentParser) -> None:
    """See the package."""
    parser.add_argument("runs", nargs="+", type=str, help="run folders, or folders above them; finished or not")
    where = "the picture; the numbers are written beside it as .csv"
    parser.add_argument("--output", type=str, default="curves.png", help=where)


def run(settings: Namespace) -> None:
    """Draws the runs among and below the paths."""
    picture = Path(settings.output)
    if picture.suffix != ".png":
        raise UserError(f"--output: {picture} is no PNG\ngive a name that ends in .png, such as curves.png")
    runs, lines = read_runs(map(Path, settings.runs), tested=False)
    training_curves(named(grouped(runs)), picture)
    write_curves(runs, picture.with_suffix(".csv"))
    for line in lines:
        print(line)
    print(f"written to {picture} and {picture.with_suffix('.csv')}")
