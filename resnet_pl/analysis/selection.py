"""The end of a sweep: chooses a setting by validation, tests it, compares the runs and removes checkpoints."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path

from typing_extensions import override

from resnet_pl.analysis.compare import compare
from resnet_pl.analysis.jobs import Jobs, print_failed
from resnet_pl.analysis.tasks import Task, TaskList, is_locked
from resnet_pl.reports.run_finder import read_runs
from resnet_pl.reports.run_groups import group_runs
from resnet_pl.reports.run_reader import Run, read_run
from resnet_pl.utils import UserError, counted


class TestTask(Task):
    """The tests of finished runs.

    Args:
        task: the task that has trained the runs.
        folders: the run folders to test.
    """

    def __init__(self, task: Task, folders: Sequence[Path]) -> None:
        super().__init__(task.name, task.runs)
        self._folders = folders

    @override
    def commands(self) -> Iterator[list[str]]:
        for folder in self._folders:
            # --keep best may have removed the checkpoints.
            if not _is_tested(folder) and _checkpoints(folder):
                yield ["test", "--ckpt_path", str(folder)]


def finish(tasks: Sequence[Task], failed: list[str], jobs: Jobs, folder: Path, test: bool, keep: str) -> int:
    """Tests and compares the runs of a sweep, unless other processes still train some of them.

    Args:
        tasks: all tasks of the sweep.
        failed: names of those that have failed in this process.
        jobs: performs the tests.
        folder: folder of the sweep; receives the comparison.
        test: whether to test all runs, not only the chosen ones.
        keep: `best` to remove the checkpoints of all runs except the chosen ones, else `all`.

    Returns:
        1 if a run failed or cannot be compared, else 0.
    """
    if _busy([task for task in tasks if task.name not in failed], jobs, "train"):
        return int(bool(failed))
    pruned = [task for task in tasks if any(run.pruned() for run in task.runs)]
    trained = {task: [path for run in task.runs if (path := run.trained())] for task in tasks if task not in pruned}
    paths = [path for folders in trained.values() for path in folders]
    # By other processes, which have failed or were interrupted.
    lost = [task.name for task in trained if not task.done() and task.name not in failed]
    runs, unreadable = read_runs(paths) if paths else ([], [])
    chosen, ties = choose(runs)
    tests = [TestTask(task, [path for path in folders if test or path in chosen]) for task, folders in trained.items()]
    untested = jobs.run(TaskList(tests, jobs.logs))
    if _busy([each for each in tests if each.name not in untested], jobs, "test"):
        return int(bool(failed or untested))
    notes = [f"Failed: {', '.join([*failed, *untested])}"] if failed or untested else []
    notes += [f"Not trained: {', '.join(lost)}"] if lost else []
    notes += [f"Pruned or diverged: {counted(len(pruned), 'setting')}, not in the table"] if pruned else []
    notes += ties
    if paths:
        compare(paths, folder, [*notes, *_test_notes(paths, chosen, test)], chosen)
    else:
        print(*notes, sep="\n")
    lost += unreadable
    if keep == "best" and chosen:
        # A diverged run would diverge again. After another missing run, another setting may be the best.
        if lost or untested or {*failed} - {task.name for task in pruned}:
            print("No checkpoints are removed, because runs are missing.")
        else:
            _remove_checkpoints(path for task in tasks for run in task.runs for path in {*run.started()} - {*chosen})
    print_failed([*failed, *untested], len(tasks))
    return int(bool(failed or untested or lost))


def _busy(tasks: Sequence[Task], jobs: Jobs, verb: str) -> bool:
    """Whether other processes work on some of the tasks, which it prints."""
    busy = [task.name for task in tasks if not task.done() and is_locked(jobs.logs, task.name)]
    if busy:
        print(f"Other processes still {verb} {', '.join(busy)}. The last process compares the runs.")
    return bool(busy)


def _test_notes(paths: Sequence[Path], chosen: Sequence[Path], test: bool) -> list[str]:
    """Why some runs are not tested."""
    if not test and len(chosen) < len(paths):
        reason = "Only the chosen runs are tested" if chosen else "The runs have no validation, and none is tested"
        return [f"{reason} without --test."]
    removed = [path for path in paths if not _is_tested(path) and not _checkpoints(path)]
    return [f"Not tested, because the checkpoints were removed: {counted(len(removed), 'run')}"] if removed else []


def choose(runs: Sequence[Run]) -> tuple[list[Path], list[str]]:
    """Chooses the setting with the best mean validation over its seeds; one for each dataset.

    A setting with fewer runs than another, because some have failed or diverged, is not chosen: the other ones may be
    the lucky ones. Without validation, only a setting without competitors is chosen.

    Returns:
        The folders of its runs, and a note for each tie.
    """
    chosen: list[Path] = []
    ties: list[str] = []
    for _, same_data in groupby(group_runs(runs), lambda group: group.data):  # the best validation comes first
        members = list(same_data)
        most = max(len(group.runs) for group in members)
        best, *others = [group for group in members if len(group.runs) == most]
        if others and math.isnan(best.val_score):
            continue
        chosen += [run.path for run in best.runs]
        if equal := [group.name for group in others if group.val_score == best.val_score]:
            names = ", ".join([best.name, *equal])
            ties.append(f"Tie in the validation: {names}. The first one is chosen; more seeds may decide.")
    return chosen, ties


def _is_tested(folder: Path) -> bool:
    with suppress(UserError):
        run = read_run(folder)
        return bool(run.results) and not run.has_better_checkpoint
    return False


def _checkpoints(folder: Path) -> list[Path]:
    return list(folder.glob("checkpoints/*.ckpt"))


def _remove_checkpoints(folders: Iterable[Path]) -> None:
    size = 0
    for path in (path for folder in folders for path in _checkpoints(folder)):
        size += path.stat().st_size
        path.unlink()
    print(f"Removed the checkpoints of the runs that are not chosen: {size / 1e6:,.1f} MB")
