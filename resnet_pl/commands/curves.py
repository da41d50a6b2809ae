"""Training and validation error of several runs over iterations, in the style of Figures 4 and 6, as PNG and CSV.

Training is thin, validation bold; plain nets stand left and residual ones right where there are both; seeds are drawn
as their mean.
"""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from resnet_pl.errors import UserError
from resnet_pl.reports.comparison import curves_of, grouped
from resnet_pl.reports.curves import training_curves, write_curves
from resnet_pl.reports.records import read_runs


def add_arguments(parser: ArgumentParser) -> None:
    """See the package."""
    parser.add_argument("runs", nargs="+", type=str, help="run folders, or folders above them; finished or not")
    parser.add_argument("--metric", choices=["error", "top1", "loss"], default="error", help="what to draw")
    where = "the picture; the numbers are written beside it as .csv"
    parser.add_argument("--output", type=str, default="curves.png", help=where)


def run(settings: Namespace) -> None:
    """Draws the runs among and below the paths."""
    picture = Path(settings.output)
    if picture.suffix != ".png":
        raise UserError(f"--output: {picture} is no PNG\ngive a name that ends in .png, such as curves.png")
    runs, lines = read_runs(map(Path, settings.runs), tested=False)
    paths, plain = curves_of(grouped(runs))
    training_curves(paths, picture, settings.metric, plain)
    write_curves([run.path for run in runs], picture.with_suffix(".csv"), settings.metric)
    for line in lines:
        print(line)
    print(f"written to {picture} and {picture.with_suffix('.csv')}")
