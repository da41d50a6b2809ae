"""The trials of a search: Optuna chooses their settings and prunes runs, several processes share them."""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import IO, TYPE_CHECKING, Any

from typing_extensions import override

from resnet_pl.analysis.grid import SweepRun, make_run, record, run_name
from resnet_pl.analysis.search_space import as_options, search_space
from resnet_pl.analysis.tasks import Task, is_locked, lock_log
from resnet_pl.command_line import CommandLine
from resnet_pl.reports.run_reader import read_run
from resnet_pl.run_dir import TOP1, score_sign
from resnet_pl.utils import UserError, atomic_write, require

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial

SEED = "seed_everything"
PRUNERS = {"none": "NopPruner", "median": "MedianPruner", "hyperband": "HyperbandPruner"}
SAMPLERS = {"tpe": "TPESampler", "random": "RandomSampler"}
# If the first trials all fail, an option is wrong, and the others would fail too.
MAX_FAILURES = 3


class SearchTrial(Task):
    """A setting of a search, trained with each seed. The epochs of the first seed decide whether it is pruned."""

    def __init__(self, name: str, runs: list[SweepRun], trial: Trial) -> None:
        super().__init__(name, runs)
        self.trial, self.folder, self._reported = trial, Path(), 0

    @override
    def commands(self) -> Iterator[list[str]]:
        if not any(run.pruned() for run in self.runs):
            self.folder = self.runs[0].trained() or self.runs[0].next_folder()
            yield from super().commands()

    @override
    def should_stop(self) -> bool:
        if self.runs[0].trained():
            return False
        self.report()
        return self.trial.should_prune()

    def report(self) -> None:
        """Reports the monitored metric of each validation since the last call."""
        with suppress(UserError, KeyError):
            run = read_run(self.folder)
            for value in run.metrics[run.monitor][1][self._reported :]:
                self.trial.report(float(value), self._reported)
                self._reported += 1

    def score(self) -> float:
        """Returns the mean over the seeds of the best validation; NaN if the metric was not logged."""
        return fmean(read_run(folder).val_score for run in self.runs if (folder := run.trained()))


class Search:
    """The trials of a search. They are stored with their results in a file or database that all processes share.

    The process of a trial locks its log file. A running trial without a lock has no process any more: it is repeated,
    and its run resumes.

    Args:
        settings: options of `sweep`.
        seeds: the combinations of --grid, with each of which a setting is trained.
        folder: folder of the sweep.

    Raises:
        UserError: an option is wrong, or Optuna is not installed.

    Attributes:
        monitor: log key of the metric to optimize.
    """

    def __init__(self, settings: Any, seeds: Sequence[Mapping[str, str]], folder: Path) -> None:
        self._optuna = require("optuna", "tune", "sweep --search")
        self._optuna.logging.set_verbosity(self._optuna.logging.ERROR)
        self._settings, self._seeds, self._folder, self._logs = settings, seeds, folder, folder / "logs"
        self._space = search_space(settings.search)
        if SEED in self._space or {key for seed in seeds for key in seed} - {SEED}:
            raise UserError(
                "sweep: with --search, --grid is for the seeds that each setting is trained with\n"
                f"use --grid {SEED}=0,1,2, and --search for other options"
            )
        example = {key: getattr(each, "choices", [getattr(each, "low", 0)])[0] for key, each in self._space.items()}
        line = CommandLine(self._runs(example)[0].args)
        self.monitor = str(line.get("checkpoint.monitor") or TOP1)
        self._sign = score_sign(self.monitor, str(line.get("checkpoint.mode") or "auto"))

    # ------------------------------------------------------------------------------------ the study
    def open(self) -> None:
        """Creates the study or opens it, and repeats the trials that have failed.

        Raises:
            UserError: the study cannot be opened, or its runs are in another folder.
        """
        settings, path = self._settings, self._folder / "study.journal"
        # Other values are another study; more trials, another sampler or pruner continue it.
        facts = json.dumps([settings.config, settings.grid, settings.search, settings.options])
        name = f"{settings.name}-{hashlib.sha256(facts.encode()).hexdigest()[:8]}"
        pruner = getattr(self._optuna.pruners, PRUNERS[settings.pruner])()
        direction = "maximize" if self._sign > 0 else "minimize"
        with self._locked():
            try:
                self._study = self._optuna.create_study(
                    storage=settings.storage or self._journal(path), study_name=name, direction=direction,
                    pruner=pruner, load_if_exists=True,
                )  # fmt: skip
            except Exception as error:
                problem = f"{type(error).__name__}: {error}".splitlines()[0]
                raise UserError(
                    f"sweep: {settings.storage or path} cannot be opened: {problem}\n"
                    "use another --name, or another --storage, such as sqlite:///study.db"
                ) from error
            for trial in self._trials("COMPLETE"):
                if not (self._logs / f"{self._name(trial)}.log").is_file():
                    raise UserError(
                        f"sweep: {self._folder} does not have the run {self._name(trial)} of this search\n"
                        "start all processes in one shared folder, or use another --name"
                    )
            for trial in self._trials("FAIL"):
                self._repeat(trial)

    def _locked(self) -> IO[bytes]:
        """Locks the study for this process until the returned file is closed."""
        log = lock_log(self._logs, "sweep", block=True)
        assert log is not None
        return log

    def _journal(self, path: Path) -> Any:
        """The file of the trials. An incomplete last line, as a full disk leaves it, is removed."""
        journal = self._optuna.storages.journal
        lock = journal.JournalFileOpenLock(str(path))
        lock.acquire()
        try:
            if path.is_file():
                os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
        finally:
            lock.release()
        return self._optuna.storages.JournalStorage(journal.JournalFileBackend(str(path), lock_obj=lock))

    def _trials(self, *states: str) -> list[FrozenTrial]:
        """The trials in these states, all by default, without those that were repeated."""
        trials = self._study.get_trials(deepcopy=False)
        repeated = {trial.user_attrs.get("repeats") for trial in trials}
        return [each for each in trials if each.number not in repeated and (each.state.name in states or not states)]

    @property
    def left(self) -> int:
        """Number of trials that are not finished."""
        return max(0, self._settings.trials - len(self._trials("COMPLETE", "PRUNED", "FAIL")))

    # ------------------------------------------------------------------------------------ settings
    def _runs(self, params: Mapping[str, Any]) -> list[SweepRun]:
        """The runs of a setting, one for each seed."""
        settings, options = self._settings, as_options(params)
        return [make_run({**options, **seed}, settings.config, settings.options, self._folder) for seed in self._seeds]

    def _name(self, trial: FrozenTrial | Trial) -> str:
        return run_name(as_options(trial.params))

    def tasks(self) -> list[Task]:
        """Returns the settings of all trials so far, each once."""
        # A waiting trial has no values yet, that of a killed process perhaps only some.
        drawn = {self._name(trial): trial for trial in self._trials() if trial.params.keys() == self._space.keys()}
        return [Task(name, self._runs(trial.params)) for name, trial in drawn.items()]

    # ------------------------------------------------------------------------------------ a source of tasks
    def claim(self) -> tuple[Task, IO[bytes]] | None:
        """Returns the next trial and its locked log file; None if there are enough, or if the first ones failed."""
        with self._locked():
            self._repeat_dead()
            while not self.has_failed() and (self._trials("WAITING") or len(self._trials()) < self._settings.trials):
                # The values are a function of the trial's number and of the results so far, whatever process draws.
                sampler = getattr(self._optuna.samplers, SAMPLERS[self._settings.sampler])
                self._study.sampler = sampler(seed=len(self._study.get_trials(deepcopy=False)))
                trial = self._study.ask(self._space)
                if log := lock_log(self._logs, self._name(trial)):
                    return SearchTrial(self._name(trial), self._runs(trial.params), trial), log
                # Another process trains the same setting now.
                self._study.tell(trial, state=self._optuna.trial.TrialState.PRUNED)
        return None

    def has_failed(self) -> bool:
        """Whether the search ends, because its first trials have all failed."""
        return len(self._trials("FAIL")) >= MAX_FAILURES and not self._trials("COMPLETE", "PRUNED")

    def _repeat_dead(self) -> None:
        """Repeats the running trials that have no process."""
        failed = self._optuna.trial.TrialState.FAIL
        for trial in self._trials("RUNNING"):
            if is_locked(self._logs, self._name(trial)):
                continue
            # Its process may have finished it since the list was read.
            if self._study.tell(trial.number, state=failed, skip_if_finished=True).state == failed:
                self._repeat(trial)

    def _repeat(self, trial: FrozenTrial) -> None:
        self._study.enqueue_trial(trial.params, user_attrs={"repeats": trial.number})

    def finish(self, task: Task, code: int) -> None:
        """Stores the result of a trial.

        Raises:
            UserError: the metric to optimize was not logged.
        """
        assert isinstance(task, SearchTrial)
        states = self._optuna.trial.TrialState
        if task.pruned:
            record(task.folder, "pruned")
        # A run that diverges would do so again. Its last validation before that counts against its setting.
        task.pruned = task.pruned or any(run.pruned() for run in task.runs)
        task.report()
        if task.pruned:
            self._study.tell(task.trial, state=states.PRUNED)
        elif code or not any(run.trained() for run in task.runs):
            self._study.tell(task.trial, state=states.FAIL)
        elif math.isnan(score := task.score()):
            raise UserError(
                f"sweep: {task.folder} has no {self.monitor}, which the search optimizes\n"
                "hold out images for validation with --data.val_split, or choose a metric with --checkpoint.monitor"
            )
        else:
            self._study.tell(task.trial, score)

    # ------------------------------------------------------------------------------------ plots
    def plot(self) -> None:
        """Writes Optuna's plots, history.png and importance.png, if there are trials with different results."""
        import matplotlib as mpl
        from matplotlib import pyplot

        if len({trial.value for trial in self._trials("COMPLETE")}) < 2:
            return
        plots = {"history": "plot_optimization_history", "importance": "plot_param_importances"}
        with warnings.catch_warnings(), mpl.rc_context():
            warnings.simplefilter("ignore")  # the functions are experimental
            mpl.use("agg")
            for name, function in plots.items():
                axes = getattr(self._optuna.visualization.matplotlib, function)(self._study, target_name=self.monitor)
                if name == "history":
                    axes.xaxis.get_major_locator().set_params(integer=True)  # trials have no fractions
                with atomic_write(self._folder / f"{name}.png") as partial:
                    axes.figure.savefig(partial, format="png", bbox_inches="tight", dpi=120)
                pyplot.close(axes.figure)
        print(f"Saved history.png and importance.png to {self._folder}")
