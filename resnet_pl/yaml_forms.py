"""How values in YAML files and options are read: short names of networks, names of earlier versions, class names."""

from __future__ import annotations

import json
from typing import Any

import torch
import yaml
from jsonargparse import get_loader, set_dumper, set_loader
from jsonargparse.typing import register_type
from lightning.pytorch import strategies

from resnet_pl import models
from resnet_pl._renamed import upgrade_config, upgrade_value
from resnet_pl.run_dir import to_yaml
from resnet_pl.utils import expand_values

# Name of the loader and dumper that are registered below.
PARSER_MODE = "resnet_pl"

# Lightning's classes of strategies.
STRATEGIES = [name for name in strategies.__all__ if name != "Strategy" and name.endswith("Strategy")]

# Lists of text, also where YAML reads a switch or a number: [yes, no], [1e3, 007].
TEXT_LISTS = ("class_names",)

SHUFFLENET = "torchvision.models.shufflenet_v2_"


def full_name(name: Any) -> Any:
    """Returns the import path of a network of this package; jsonargparse resolves short names of classes only."""
    return f"resnet_pl.models.{name}" if isinstance(name, str) and name in models.NETWORKS else name


def expand_option(key: str, value: str) -> str:
    """Returns the value of an option in the form that jsonargparse reads.

    Args:
        key: the option, such as `--model.backbone`.
        value: its value, as the user has written it.
    """
    name = key.rpartition(".")[2].removeprefix("--")
    if name in TEXT_LISTS:
        expanded = _text(value)
        return json.dumps(expanded) if isinstance(expanded, list) else value
    expanded = _expand(value, None, name)
    return expanded if isinstance(expanded, str) else json.dumps(expanded)


def _expand(value: Any, text: Any, key: str = "") -> Any:
    """Replaces short names of networks by import paths, in `backbone` and `class_path`, and keeps the text of names.

    Args:
        value: the value as YAML reads it.
        text: the same value with all scalars as text.
        key: its key.
    """
    if isinstance(value, dict):
        texts = text if isinstance(text, dict) else {}
        return _shufflenet({name: _expand(item, texts.get(name), name) for name, item in value.items()})
    if isinstance(value, list):
        if key in TEXT_LISTS and isinstance(text, list):
            return text
        texts = text if isinstance(text, list) and len(text) == len(value) else [None] * len(value)
        return [_expand(item, other) for item, other in zip(value, texts, strict=True)]
    if key == "strategy" and value in STRATEGIES:
        # The parser takes any text as one of Lightning's short names, such as ddp.
        return {"class_path": f"lightning.pytorch.strategies.{value}"}
    if key == "backbone" and isinstance(value, str):
        return _shufflenet({"class_path": value}) if value.startswith(SHUFFLENET) else full_name(value)
    return full_name(value) if key == "class_path" else value


def _shufflenet(section: dict[Any, Any]) -> dict[Any, Any]:
    """Returns a section that names a ShuffleNet of torchvision by `get_model`.

    jsonargparse takes the arguments that its function passes on by position for required ones.
    """
    path = section.get("class_path")
    if not isinstance(path, str) or not path.startswith(SHUFFLENET):
        return section
    others = {**(section.get("init_args") or {}), **(section.get("dict_kwargs") or {})}
    name = {"name": path.rpartition(".")[2]}
    return {"class_path": "torchvision.models.get_model", "init_args": name} | (
        {"dict_kwargs": others} if others else {}
    )


def _text(text: str) -> Any:
    """Returns YAML with all scalars as text."""
    try:
        return yaml.load(text, yaml.BaseLoader)
    except yaml.YAMLError:
        return None


_load_yaml = get_loader("yaml")


def _load(text: str) -> Any:
    value = expand_values(_load_yaml(text))
    if isinstance(value, dict) and isinstance(enabled := value.get("dashboard"), bool):
        value["dashboard"] = {"enabled": enabled}
    value = upgrade_config(value, "configuration") if isinstance(value, dict) else upgrade_value(value)
    return _expand(value, _text(text) if any(key in text for key in TEXT_LISTS) else None)


set_loader(PARSER_MODE, _load, exceptions=(yaml.YAMLError,))
set_dumper(PARSER_MODE, to_yaml)
# The default of an argument of StochasticWeightAveraging.
register_type(torch.device)
