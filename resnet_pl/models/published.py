"""Pretrained weights that are evaluated unchanged: their classes are found in the data by name or WordNet ID."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from resnet_pl.data.provenance import classes_of, describe
from resnet_pl.models.class_rows import imagenet_categories, match_classes, order_outputs
from resnet_pl.models.heads import reset_classifier
from resnet_pl.models.pretrained import Pretrained, load_all, open_pretrained
from resnet_pl.utils import UserError


@dataclass
class Published:
    """What was loaded.

    Attributes:
        message: a description.
        class_names: name of each output; None if the names are not known.
        num_classes: number of outputs.
    """

    message: str
    class_names: list[str] | None
    num_classes: int


def load_published(
    model: nn.Module, weights: str, fetch: Callable[[str], Path], data: Any, names: Sequence[str] | None = None
) -> Published:
    """Loads pretrained weights with their head into a network that is evaluated without training.

    The outputs are put in the order of the data's classes, followed by the other classes of the weights.

    Args:
        model: classification network.
        weights: see `load_pretrained`.
        fetch: see `load_pretrained`.
        data: the data module; without classes, as for `predict` with files, the outputs keep their order.
        names: names of the outputs, in place of the file's.

    Raises:
        UserError: the weights do not exist, belong to another network, have no head, or lack a class of the data; or
            they are a checkpoint, whose splits and normalization would be ignored.
    """
    found = open_pretrained(model, weights, fetch, from_checkpoint=False)
    if found.outputs is None:
        raise UserError(
            f"weights {found.source}: the file has no classifier head for this network\n"
            f"train one first: fit --model.weights {weights}"
        )
    reset_classifier(model, found.outputs)
    message = load_all(model, found)
    classes, note = _name_outputs(found, found.outputs, names, data)
    wanted = classes_of(data)
    if wanted is not None and classes is not None:
        rows = _find(wanted, data, classes, found.source)
        others = [row for row in range(found.outputs) if row not in set(rows)]
        order_outputs(model, [*rows, *others])
        classes = [*wanted, *(classes[row] for row in others)]
    return Published(message + note, classes, found.outputs)


def _name_outputs(
    found: Pretrained, outputs: int, names: Sequence[str] | None, data: Any
) -> tuple[list[str] | None, str]:
    """Returns the name of each output, if it is known, and a note if it is an assumption."""
    if (known := names or found.classes) is not None:
        if len(known) != outputs:
            raise UserError(
                f"model.class_names: {len(known)} names for the {outputs} outputs of the weights {found.source}\n"
                "give one for each output, in their order"
            )
        return list(known), ""
    wanted = classes_of(data)
    if wanted is not None and len(wanted) == outputs:
        return wanted, "; the file has no class names: its outputs are taken in the order of the data's classes"
    if outputs == len(imagenet_categories()):
        return list(imagenet_categories()), "; the file has no class names: those of ImageNet are assumed"
    if wanted is None:
        return None, "; the file has no class names: the classes are numbered"
    raise UserError(
        f"weights {found.source} have {outputs} outputs without names, {describe(data)} has {len(wanted)} classes\n"
        "name the outputs in their order with --model.class_names, or train a head first with fit"
    )


def _find(wanted: Sequence[str], data: Any, known: Sequence[str], source: str) -> list[int]:
    """Returns the output of each class of the data; raises UserError if one has none."""
    ids = getattr(data, "classes", None)
    ids = ids if isinstance(ids, list | tuple) and len(ids) == len(wanted) else wanted
    rows = match_classes(zip(map(str, ids), wanted, strict=True), known)
    if missing := [name for name, row in zip(wanted, rows, strict=True) if row is None]:
        kind = "names or WordNet IDs" if tuple(known) == imagenet_categories() else "names"
        shown = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
        raise UserError(
            f"weights {source}: {len(missing)} of the {len(wanted)} classes of {describe(data)} are not among their "
            f"{len(known):,} classes: {shown}\nname the folders after the classes of the weights ({kind}), or train "
            "a head first with fit"
        )
    found = [row for row in rows if row is not None]
    if repeated := sorted({known[row] for row in found if found.count(row) > 1}):
        raise UserError(
            f"weights {source}: several classes of {describe(data)} are {repeated[0]}\n"
            "merge them, or train a head first with fit"
        )
    return found
