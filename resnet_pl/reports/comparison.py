"""Comparison of runs as a table: for the terminal and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from resnet_pl.reports.run_groups import MISSING, Group, is_depth_study, option_headings
from resnet_pl.reports.tables import number, report_width
from resnet_pl.run_dir import TOP1

MAX_OPTIONS = 6


def table_cells(groups: Sequence[Group]) -> list[dict[str, str]]:
    """Returns the rows of the table, by column: names, what differs, results. No column of names has equal cells."""
    headings = option_headings([*groups[0].options])
    monitors = [*dict.fromkeys(group.runs[0].monitor for group in groups if group.runs[0].monitor != TOP1)]
    rows = []
    for group in groups:
        error = group.runs[0].paper_error
        iterations = sorted({run.iterations for run in group.runs})
        rows.append(
            {
                "run": group.name,
                "chosen": "yes" if group.chosen else "",
                "model": group.model,
                "data": group.data,
                **{headings[key]: value for key, value in group.options.items()},
                "commit": group.commit or MISSING,
                "iterations": "–".join(f"{count:,}" for count in dict.fromkeys([iterations[0], iterations[-1]])),
                "n": str(len(group.runs)),
                "best val top-1 (%)": _spread(group, "val_top1"),
                "test top-1 (%)": _spread(group, "test_top1"),
                "paper top-1 (%)": number(error and 100 - error, ".2f"),
                **({"train top-1 (%)": _spread(group, "train_top1")} if is_depth_study(groups) else {}),
                **{key: cell for monitor in monitors for key, cell in _scores(group, monitor).items()},
            }
        )
    results = [key for key in rows[0] if is_result(key) and any(row[key] != MISSING for row in rows)]
    explained = {"max_epochs", "max_steps"} & rows[0].keys()
    names = [
        key
        for key in rows[0]
        if not is_result(key) and len({row[key] for row in rows}) > 1 and not (key == "iterations" and explained)
    ]
    columns = [*dict.fromkeys(["run", *names, *results])]
    return [{key: row[key] for key in columns} for row in rows]


def is_result(column: str) -> bool:
    """Whether a column holds results, not names or options."""
    return column.endswith("(%)") or column.startswith(("best ", "test "))


def _scores(group: Group, monitor: str) -> dict[str, str]:
    """Validation and test values of the metric that chose best.ckpt; a dash for runs with another one."""
    known = group.runs[0].monitor == monitor
    columns = {f"best {monitor}": "val_score", f"test {monitor.removeprefix('val/')}": "test_score"}
    return {column: _spread(group, name, 1, ".4f") if known else MISSING for column, name in columns.items()}


def _spread(group: Group, name: str, scale: float = 100, form: str = ".2f") -> str:
    """Mean ± standard deviation, in per cent by default; with the number of runs if not all of them have the value."""
    mean, deviation = group.statistics(name)
    text = number(scale * mean, form) + ("" if math.isnan(deviation) else f" ± {scale * deviation:{form}}")
    known = sum(not math.isnan(getattr(run, name)) for run in group.runs)
    return text if known in (0, len(group.runs)) else f"{text} (n = {known})"


def table_title(groups: Sequence[Group]) -> str:
    """Returns what all groups have in common: model, dataset and number of seeds."""
    common = [values.pop() for name in ("model", "data") if len(values := {getattr(g, name) for g in groups}) == 1]
    counts = {len(group.runs) for group in groups}
    seeds = f", n = {max(counts)}" if len(counts) == 1 else ""
    spread = [f"mean ± standard deviation over seeds{seeds}"] if max(counts) > 1 else []
    return " · ".join(common + spread)


def comparison_table(groups: Sequence[Group]) -> Table:
    """Returns the table for the terminal, with as many differing options as fit, at most `MAX_OPTIONS`."""
    rows = table_cells(groups)
    options = [*option_headings([*groups[0].options]).values()]
    options = [option for option in options if option in rows[0]]
    widths = {key: max(len(key.split(" top-1")[0]), *(len(row[key]) for row in rows)) + 1 for key in rows[0]}
    available = report_width() - 2 - sum(width for key, width in widths.items() if key not in options)
    fitting = [sum(widths[option] for option in options[: count + 1]) <= available for count in range(len(options))]
    hidden = options[min(MAX_OPTIONS, sum(fitting)) :]
    caption = Text(f"{len(hidden)} more differing options: {', '.join(hidden)}") if hidden else None
    style = {"title_justify": "left", "title_style": "", "caption_justify": "left", "padding": (0, 1, 0, 0)}
    table = Table(box=SIMPLE_HEAD, title=Text(table_title(groups)), caption=caption, **style)
    columns = [key for key in rows[0] if key not in hidden]
    for key in columns:
        heading = Text(key.replace(" top-1", "\ntop-1"))
        table.add_column(heading, justify="right" if is_result(key) or key == "n" else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(row[key]) for key in columns))
    return table


def markdown(groups: Sequence[Group]) -> str:
    """Returns the table as Markdown, with all differing options."""
    rows = table_cells(groups)
    lines = [list(rows[0]), ["---:" if is_result(key) or key == "n" else "---" for key in rows[0]]]
    lines += [[cell.replace("|", "\\|").replace("*", "\\*") for cell in row.values()] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
