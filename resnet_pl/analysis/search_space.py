"""The values that a search tries: ranges and lists, as they are given on the command line."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from resnet_pl.analysis.grid import RANGE, key_values, run_name
from resnet_pl.utils import UserError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


def search_space(search: Sequence[str]) -> dict[str, BaseDistribution]:
    """Returns the values to search, by option.

    Args:
        search: `KEY=LOW:HIGH`, `KEY=log:LOW:HIGH` or `KEY=VALUE,VALUE` for each option.

    Raises:
        UserError: a text has another form, a range is empty, or an option is given twice.
    """
    space: dict[str, BaseDistribution] = {}
    for text in search:
        key, values = key_values("search", text)
        if key in space:
            raise UserError(f"sweep: two --search of {key}\nremove one")
        space[key] = _range(text, values[0]) if len(values) == 1 else _choice(text, key, values)
    return space


def _choice(text: str, key: str, values: list[str]) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution

    # A trial is found by its name.
    names = [run_name({key: value}) for value in values]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"sweep: --search {text}: two values have the run name {twice[0]}\nremove or rename one")
    return CategoricalDistribution(values)


def _range(text: str, value: str) -> BaseDistribution:
    """A range of whole numbers if both ends are written without a point, else of numbers."""
    from optuna.distributions import FloatDistribution, IntDistribution

    parts = re.fullmatch(RANGE, value)
    if parts is None:
        forms = "KEY=0.0:0.2, KEY=log:0.001:0.3, KEY=16:64 for whole numbers, or KEY=SGD,Adam"
        raise UserError(f"sweep: --search {text} is neither a range nor several values\nuse {forms}")
    log, low, high = bool(parts[1]), float(parts[2]), float(parts[3])
    if not low < high or math.isinf(high - low):
        raise UserError(f"sweep: --search {text} is not a range\ngive two different numbers, the smaller one first")
    if log and low <= 0:
        raise UserError(f"sweep: --search {text}: a logarithmic range cannot start at {parts[2]}\nstart above 0")
    if all(re.fullmatch(r"[+-]?\d+", end) for end in parts.groups()[1:]):
        return IntDistribution(int(low), int(high), log=log)
    return FloatDistribution(low, high, log=log)


def as_options(params: Mapping[str, Any]) -> dict[str, str]:
    """Returns the values of a setting as options. Four digits suffice, and are readable in names and tables."""
    return {key: f"{value:.4g}" if isinstance(value, float) else str(value) for key, value in params.items()}
