"""Train one model per fold, each in its own process, and predict every image with the model that was not trained on it.

The images outside the test split are divided into folds; --data.test_split 0 uses all. The model of a fold is that of
its last epoch: best.ckpt would be chosen on the images that it predicts. With several classes per image, the threshold
of each is 0.5 for the same reason. Writes runs/NAME/out_of_fold.csv and runs/NAME/cross_validation.json. Completed
folds are skipped, and interrupted ones resume.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import restricted_number_type

from resnet_pl.analysis.grid import grid_values, make_run
from resnet_pl.analysis.jobs import Jobs, print_failed
from resnet_pl.analysis.tasks import Task, TaskList
from resnet_pl.callbacks.access import join_classes
from resnet_pl.command_line import CommandLine
from resnet_pl.data import ImageDataModule
from resnet_pl.evaluation.metrics import MACRO
from resnet_pl.load import load_run
from resnet_pl.reports.results import as_json
from resnet_pl.reports.run_groups import mean_and_deviation
from resnet_pl.reports.tables import number, numbers_table, print_report, write_csv
from resnet_pl.types import PositiveInt
from resnet_pl.utils import atomic_write

NumFolds = restricted_number_type("NumFolds", int, (">=", 2), docstring="Integer from 2")


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options of `cross-validate`."""
    listed = {"action": "append", "type": str, "default": []}
    parser.add_argument("--config", **listed, help="configuration file; later files override earlier ones")
    parser.add_argument("--folds", type=NumFolds, default=5, help="number of folds")
    parser.add_argument("--name", type=str, default="folds", help="name of the runs; they are in runs/NAME/")
    parser.add_argument("--jobs", type=PositiveInt, default=1, help="number of folds in parallel")
    parser.add_argument("options", nargs="*", type=str, help="after --: options of fit for every fold")


def run(settings: Namespace) -> int:
    """Runs the command; returns 1 if a fold failed."""
    folder = Path("runs") / settings.name
    grid = grid_values([f"data.fold={','.join(map(str, range(settings.folds)))}"], settings.options)
    options = [*settings.options, "--data.num_folds", str(settings.folds)]
    folds = [make_run(values, settings.config, options, folder) for values in grid]
    for fold in folds:
        CommandLine(fold.args)  # reports a wrong command line before anything starts
    jobs = Jobs(folder / "logs", settings.jobs, settings.command_line)
    source = TaskList([Task(fold.name, [fold]) for fold in folds], jobs.logs)
    jobs.log(f"{len(folds)} folds, {len(folds) - source.left} already completed, {jobs.count} in parallel")
    failed = jobs.run(source)
    print_failed(failed, len(folds))
    paths = {fold.name: path for fold in folds if (path := fold.trained())}
    if others := [fold.name for fold in folds if fold.name not in {*paths, *failed}]:
        print(f"Not trained yet: {', '.join(others)}. Rerun the same command when no other process trains them.")
    if len(paths) == len(folds):
        report(list(paths.values()), folder)
    return int(bool(failed))


def report(paths: list[Path], folder: Path) -> None:
    """Predicts the images of each fold, and writes and prints the results.

    Args:
        paths: run folder of each fold, in order.
        folder: receives out_of_fold.csv and cross_validation.json.
    """
    rows: list[list[Any]] = []
    results: list[dict[str, Any]] = []
    names: list[str] = []
    for fold, path in enumerate(paths):
        model, data = load_run(path / "checkpoints" / "last.ckpt")
        names = model.class_names
        rows += [[file, fold, *columns] for file, *columns in predict(model, data)]
        metrics = {name: value for name, value in model.metrics.compute().items() if isinstance(value, int | float)}
        results.append({"fold": fold, "run": str(path), **metrics})
    head = ["file", "fold", "truth", "prediction", *(f"probability_{name}" for name in names)]
    write_csv(folder / "out_of_fold.csv", head, sorted(rows, key=lambda row: row[0]))
    # The other averages would not fit into a terminal.
    keys = [key for key in results[0] if key not in {"fold", "run", "images", *MACRO} - {"f1_macro"}]
    values = {key: [result[key] for result in results] for key in keys}
    # A fold can lack a metric, such as AUROC if it has one class only.
    summary = {key: dict(zip(("mean", "std"), mean_and_deviation(each), strict=True)) for key, each in values.items()}
    with atomic_write(folder / "cross_validation.json") as partial:
        partial.write_text(json.dumps(as_json({"folds": results, "summary": summary}), indent=1), encoding="utf-8")
    table = numbers_table("fold", numbers=["images", *keys])
    for result in results:
        table.add_row(str(result["fold"]), f"{result['images']:,}", *(number(result[key], ".4f") for key in keys))
    means = [f"{number(each['mean'], '.4f')} ± {number(each['std'], '.4f')}" for each in summary.values()]
    table.add_row("mean ± std", f"{len(rows):,}", *means)
    print_report(table)
    print(f"Saved to {folder / 'out_of_fold.csv'} and {folder / 'cross_validation.json'}")


def predict(model: Any, data: ImageDataModule) -> Iterator[list[Any]]:
    """Yields file, truth, prediction and probabilities of each validation image; updates the metrics of the model."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    files, names = data.split("val").names, model.class_names
    if model.thresholds is not None:
        model.thresholds.fill_(0.5)  # the validation has chosen them on the images that are predicted here
    with torch.inference_mode():
        for batch in data.val_dataloader():
            batch = batch.to(device)
            probabilities = model.probabilities(batch)
            model.metrics.update(probabilities, batch.labels)
            several = model.thresholds is not None
            guesses = probabilities >= model.thresholds if several else probabilities.argmax(1)
            columns = (each.tolist() for each in (batch.indices, batch.labels, guesses, probabilities))
            for index, label, guess, row in zip(*columns, strict=True):
                words = [join_classes(each, names) if several else names[each] for each in (label, guess)]
                yield [files[index], *words, *(f"{value:.6f}" for value in row)]
