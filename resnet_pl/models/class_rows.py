"""Rows of a classifier head by the name of their class: known classes in a new head, and the order of the data."""

from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights

from resnet_pl.models.heads import find_heads


@cache
def imagenet_categories() -> tuple[str, ...]:
    """Returns torchvision's names of the 1,000 classes of ImageNet."""
    return tuple(ResNet18_Weights.DEFAULT.meta["categories"])


@cache
def wordnet_ids() -> tuple[str, ...]:
    """Returns the WordNet IDs of the 1,000 classes of ImageNet, in the same order."""
    return tuple((Path(__file__).parent / "wordnet_ids.txt").read_text(encoding="ascii").split())


def match_classes(wanted: Iterable[Sequence[str]], known: Sequence[str]) -> list[int | None]:
    """Returns the position of each wanted class among the known ones; None for a class that is not known.

    A name matches exactly, or else if only case, spaces, hyphens and underscores differ. The classes of ImageNet are
    also found by their WordNet ID. A name that two known classes share matches none of them.

    Args:
        wanted: the names of each class, in order of preference.
        known: names of the known classes.
    """
    tables = [_positions(known), _positions([_plain(name) for name in known])]
    if tuple(known) == imagenet_categories():
        tables[0] |= {name: position for position, name in enumerate(wordnet_ids())}
    found = []
    for names in wanted:
        exact = (tables[0].get(name) for name in names)
        similar = (tables[1].get(_plain(name)) for name in names)
        found.append(next((position for position in (*exact, *similar) if position is not None), None))
    return found


def _plain(name: str) -> str:
    return name.casefold().replace("_", " ").replace("-", " ")


def _positions(names: Sequence[str]) -> dict[str, int]:
    """Returns the position of each name that occurs once."""
    first = {name: position for position, name in reversed(list(enumerate(names)))}
    repeated = {name for position, name in enumerate(names) if first[name] != position}
    return {name: position for name, position in first.items() if name not in repeated}


def keep_rows(old: Tensor, initial: Tensor, rows: Sequence[int | None]) -> Tensor:
    """Returns a head's weight or bias with the old rows of known classes, and the initial rows of new ones.

    Args:
        old: `(F, …)`, one row for each known class.
        initial: `(K, …)`, one row for each class.
        rows: K positions in `old`, None for a new class.
    """
    kept = initial.clone()
    for row, position in enumerate(rows):
        if position is not None:
            kept[row] = old[position]
    return kept


@torch.no_grad()
def order_outputs(model: nn.Module, order: Sequence[int]) -> None:
    """Puts the outputs of a network in another order, in place."""
    for head in find_heads(model).values():
        for parameter in head.parameters():
            parameter.copy_(parameter[list(order)].clone())
