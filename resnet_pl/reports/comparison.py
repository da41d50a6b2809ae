"""Runs next to each other, seeds taken together: as a table, as CSV and markdown, and over depth as a picture."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from resnet_pl.reports.plots import INK, MUTED, new_figure, render, save_png, style_axes
from resnet_pl.reports.run_reader import Run
from resnet_pl.reports.tables import number
from resnet_pl.run_dir import class_name, get_init_args

# What may differ between runs that are repetitions of one another.
IGNORED_KEYS = {"seed_everything", "name", "root", "default_root_dir", "dashboard", "num_workers"}
# Columns that hold words, no numbers.
WORDS = ("net", "data", "commit")


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed.

    Attributes:
        runs: one or more.
        differs: what sets it apart from groups with the same net and data, such as `lr 0.1`.
    """

    runs: list[Run]
    differs: str = ""

    @property
    def net(self) -> str:
        """Net, shortcut and what else tells it from the other groups, such as `cifar_resnet 56 (A)`."""
        first = self.runs[0]
        shortcut = f" ({first.shortcut})" if first.shortcut and not first.plain else ""
        return f"{first.net}{shortcut}{', ' if self.differs else ''}{self.differs}"

    @property
    def family(self) -> str:
        """The same without the depth."""
        first = self.runs[0]
        return self.net.replace(first.net, re.sub(r" ?\d+$", "", first.net), 1)

    def statistics(self, name: str) -> tuple[float, float]:
        """Mean and standard deviation over the runs (n − 1; NaN for one run) of an attribute."""
        values = np.array([getattr(run, name) for run in self.runs])
        return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else math.nan

    def row(self) -> dict[str, Any]:
        """The figures by the names of the CSV's columns, errors in per cent; None where not known."""
        first, test, train = self.runs[0], self.statistics("test_error"), self.statistics("train_error")
        sessions = [session for run in self.runs for session in run.sessions]
        row = {
            "net": self.net,
            "data": first.data,
            "n": len(self.runs),
            "test_error": test[0],
            "test_error_std": test[1],
            "best": min(run.test_error for run in self.runs),
            "train_error": train[0],
            "train_error_std": train[1],
            "paper": first.paper_error,
            "iterations": max(run.iterations for run in self.runs),
            "minutes": self.statistics("seconds")[0] / 60,
            "images_per_second": self.statistics("images_per_second")[0],
            "parameters": next((s["parameters"] for s in sessions if s.get("parameters")), None),
            "commit": " ".join(dict.fromkeys(str(session["commit"]) for session in sessions if session.get("commit"))),
            "seeds": " ".join(str(run.config.get("seed_everything")) for run in self.runs),
        }
        return {key: None if isinstance(cell, float) and math.isnan(cell) else cell for key, cell in row.items()}


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """The runs with seeds taken together, by data, kind of net and depth."""
    alike: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        alike[json.dumps(_settings(run), sort_keys=True, default=str)].append(run)
    alike_nets: dict[tuple[str, str], list[Group]] = defaultdict(list)
    for group in map(Group, alike.values()):
        alike_nets[group.runs[0].data, group.net].append(group)
    groups = [
        Group(group.runs, text)
        for same in alike_nets.values()
        for group, text in zip(same, _differences(same), strict=True)
    ]
    return sorted(groups, key=lambda group: (group.runs[0].data, group.family, group.runs[0].depth or 0))


def _settings(run: Run) -> dict[str, Any]:
    """What the run was configured to, the same for both forms of the model: with a class path and without."""
    model = run.config["model"]
    label_groups = {"class_path": class_name(model) or "ImageClassifier"}
    return _flat({**run.config, "model": label_groups | get_init_args(model)})


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every value under its dotted key, but for what repetitions may differ in."""
    flat: dict[str, Any] = {}
    for key in config.keys() - IGNORED_KEYS:
        value = config[key]
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _differences(groups: Sequence[Group]) -> list[str]:
    """For each group the values in which it differs from the others, at most three."""
    flats = [_settings(group.runs[0]) for group in groups]
    every = sorted({key for flat in flats for key in flat})
    keys = [key for key in every if len({str(flat.get(key)) for flat in flats}) > 1]
    more = ", …" if len(keys) > 3 else ""
    return [", ".join(f"{_last(key)} {_last(str(flat.get(key)))}" for key in keys[:3]) + more for flat in flats]


def _last(name: str) -> str:
    """The last word of a dotted name; a number stays as it is."""
    words = name.removesuffix(".class_path").rsplit(".", 1)
    return words[-1] if words[-1].isidentifier() else name


def label_groups(groups: Sequence[Group]) -> dict[str, list[Run]]:
    """The groups' runs by their nets, with the data where it is not the same for all."""
    return {_with_data(group, group.net, groups): group.runs for group in groups}


def _with_data(group: Group, name: str, groups: Sequence[Group]) -> str:
    data = [other.runs[0].data for other in groups]
    return f"{name}, {group.runs[0].data}" if len(set(data)) > 1 else name


def cells(group: Group) -> dict[str, str]:
    """A row of the table as text, by heading."""
    row = group.row()

    def spread(key: str) -> str:
        text, deviation = number(row[key], ".2f"), row[f"{key}_std"]
        return text if deviation is None else f"{text} ± {deviation:.2f}"

    return {
        "net": row["net"],
        "data": row["data"],
        "n": str(row["n"]),
        "test error (%)": spread("test_error"),
        "best": number(row["best"], ".2f"),
        "paper": number(row["paper"], ".2f"),
        "train error (%)": spread("train_error"),
        "iterations": number(row["iterations"], ","),
        "minutes": number(row["minutes"], ",.1f"),
        "images/s": number(row["images_per_second"], ",.0f"),
        "parameters": number(row["parameters"], ","),
        "commit": row["commit"] or "–",
    }


def comparison_table(groups: Sequence[Group]) -> Table:
    """The table for the terminal; what is the same for all stands once, in its title."""
    rows = [cells(group) for group in groups]
    same = [key for key in ("data", "n", "iterations", "commit") if len({row[key] for row in rows}) == 1]
    title = Text(" · ".join(rows[0][key] if key == "data" else f"{key} {rows[0][key]}" for key in same))
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", title_style="", padding=(0, 1, 0, 0))
    headings = [key for key in rows[0] if key not in same and {row[key] for row in rows} != {"–"}]
    for key in headings:
        # Words of a heading go below one another, so that a column is no wider than its numbers.
        heading = Text("\n".join(key.split()))
        table.add_column(heading, justify="left" if key in WORDS else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(row[key]) for key in headings))
    return table


def markdown(groups: Sequence[Group]) -> str:
    """The table as markdown."""
    rows = [cells(group) for group in groups]
    lines = [list(rows[0]), ["---" if key in WORDS else "---:" for key in rows[0]]]
    lines += [[cell.replace("|", "\\|") for cell in row.values()] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def error_over_depth(groups: Sequence[Group], path: Path) -> None:
    """Draws test and training error side by side as a PNG: over depth, or net by net where no net's depth varies.

    Means with bars of one standard deviation, plain nets dashed; the paper's figures are the hollow diamonds.
    """
    firsts = [group.runs[0] for group in groups]
    labels = [_with_data(group, group.family, groups) for group in groups]
    over_depth = len({(label, run.depth) for label, run in zip(labels, firsts, strict=True)}) > len(set(labels))
    places = [run.depth or 0 for run in firsts] if over_depth else list(range(len(groups)))
    families: dict[str, list[tuple[int, Group]]] = defaultdict(list)
    for label, *member in zip(labels, places, groups, strict=True):
        families[label].append(tuple(member))
    figure = new_figure(9.6, 4.4)
    panels = figure.subplots(1, 2)
    for axes, name, title in zip(panels, ("test_error", "train_error"), ("test", "training"), strict=True):
        for index, (label, members) in enumerate(families.items()):
            points = zip(*((place, *group.statistics(name)) for place, group in members), strict=True)
            dashes = "--" if members[0][1].runs[0].plain else "-"
            style = {"color": f"C{index}", "linestyle": dashes if over_depth else "none", "linewidth": 1.4}
            axes.errorbar(*points, label=label, marker="o", markersize=4, capsize=3, **style)
        axes.set_title(f"{title} error (%)", loc="left", fontsize=11, color=INK)
        style_axes(axes, "layers" if over_depth else "")
        if over_depth:
            axes.set_xticks(sorted(set(places)))
        else:
            axes.set_xticks(places, [group.net for group in groups], rotation=20, ha="right", parse_math=False)
            axes.margins(x=0.2)
    known = [(place, run.paper_error) for place, run in zip(places, firsts, strict=True) if run.paper_error]
    if known:
        panels[0].plot(*zip(*known, strict=True), "D", color=MUTED, fillstyle="none", label="paper, 64k iterations")
    for axes in panels:
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    save_png(render(figure), path)
