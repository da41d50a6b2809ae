"""What a net is made of and what it costs: layers, parameters, multiply-adds, memory; others beside it (Fig. 3).

Multiply-adds are those of convolutions, linear layers and attention. Activations are what training keeps of an image
for the backward pass, in float32, put down to the layer that is the first to keep it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial, reduce
from operator import add
from pathlib import Path
from typing import Any, Literal

import torch
import torchvision
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import nn

from resnet_pl import checkpoint as ckpt
from resnet_pl import models
from resnet_pl.analysis.complexity import ModuleCost, count_costs, group_by_depth
from resnet_pl.command_line import read_config, split_option
from resnet_pl.config import PARSER_MODE, expand_arguments, parser_message
from resnet_pl.models.pretrained import reset_classifier
from resnet_pl.reports.tables import numbers_table, print_report, write_csv
from resnet_pl.run_dir import class_name, find_checkpoint, get_init_args
from resnet_pl.types import PositiveInt
from resnet_pl.utils import UserError, similar

MAX_ROWS = 40
NO_NET = "summary: there is no net\ngive --backbone resnet50, --config configs/cifar10.yaml or --ckpt_path best"


def add_arguments(parser: ArgumentParser) -> None:
    """See the package."""
    # Reads short names of our networks inside a configuration too.
    parser.parser_mode = PARSER_MODE
    parser.add_argument("--backbone", type=nn.Module | None, default=None, help="any network, as for fit")
    told = "a training's configuration, or a checkpoint, to take the net from"
    parser.add_argument("--config", "--ckpt_path", type=str | None, help=told)
    parser.add_argument("--num_classes", type=PositiveInt | None, default=None, help="fit the last layer to them")
    size = "pixels a side; the training's own if there is one, else 224, and 32 for a CIFAR stem"
    parser.add_argument("--image_size", type=PositiveInt | None, default=None, help=size)
    depth = f"how deep to look into the net; as deep as {MAX_ROWS} lines show if not given"
    parser.add_argument("--depth", type=PositiveInt | Literal["all"] | None, default=None, help=depth)
    beside = "nets to compare with, ours or torchvision's, such as vgg19 plain34"
    parser.add_argument("--compare", type=str, nargs="+", default=[], help=beside)
    parser.add_argument("--output", type=str | None, default=None, help="CSV file to write as well")


def parse(parser: ArgumentParser, options: Sequence[str]) -> Namespace:
    """See the package: nets can be named by their last word, and the line wins over files, wherever they stand."""
    files, others = split_option(options, "--config", "--ckpt_path")
    words = [word for file in files for word in _net_of(file)]
    try:
        return parser.parse_args(expand_arguments([*words, *others]))
    except ArgumentError as error:
        if not words and not any(re.match("--backbone(=|$)", word) for word in others):
            raise UserError(NO_NET) from error
        raise UserError(f"summary: {parser_message(str(error))}") from error


def _net_of(file: str) -> list[str]:
    """The net, its classes and the image size of a training's configuration or checkpoint, as options."""
    if Path(file).suffix in (".yaml", ".yml"):
        config = read_config(Path(file))
    else:
        path = find_checkpoint(file)
        config = ckpt.config_of(ckpt.read(path), path, "test")
    model, data = get_init_args(config.get("model")), get_init_args(config.get("data"))
    values = {name: model.get(name) for name in ("backbone", "num_classes")} | {"image_size": data.get("image_size")}
    told = {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items() if value}
    return [f"--{key}={text}" for key, text in told.items()]


def run(settings: Namespace) -> None:
    """Counts and prints."""
    if settings.backbone is None:
        raise UserError(NO_NET)
    name = _title(settings.backbone)
    layers, size = _count(name, partial(_build, settings.backbone, settings.num_classes), settings.image_size)
    rows = group_by_depth(layers, _depth(layers, settings.depth))
    totals = {name: reduce(add, layers)}
    for other in settings.compare:
        build = partial(_build, _named(other), settings.num_classes)
        totals[other] = reduce(add, _count(other, build, size)[0])
    note = Text(f" One image of {size} × {size} pixels; activations: what training keeps of it.", style="dim")
    tables = [_layer_table(rows, totals[name]), *([_net_table(totals)] if settings.compare else [])]
    print_report(Group(Text(f" {name}", style="bold"), *tables, note))
    if settings.output:
        _write(Path(settings.output), name, rows, totals)
        print(f"written to {settings.output}")


def _named(name: str) -> Namespace:
    """The configuration of a net of ours, of torchvision's, or of a path, with its defaults."""
    theirs = torchvision.models.list_models(module=torchvision.models)
    if "." not in name and name not in [*models.__all__, *theirs]:
        near = similar(name, [*models.__all__, *theirs], 3)
        hint = f"did you mean {' or '.join(near)}?" if near else "give the full path, such as package.Class"
        raise UserError(f"summary: there is no net {name}\n{hint}")
    path = name if "." in name or name in models.__all__ else f"torchvision.models.{name}"
    parser = ArgumentParser(exit_on_error=False)
    add_arguments(parser)
    return parse(parser, ["--backbone", path]).backbone


def _title(backbone: Namespace) -> str:
    """The net's name and the arguments that are not its defaults."""
    given: dict[str, Any] = vars(backbone.get("init_args") or Namespace())
    defaults = Namespace()
    with suppress(UserError):  # it has arguments without defaults
        defaults = _named(backbone.class_path).get("init_args") or Namespace()
    changed = [f"{key}={value}" for key, value in given.items() if value != defaults.get(key)]
    name = class_name(backbone.class_path)
    return f"{name}({', '.join(changed)})" if changed else name


def _build(backbone: Namespace, num_classes: int | None) -> nn.Module:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--backbone", type=nn.Module)
    try:
        net = parser.instantiate_classes(Namespace(backbone=backbone.clone())).backbone
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(f"summary: backbone: {parser_message(str(error))}") from error
    if num_classes is not None:
        reset_classifier(net, num_classes)
    return net


def _count(name: str, build: Callable[[], nn.Module], image_size: int | None) -> tuple[list[ModuleCost], int]:
    """What the layers cost, and the image size."""
    try:
        with torch.device("meta"):
            net = build()
            size = image_size or _image_size(net)
            return count_costs(net, size), size
    # Some nets read values, which are not there on the meta device; what else is wrong shows again.
    except Exception:
        net = build()
    size = image_size or _image_size(net)
    try:
        return count_costs(net, size), size
    # Other people's nets raise anything.
    except Exception as error:
        what = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{name} takes no image of {size} pixels: {what}\ngive another --image_size") from error


def _image_size(net: nn.Module) -> int:
    return 32 if getattr(net, "init_args", {}).get("stem") == "cifar" else 224


def _depth(layers: list[ModuleCost], asked: int | str | None) -> int:
    deepest = max(layer.name.count(".") + 1 for layer in layers)
    if asked is not None:
        return deepest if asked == "all" else int(asked)
    return next((depth for depth in range(deepest, 1, -1) if len(group_by_depth(layers, depth)) <= MAX_ROWS), 1)


def _layer_table(rows: list[ModuleCost], total: ModuleCost) -> Table:
    table = _table("layer", "type", "output")
    for row in rows:
        shape = "×".join(map(str, row.shape)) if row.shape else "–"
        table.add_row(Text(row.name or "the net itself"), Text(row.kind), shape, *_costs(row))
    table.add_section()
    table.add_row("total", "", "", *_costs(total), style="bold")
    return table


def _net_table(totals: dict[str, ModuleCost]) -> Table:
    table = _table("net")
    for name, total in totals.items():
        table.add_row(Text(name), *_costs(total))
    return table


def _table(*names: str) -> Table:
    table = numbers_table(*names, numbers=("parameters", "multiply-\nadds, M", "activations,\nMiB"))
    for column in table.columns:
        # Where it is narrow, the types make room.
        column.no_wrap = column.header != "type"
    return table


def _costs(layer: ModuleCost) -> tuple[str, str, str]:
    return f"{layer.parameters:,}", f"{layer.multiply_adds / 1e6:,.2f}", f"{layer.activations / 2**20:,.2f}"


def _write(path: Path, name: str, rows: list[ModuleCost], totals: dict[str, ModuleCost]) -> None:
    """CSV: a line for each layer shown, and one called `total` for each net."""
    named = [(name, row.name, row) for row in rows] + [(net, "total", total) for net, total in totals.items()]
    lines = (
        [net, layer, row.kind, "x".join(map(str, row.shape or ())), row.parameters, row.multiply_adds, row.activations]
        for net, layer, row in named
    )
    write_csv(path, ["net", "layer", "type", "output", "parameters", "multiply_adds", "activation_bytes"], lines)
