"""What may be changed in a run that goes on from a checkpoint, and what may not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from resnet_pl.utils import UserError

# A run that goes on keeps the split that its checkpoint holds: other images to validate on would be ones it trained on.
SPLIT = ("val_split", "test_split", "split_seed", "num_folds", "fold")


def changed_arguments(before: Mapping[str, Any], now: Mapping[str, Any]) -> set[str]:
    """Names of the optimiser's arguments, `lr` apart, that a run goes on with other values of.

    Args:
        before: the configuration in the checkpoint; empty for a net built from Python, of which nothing is known.
        now: the configuration that the run goes on with.

    Raises:
        UserError: something is changed that cannot be: the optimiser, its parameter groups, or the split.
    """
    if not before or not now:
        return set()
    net, net_now = before.get("model") or {}, now.get("model") or {}
    old, new = net.get("optimizer") or {}, net_now.get("optimizer") or {}
    if old.get("class_path") != new.get("class_path"):
        raise UserError(
            f"the run was trained with {old.get('class_path')}, not {new.get('class_path')}\n"
            "start a new run with another optimiser, from these weights with --model.weights"
        )
    data, data_now = before.get("data") or {}, now.get("data") or {}
    fixed = [("model.decay_norm_and_bias", net, net_now)]
    if data.get("class_path") == data_now.get("class_path"):
        fixed += [(f"data.{key}", _arguments(data), _arguments(data_now)) for key in SPLIT]
    for name, was, given in fixed:
        key = name.split(".")[1]
        if key in was and key in given and was[key] != given[key]:
            raise UserError(
                f"{name}: the run was trained with {was[key]}, it cannot go on with {given[key]}\n"
                "leave it out, or start a new run, from these weights with --model.weights"
            )
    was, given = _arguments(old), _arguments(new)
    return {key for key, value in given.items() if key != "lr" and value != was.get(key)}


def _arguments(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    return spec.get("init_args") or {}


def check_net(own: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Compares the tensors of a net with those of a checkpoint, before one is touched; both by name.

    Raises:
        UserError: they are of another net.
    """
    other = [key for key in own.keys() | given.keys() if key not in own or key not in given]
    other += [key for key in own.keys() & given.keys() if own[key].shape != given[key].shape]
    if other:
        raise UserError(
            f"the checkpoint holds another net: {len(other)} of its tensors differ, such as {min(other)}\n"
            "leave model.backbone to the checkpoint"
        )
