"""Show layers, parameters, multiply-adds and activation memory of a model, also compared with other models.

Multiply-adds are those of convolutions, linear layers and attention. Activations are the float32 values that training
saves per image for the backward pass. An activation that several layers save is attributed to the first of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
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
from resnet_pl import given_arguments, models
from resnet_pl.analysis.complexity import ModuleCost, count_costs, group_by_depth
from resnet_pl.command_line import split_option
from resnet_pl.config import default_image_size, expand_arguments, instantiate, parser_message
from resnet_pl.config_files import find_config, read_config
from resnet_pl.data.resizing import Size, height_width
from resnet_pl.models.heads import reset_classifier
from resnet_pl.reports.tables import numbers_table, print_report, write_csv
from resnet_pl.run_dir import class_name, find_checkpoint, get_init_args
from resnet_pl.types import PositiveInt
from resnet_pl.utils import UserError, similar
from resnet_pl.yaml_forms import PARSER_MODE

MAX_ROWS = 40
NO_MODEL = "summary: no model given\ngive --backbone resnet50, --config configs/cifar10.yaml or --ckpt_path best"


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the options of `summary`."""
    # Resolves short names of this project's models inside configuration files too.
    parser.parser_mode = PARSER_MODE
    parser.add_argument("--backbone", type=nn.Module | None, default=None, help="the model, as --model.backbone of fit")
    config = "configuration file or checkpoint to take the model from"
    parser.add_argument("--config", "--ckpt_path", type=str | None, help=config)
    parser.add_argument("--num_classes", type=PositiveInt | None, default=None, help="number of classes for the head")
    size = "pixels, or [height,width]; default: that of --config or --ckpt_path, else 224, or 32 for a CIFAR stem"
    parser.add_argument(
        "--image_size", type=PositiveInt | tuple[PositiveInt, PositiveInt] | None, default=None, help=size
    )
    depth = f"depth of the module tree to show, or all; default: as deep as fits in {MAX_ROWS} rows"
    parser.add_argument("--depth", type=PositiveInt | Literal["all"] | None, default=None, help=depth)
    compare = "models to compare with: names of this project or torchvision, for example vgg19 plain34"
    parser.add_argument("--compare", type=str, nargs="+", default=[], help=compare)
    parser.add_argument("--output", type=str | None, default=None, help="CSV file to write")


def parse(parser: ArgumentParser, options: Sequence[str]) -> Namespace:
    """Parses the options: models can be given by short name, and options override files regardless of their order."""
    files, others = split_option(options, "--config", "--ckpt_path")
    words = [word for file in files for word in _model_options(file)]
    try:
        return given_arguments.parse(parser, expand_arguments([*words, *others]))
    except ArgumentError as error:
        if not words and not any(re.match("--backbone(=|$)", word) for word in others):
            raise UserError(NO_MODEL) from error
        raise UserError(f"summary: {parser_message(str(error))}") from error


def _model_options(name: str) -> list[str]:
    """The model, the number of classes and the image size of a configuration file or checkpoint, as options."""
    file = name if name in ("best", "last") else find_config(name)
    if Path(file).suffix in (".yaml", ".yml"):
        config = read_config(Path(file))
    else:
        path = find_checkpoint(file)
        config = ckpt.config_of(ckpt.read(path), path, "test", given=["data"])
    section = config.get("data")
    model, data = get_init_args(config.get("model")), get_init_args(section)
    data_class = section.get("class_path") if isinstance(section, Mapping) else section
    values = {name: model.get(name) for name in ("backbone", "num_classes")}
    values["image_size"] = data.get("image_size") or default_image_size(str(data_class))
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items() if value}
    return [f"--{key}={text}" for key, text in texts.items()]


def run(settings: Namespace) -> None:
    """Runs the command."""
    if settings.backbone is None:
        raise UserError(NO_MODEL)
    name = _title(settings.backbone)
    layers, size = _count(name, partial(_build, settings.backbone, settings.num_classes), settings.image_size)
    rows = group_by_depth(layers, _depth(layers, settings.depth))
    totals = {name: reduce(add, layers)}
    for other in settings.compare:
        build = partial(_build, _parse_model(other), settings.num_classes)
        totals[other] = reduce(add, _count(other, build, size)[0])
    height, width = height_width(size)
    note = Text(f" Per image of {height} × {width} pixels. Activations are saved for the backward pass.", style="dim")
    tables = [_layer_table(rows, totals[name]), *([_model_table(totals)] if settings.compare else [])]
    if settings.output:
        _write(Path(settings.output), name, rows, totals)
    print_report(Group(Text(f" {name}", style="bold"), *tables, note))
    if settings.output:
        print(f"Saved to {settings.output}")


def _parse_model(name: str) -> Namespace:
    """The configuration, with defaults, of a model of this project or torchvision, or of an import path."""
    known = [*models.__all__, *torchvision.models.list_models(module=torchvision.models)]
    if "." not in name and name not in known:
        matches = similar(name, known, 3)
        hint = f"did you mean {' or '.join(matches)}?" if matches else "give the import path, such as package.Class"
        raise UserError(f"summary: unknown model {name}\n{hint}")
    path = name if "." in name or name in models.__all__ else f"torchvision.models.{name}"
    parser = ArgumentParser(exit_on_error=False)
    add_arguments(parser)
    return parse(parser, ["--backbone", path]).backbone


def _title(backbone: Namespace) -> str:
    """The model's name with the arguments that differ from the defaults."""
    given: dict[str, Any] = vars(backbone.get("init_args") or Namespace())
    defaults = Namespace()
    with suppress(UserError):  # the model has required arguments
        defaults = _parse_model(backbone.class_path).get("init_args") or Namespace()
    changed = [f"{key}={value}" for key, value in given.items() if value != defaults.get(key)]
    name = class_name(backbone.class_path)
    return f"{name}({', '.join(changed)})" if changed else name


def _build(backbone: Namespace, num_classes: int | None) -> nn.Module:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--backbone", type=nn.Module)
    try:
        model = instantiate(parser, Namespace(backbone=backbone.clone()))["backbone"]
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(f"summary: backbone: {parser_message(str(error))}") from error
    if num_classes is not None:
        reset_classifier(model, num_classes)
    return model


def _count(name: str, build: Callable[[], nn.Module], image_size: Size | None) -> tuple[list[ModuleCost], Size]:
    """The costs of all modules, and the image size."""
    try:
        with torch.device("meta"):
            model = build()
            size = image_size or _image_size(model)
            return count_costs(model, size), size
    # Some models read tensor values, which the meta device does not have. Other errors will be raised again below.
    except Exception:
        model = build()
    size = image_size or _image_size(model)
    try:
        return count_costs(model, size), size
    # A model of the user may raise any exception.
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{name} failed on an image of {size} pixels: {reason}\ngive another --image_size") from error


def _image_size(model: nn.Module) -> int:
    return 32 if getattr(model, "init_args", {}).get("stem") == "cifar" else 224


def _depth(layers: list[ModuleCost], requested: int | str | None) -> int:
    deepest = max(layer.name.count(".") + 1 for layer in layers)
    if requested is not None:
        return deepest if requested == "all" else int(requested)
    return next((depth for depth in range(deepest, 1, -1) if len(group_by_depth(layers, depth)) <= MAX_ROWS), 1)


def _layer_table(rows: list[ModuleCost], total: ModuleCost) -> Table:
    table = _table("layer", "type", "output")
    for row in rows:
        shape = "×".join(map(str, row.shape)) if row.shape else "–"
        table.add_row(Text(row.name or "(model)"), Text(row.kind), shape, *_costs(row))
    table.add_section()
    table.add_row("total", "", "", *_costs(total), style="bold")
    return table


def _model_table(totals: dict[str, ModuleCost]) -> Table:
    table = _table("model")
    for name, total in totals.items():
        table.add_row(Text(name), *_costs(total))
    return table


def _table(*names: str) -> Table:
    table = numbers_table(*names, numbers=("parameters", "multiply-\nadds, M", "activations,\nMiB"))
    for column in table.columns:
        # On a narrow terminal only the types are wrapped.
        column.no_wrap = column.header != "type"
    return table


def _costs(layer: ModuleCost) -> tuple[str, str, str]:
    return f"{layer.parameters:,}", f"{layer.multiply_adds / 1e6:,.2f}", f"{layer.activations / 2**20:,.2f}"


def _write(path: Path, name: str, rows: list[ModuleCost], totals: dict[str, ModuleCost]) -> None:
    """Writes a CSV file with one row per layer shown and one row `total` per model."""
    named = [(name, row.name, row) for row in rows] + [(model, "total", total) for model, total in totals.items()]
    lines = (
        [
            model,
            layer,
            row.kind,
            "x".join(map(str, row.shape or ())),
            row.parameters,
            row.multiply_adds,
            row.activations,
        ]
        for model, layer, row in named
    )
    write_csv(path, ["model", "layer", "type", "output", "parameters", "multiply_adds", "activation_bytes"], lines)
