"""Groups of runs that differ only in the seed, and the options in which the groups differ."""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from resnet_pl._renamed import is_own
from resnet_pl.reports.run_reader import Run
from resnet_pl.run_dir import BUILT_IN_PYTHON, TOP1, class_name, get_init_args

# Settings that do not change what is trained, the seed, and the classes, which are read from the data.
IGNORED_KEYS = {"seed_everything", "name", "trainer.default_root_dir", "dashboard", "checkpoint", BUILT_IN_PYTHON}
IGNORED_KEYS |= {"data.root", "data.num_workers", "model.class_names", "model.multi_label"}
IGNORED_KEYS |= {"model.num_classes", "model.backbone.num_classes"}
# Settings that the columns `model` and `data` show.
NAMED_KEYS = ("model.backbone", "model.backbone.depth", "model.backbone.shortcut", "data")
# Columns of the table that are not options.
COLUMNS = ("run", "model", "data", "commit", "iterations", "n")
# Key of the digests of the images.
DIGESTS = "digests"
# Value of an option that a group does not have.
MISSING = "–"


@dataclass(frozen=True)
class Group:
    """Runs that differ only in the seed.

    Attributes:
        runs: one or more runs.
        name: name and version of the run; of several runs what their names have in common.
        options: values of the options in which the compared groups differ, by option.
        chosen: whether a sweep has chosen the group; None if the runs are not those of a sweep.
    """

    runs: list[Run]
    name: str = ""
    options: dict[str, str] = field(default_factory=dict)
    chosen: bool | None = None

    @property
    def model(self) -> str:
        """Model, depth and shortcut type, for example `cifar_resnet 56 (A)`."""
        first = self.runs[0]
        return f"{first.model} ({first.shortcut})" if first.shortcut else first.model

    @property
    def data(self) -> str:
        """Class name of the data module."""
        return self.runs[0].data

    @property
    def commit(self) -> str:
        """The code versions that the runs were trained with."""
        sessions = [session for run in self.runs for session in run.sessions]
        return " ".join(dict.fromkeys(str(session["commit"]) for session in sessions if session.get("commit")))

    def statistics(self, name: str) -> tuple[float, float]:
        """Returns mean and sample standard deviation of an attribute over the runs that have it, else NaN."""
        return mean_and_deviation([getattr(run, name) for run in self.runs])

    @property
    def val_score(self) -> float:
        """Mean over the runs of the best value of the metric that chose best.ckpt; NaN if there is none."""
        return self.statistics("val_score")[0]

    def row(self) -> dict[str, Any]:
        """Returns the values of the CSV, by column; top-1 as fractions, None if unknown."""
        first = self.runs[0]
        row: dict[str, Any] = {"run": self.name, "model": self.model, "data": self.data}
        row |= {} if self.chosen is None else {"chosen": "yes" if self.chosen else "no"}
        row |= self.options | {"n": len(self.runs)}
        scores = ("val_score", "test_score") if first.monitor != TOP1 else ()
        for name in ("val_top1", "test_top1", "train_top1", *scores):
            row[name], row[f"{name}_std"] = self.statistics(name)
        row |= {
            "paper": first.paper_error and 1 - first.paper_error / 100,
            "iterations": max(run.iterations for run in self.runs),
            "minutes": self.statistics("seconds")[0] / 60,
            "images_per_second": self.statistics("images_per_second")[0],
            "parameters": next((s["parameters"] for s in first.sessions if s.get("parameters")), None),
            "commit": self.commit,
            "seeds": " ".join(str(run.config.get("seed_everything")) for run in self.runs),
        }
        return {key: None if isinstance(cell, float) and math.isnan(cell) else cell for key, cell in row.items()}


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Groups runs that differ only in the seed.

    Returns:
        The groups by dataset; within a dataset the best validation comes first: by the metric that chose best.ckpt if
        it is the same for all runs, else by top-1.
    """
    members: dict[tuple[str, int], list[Run]] = defaultdict(list)
    occurrences = Counter[tuple[str, str]]()
    for run in runs:
        settings = json.dumps(_settings(run), sort_keys=True, default=str)
        seed = run.config.get("seed_everything")
        # A second run of a seed is not another seed: it may have been interrupted, or trained by other code.
        repetition = 0 if seed is None or isinstance(seed, bool) else occurrences[settings, str(seed)]
        occurrences[settings, str(seed)] += 1
        members[settings, repetition].append(run)
    grouped = list(members.values())
    options = _differing_options([_settings(group[0]) for group in grouped])
    if any(DIGESTS in own for own in options):
        # Other images are another folder, or an option that is listed anyway, such as data.val_split.
        roots = [str(get_init_args(group[0].config["data"]).get("root")) for group in grouped]
        for own, root in zip(options, roots, strict=True):
            del own[DIGESTS]
            own |= {"data.root": root} if len({*roots}) > 1 else {}
    groups = [Group(*parts) for parts in zip(grouped, _group_names(grouped), options, strict=True)]

    metric = "val_score" if len({(run.monitor, run.sign) for run in runs}) == 1 else "val_top1"

    def rank(group: Group) -> tuple[str, float, bool, int]:
        score, first = group.statistics(metric)[0], group.runs[0]
        sign = first.sign if metric == "val_score" else 1
        return first.data, math.inf if math.isnan(score) else -sign * score, not first.plain, first.depth or 0

    return sorted(groups, key=rank)


def _settings(run: Run) -> dict[str, Any]:
    """The configuration by dotted option, without what does not change the training, and digests of the images."""
    model = run.config["model"]
    flat = flatten_config({**run.config, "model": get_init_args(model)})
    flat = {key: value for key, value in flat.items() if not key.startswith("trainer.logger")}
    flat["model.class_path"] = class_name(model) or "ImageClassifier"
    digests = run.sessions[-1].get("data") if run.sessions else None
    flat |= {"checkpoint.monitor": run.monitor} if run.monitor != TOP1 else {}
    flat |= {DIGESTS: json.dumps(digests)} if digests else {}
    # The images of most data modules of users have no digests.
    data = run.config["data"]
    is_users = isinstance(data, Mapping) and is_own(data.get("class_path")) and not digests
    return flat | ({"data.root": get_init_args(data)["root"]} if is_users and "root" in get_init_args(data) else {})


def flatten_config(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the values of a configuration by dotted option, without `IGNORED_KEYS`; a class is its name."""
    flat: dict[str, Any] = {}
    for key, value in section.items():
        if (name := f"{prefix}{key}") in IGNORED_KEYS:
            continue
        if not isinstance(value, Mapping):
            flat[name] = _comparable(value)
        elif "class_path" in value:
            flat |= {name: class_name(value), **flatten_config(get_init_args(value), f"{name}.")}
        else:
            flat |= flatten_config(value, f"{name}.")
    return flat


def _comparable(value: Any) -> Any:
    """The value with whole numbers as int: a default of 1 for a float is 1.0 in the configuration of a resumed run."""
    if isinstance(value, Mapping):
        return {key: _comparable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_comparable(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _differing_options(settings: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """For each group the options in which the groups differ, those of the model first.

    An option that only some groups have belongs to a class that only they use; it counts if their values differ.
    """
    options: list[dict[str, str]] = [{} for _ in settings]
    keys = {key for flat in settings for key in flat} - {*NAMED_KEYS}
    for key in sorted(keys, key=lambda key: (not key.startswith("model."), key)):
        values = [_value(flat, key) for flat in settings]
        known = [value for value in values if value is not MISSING]
        distinct = len({json.dumps(value, sort_keys=True, default=str) for value in known})
        if distinct > 1:
            long = len({option_text(value) for value in known}) < distinct
            for row, value in zip(options, values, strict=True):
                row[key] = MISSING if value is MISSING else option_text(value, long)
    return options


def _value(flat: Mapping[str, Any], key: str) -> Any:
    """The value of an option; of a section, which is null in other groups, all its values."""
    section = [f"{name.removeprefix(f'{key}.')}={value}" for name, value in flat.items() if name.startswith(f"{key}.")]
    return flat.get(key, ", ".join(sorted(section)) or MISSING)


def option_text(value: Any, long: bool = False) -> str:
    """Returns a value as in YAML; unless `long`, numbers are rounded, and classes in a list have no arguments."""
    if isinstance(value, float) and not long:
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(option_text(item, long) for item in value) or "[]"
    if isinstance(value, Mapping) and "class_path" in value:
        args = get_init_args(value) if long else {}
        text = ", ".join(f"{key}={option_text(item, long)}" for key, item in args.items())
        return f"{class_name(value)}({text})" if text else class_name(value)
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _group_names(groups: Sequence[Sequence[Run]]) -> list[str]:
    """Name and version of each group; with parent folders if several groups would have the same name."""
    for levels in (2, 3, 4):
        parts = [[_run_name(run.path, levels) for run in group] for group in groups]
        for name in (_common_name, _all_names):
            names = list(map(name, parts))
            if len({*names}) == len(names):
                return names
    return [", ".join(str(run.path) for run in group) for group in groups]


def _run_name(path: Path, levels: int) -> tuple[str, str]:
    """The last folders of a path above the version, and the version."""
    parts = path.absolute().parts
    if not parts[-1].startswith("version_"):
        return "/".join(parts[1 - levels :]), ""
    return "/".join(parts[-levels:-1]), parts[-1]


def _common_name(names: Sequence[tuple[str, str]]) -> str:
    """`a/version_0` for one run, `a/version_0,1` for two versions, `seed*-a` for `seed0-a` and `seed1-a`."""
    folders, versions = ([*dict.fromkeys(part)] for part in zip(*names, strict=True))
    if len(folders) == 1:
        numbers = [version.removeprefix("version_") for version in versions]
        shown = ",".join(numbers) if len(numbers) <= 3 else f"{numbers[0]}…{numbers[-1]}"
        return f"{folders[0]}/version_{shown}" if versions[0] else folders[0]
    prefix = os.path.commonprefix(folders)  # noqa: RUF071 - of names, not of paths
    suffix = os.path.commonprefix([folder[len(prefix) :][::-1] for folder in folders])[::-1]  # noqa: RUF071
    if len(prefix + suffix) > 3:
        return f"{prefix}*{suffix}"
    return _all_names(names)


def _all_names(names: Sequence[tuple[str, str]]) -> str:
    return ", ".join("/".join(filter(None, parts)) for parts in names)


def label_groups(groups: Sequence[Group]) -> dict[str, list[Run]]:
    """Returns the runs of each group by a label for plots: the model, and what distinguishes it from others."""
    models, several = Counter((group.data, group.model) for group in groups), len({group.data for group in groups}) > 1
    keys = option_headings([key for group in groups[:1] for key in group.options])
    labels: dict[str, list[Run]] = {}
    for group in groups:
        parts = [group.model, *([group.data] if several else [])]
        if models[group.data, group.model] > 1:
            values = [(keys[key], value) for key, value in group.options.items() if value != MISSING]
            parts += [f"{key} {value}" for key, value in values[:3]]
        label = ", ".join(parts)
        labels[label if label not in labels else f"{label}, {group.name}"] = group.runs
    return labels


def option_headings(keys: Sequence[str]) -> dict[str, str]:
    """Returns a short heading for each option: its last part, or more parts if several options have the same."""
    headings = {"model.class_path": "LightningModule"}
    for key in keys:
        parts = key.split(".")
        endings = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
        others = [*COLUMNS, *keys]
        unique = (end for end in endings if sum(f".{other}".endswith(f".{end}") for other in others) == 1)
        headings.setdefault(key, next(unique, key))
    return headings


def is_depth_study(groups: Sequence[Group]) -> bool:
    """Whether a model was trained with several depths."""
    depths = [(group.data, family(group.runs[0]), group.runs[0].depth) for group in groups]
    names = {(data, name) for data, name, _ in depths}
    return all(depth for *_, depth in depths) and len({*depths}) > len(names)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Returns mean and sample standard deviation of the values that are not NaN, else NaN."""
    known = [value for value in values if not math.isnan(value)]
    mean = float(np.mean(known)) if known else math.nan
    return mean, float(np.std(known, ddof=1)) if len(known) > 1 else math.nan


def family(run: Run) -> str:
    """Returns the name of a model without its depth, such as `cifar_resnet`."""
    return re.sub(rf" {run.depth}\b", "", run.model, count=1)
