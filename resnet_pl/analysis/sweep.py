"""Train combinations of option values, each in its own process, compare the runs, and test the best setting.

--grid trains every combination of values. --search tries --trials settings, which Optuna draws from ranges and lists.
The best mean validation over the seeds is chosen; only the runs of this setting are tested, at the end. Completed runs
are skipped, interrupted runs resume, and a failed run does not stop the sweep. The same command can run several times
at once, also on machines that share the folder: each process takes the next free run. Runs are identified by their
command line: after a change inside a configuration file, use another --name.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser, Namespace

from resnet_pl.analysis.grid import grid_values, make_run
from resnet_pl.analysis.jobs import Jobs
from resnet_pl.analysis.search import Search
from resnet_pl.analysis.selection import finish
from resnet_pl.analysis.tasks import Task, TaskList
from resnet_pl.command_line import CommandLine
from resnet_pl.types import PositiveInt
from resnet_pl.utils import UserError, counted, shell_command

# Options that only a search has, with their defaults.
SEARCH_OPTIONS = {"trials": 20, "sampler": "tpe", "pruner": "none", "storage": None}


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options of `sweep`."""
    listed = {"action": "append", "type": str, "default": []}
    config = "configuration file; later files override earlier ones, and the values of the sweep override files"
    parser.add_argument("--config", **listed, help=config)
    grid = (
        "an option of fit and its values, such as model.backbone.depth=20,56; values of the first --grid vary slowest. "
        "With --search: the seeds that each setting is trained with, seed_everything=0,1,2"
    )
    parser.add_argument("--grid", **listed, metavar="KEY=VALUE,…", help=grid)
    search = (
        "an option of fit and its range: 0.0:0.2, log:0.001:0.3 for a logarithmic one, 16:64 for whole numbers (both "
        "ends without a point); or its values, such as SGD,Adam"
    )
    parser.add_argument("--search", **listed, metavar="KEY=LOW:HIGH", help=search)
    parser.add_argument("--trials", type=PositiveInt, default=20, help="number of settings that a search tries")
    parser.add_argument("--sampler", type=Literal["tpe", "random"], default="tpe", help="how a search draws settings")
    pruner = "stops runs whose monitored metric is worse than that of others at the same epoch"
    parser.add_argument("--pruner", type=Literal["none", "median", "hyperband"], default="none", help=pruner)
    storage = "database of the trials; default: the file study.journal in the folder of the sweep"
    parser.add_argument("--storage", type=str | None, default=None, metavar="URL", help=storage)
    parser.add_argument("--name", type=str, default="sweep", help="name of the sweep; runs are in runs/NAME/")
    jobs = "number of runs in parallel; several runs use one GPU each"
    parser.add_argument("--jobs", type=PositiveInt, default=1, help=jobs)
    parser.add_argument("--test", action="store_true", help="test all runs, not only those of the best setting")
    keep = "of which runs the checkpoints stay after the last run; results and metrics always stay"
    parser.add_argument("--keep", type=Literal["all", "best"], default="all", help=keep)
    dry_run = (
        "print one command line per run of a grid, or the one of a search, for a job scheduler, and exit; the same "
        "command without it then tests and compares the runs"
    )
    parser.add_argument("--print", action="store_true", help=dry_run)
    parser.add_argument("options", nargs="*", type=str, help="after --: options of fit for every run")


def run(settings: Namespace) -> int:
    """Runs the command; returns 1 if a run failed or is missing in the table."""
    folder = Path("runs") / settings.name
    grid = grid_values(settings.grid, settings.options)
    search = Search(settings, grid, folder) if settings.search else None
    tasks = _grid_tasks(settings, grid, folder) if search is None else []
    if settings.print:
        # What a search tries depends on its results: each job of the scheduler starts the same command.
        every = [settings.command_line.replace(" --print", "")]
        remaining = [shell_command(run.command()) for task in tasks for run in task.runs if not run.trained()]
        print(*(every if search else remaining), sep="\n")
        return 0
    # The URL of a database can have a password.
    command = re.sub(r"(://[^:/@\s]*):[^@\s]*@", r"\1:***@", settings.command_line)
    jobs = Jobs(folder / "logs", settings.jobs, command)
    if search:
        search.open()
    source = search or TaskList(tasks, jobs.logs)
    total, noun = (settings.trials, "trial") if search else (len(tasks), "run")
    jobs.log(f"{counted(total, noun)}, {total - source.left} already completed, {jobs.count} in parallel")
    failed = jobs.run(source)
    if search and search.has_failed():
        print(f"The search ends, because its first {len(failed)} trials have failed.")
    code = finish(search.tasks() if search else tasks, failed, jobs, folder, settings.test, settings.keep)
    if search:
        search.plot()
    return code


def _grid_tasks(settings: Namespace, grid: list[dict[str, str]], folder: Path) -> list[Task]:
    """One task for each run of a grid; raises UserError if an option is wrong."""
    if not settings.grid:
        raise UserError("sweep: --grid or --search is required\ngive --grid KEY=VALUE,VALUE or --search KEY=LOW:HIGH")
    if given := [key for key, default in SEARCH_OPTIONS.items() if settings[key] != default]:
        raise UserError(f"sweep: --{given[0]} is for a --search\nremove it")
    runs = [make_run(values, settings.config, settings.options, folder) for values in grid]
    for each in runs:
        CommandLine(each.args)  # reports a wrong command line before anything starts
    return [Task(each.name, [each]) for each in runs]
