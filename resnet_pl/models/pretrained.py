"""Pretrained weights from torchvision, a URL or a file; the head is not loaded if the number of classes differs."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import torchvision.models
from torch import Tensor, nn
from torchvision.models import WeightsEnum, get_model_weights, get_weight, list_models

from resnet_pl.data.digests import describe_trained
from resnet_pl.models.class_rows import keep_rows, match_classes
from resnet_pl.models.heads import find_classifier, find_heads
from resnet_pl.models.resnet import ResNet
from resnet_pl.models.weights_file import read_weights
from resnet_pl.utils import UserError, similar

OPTIONAL = "num_batches_tracked"
"""Suffix of keys that a file may lack: torch 0.4.1 added them to BatchNorm, and only cumulative averages use them."""

RENAMES = (
    (r"^linear\.", "fc."),  # github.com/kuangliu/pytorch-cifar
    (r"\.shortcut\.", ".downsample."),
    (r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2"),  # torchvision's DenseNet files
)

TORCHVISION: dict[tuple[str, tuple[int, ...]], str] = {
    ("basic", (2, 2, 2, 2)): "ResNet18_Weights",
    ("basic", (3, 4, 6, 3)): "ResNet34_Weights",
    ("bottleneck", (3, 4, 6, 3)): "ResNet50_Weights",
    ("bottleneck", (3, 4, 23, 3)): "ResNet101_Weights",
    ("bottleneck", (3, 8, 36, 3)): "ResNet152_Weights",
}
"""torchvision's weights for a `ResNet`, by its `block` and `layers`."""


@dataclass
class Pretrained:
    """Pretrained weights that fit a network, except for its heads.

    Attributes:
        source: full name, path or URL.
        path: the file.
        state: state dict with the keys of the network.
        outputs: number of outputs of the file's head; None if the file has no head for this network.
        classes: name of each output; None if they are not known.
        own: whether this project has written the names into the file.
        left_out: what is in the file and not in the network, for messages.
        trained: fingerprints of the training images, if they are known.
    """

    source: str
    path: Path
    state: dict[str, Tensor]
    outputs: int | None
    classes: list[str] | None
    own: bool
    left_out: str
    trained: str = ""


def load_pretrained(
    model: nn.Module,
    weights: str,
    fetch: Callable[[str], Path],
    class_names: Sequence[str] | None = None,
    digests: Mapping[str, str] | None = None,
) -> str:
    """Loads pretrained weights into a network that is trained next.

    Its heads are unchanged if the number of classes differs. From a file of this project, which has class names, each
    class gets the row of its name, and only classes that the file does not know keep their initial weights.

    Args:
        model: classification network.
        weights: path, URL (http, https, file, hf), or torchvision name: a full one (`ResNet34_Weights.IMAGENET1K_V1`)
            or, for this project's ResNets, a short one (`IMAGENET1K_V1`, `DEFAULT`).
        fetch: downloads a URL and returns the path of the file.
        class_names: names of the network's classes.
        digests: `fingerprints` of the images of each split, to find those that the weights were trained on.

    Returns:
        A message that describes the loaded weights.

    Raises:
        UserError: the weights do not exist, or belong to another network.
    """
    found = open_pretrained(model, weights, fetch)
    heads, initial = _head_keys(model), model.state_dict()
    count, known = len(find_classifier(model)[1].weight), found.classes if found.own else None
    note = ""
    if known is not None and class_names is not None and found.outputs == len(known):
        rows = match_classes([[name] for name in class_names], known)
        note = _describe_rows(class_names, rows)
        for key in heads & found.state.keys():
            found.state[key] = keep_rows(found.state[key], initial[key], rows)
    elif found.outputs != count:
        note = f"; new head for {count} classes (the file has {found.outputs or 'none'})"
        found.state = {key: value for key, value in found.state.items() if key not in heads}
    message = load_all(model, found, note, without=heads - found.state.keys() if note else set())
    return "\n".join(filter(None, [message, describe_trained(digests or {}, found.trained)]))


def load_all(model: nn.Module, found: Pretrained, note: str = "", without: Set[str] = frozenset()) -> str:
    """Loads all weights into a network and returns a message; raises UserError if others than `without` are missing."""
    expected = {key: value for key, value in model.state_dict().items() if key not in without}
    _check_keys(found.state, expected, f"{found.path} does not match {_describe(model)}")
    model.load_state_dict(found.state, strict=False)
    return f"weights {found.source}: {len(found.state)} tensors loaded{note}{found.left_out}"


def open_pretrained(
    model: nn.Module, weights: str, fetch: Callable[[str], Path], from_checkpoint: bool = True
) -> Pretrained:
    """Finds and reads weights.

    Raises:
        UserError: they do not fit the network, except for its heads, or are a checkpoint, without `from_checkpoint`.
    """
    source, path, categories = _locate(model, weights, fetch)
    file, expected, heads = read_weights(path), model.state_dict(), _head_keys(model)
    if file.is_checkpoint and not from_checkpoint:
        raise UserError(
            f"model.weights: {source} is a checkpoint, which has a normalization and training images of its own\n"
            f"evaluate it with --ckpt_path {source}, without --model.weights"
        )
    body = {key: value for key, value in expected.items() if key not in heads}
    inside = _without_prefix(file.state, expected, body)
    state = _convert(inside, expected)
    main, layer = find_classifier(model)
    weight = state.get(f"{main}.weight")
    has_head = weight is not None and weight.shape[1:] == layer.weight.shape[1:]
    # Layers of other heads: auxiliary ones, and the projection of a network trained without labels.
    others = ("aux", "Aux") if has_head else ("aux", "Aux", f"{main}.")
    used = {key: value for key, value in state.items() if key in expected or not key.startswith(others)}
    if not has_head:
        used = {key: value for key, value in used.items() if key not in heads}
    problem = f"{path} does not match {_describe(model)}"
    _check_keys({key: value for key, value in used.items() if key not in heads}, body, problem)
    values = {id(value) for value in used.values()}
    left_out = Counter(key.partition(".")[0] for key, value in file.state.items() if id(value) not in values)
    note = ", ".join(f"{name} ({count})" for name, count in left_out.items())
    return Pretrained(
        source=source,
        path=path,
        state=used,
        outputs=len(weight) if weight is not None and has_head else None,
        classes=file.classes or categories,
        own=file.classes is not None,
        left_out=f"; not used: {note}" if note else "",
        trained=file.trained,
    )


def _head_keys(model: nn.Module) -> set[str]:
    return {f"{name}.{key}" for name, head in find_heads(model).items() for key in head.state_dict()}


def _without_prefix(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], body: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Returns the part of a file that is the network, such as `encoder.` of a network trained without labels."""
    if not body:  # a network of a head only
        return dict(state)
    first = next(iter(body))
    prefixes = ["", *(key.removesuffix(first) for key in state if key.endswith(f".{first}"))]
    parts = [{key.removeprefix(each): state[key] for key in state if key.startswith(each)} for each in prefixes]
    return min(parts, key=lambda part: len(body.keys() - _convert(part, expected).keys()))


def _convert(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {_convert_key(key, expected): value for key, value in state.items()}


def _describe_rows(class_names: Sequence[str], rows: Sequence[int | None]) -> str:
    """Returns which classes have a row in the file's head, for the message."""
    added = [name for name, row in zip(class_names, rows, strict=True) if row is None]
    if not added:
        return ""
    shown = ", ".join(added[:6]) + (", …" if len(added) > 6 else "")
    return f"; the head keeps {len(rows) - len(added)} of {len(rows)} classes, new: {shown}"


def _locate(model: nn.Module, weights: str, fetch: Callable[[str], Path]) -> tuple[str, Path, list[str] | None]:
    """Returns the full name of the weights, their file, and torchvision's names of their classes."""
    if re.match(r"(https?|file|hf)://", weights):
        return weights, fetch(weights), None
    path = Path(weights).expanduser()
    # File suffixes are lowercase; in a torchvision name the part after the dot is uppercase.
    if path.is_file() or re.search(r"[/\\]", weights) or path.suffix[1:2].islower():
        return weights, path, None
    entry = _torchvision_weights(model, weights)
    return str(entry), fetch(entry.url), entry.meta.get("categories")


def _torchvision_weights(model: nn.Module, name: str) -> WeightsEnum:
    """Returns the torchvision weights with a full or short name."""
    args = model.init_args if isinstance(model, ResNet) else {}
    if args.get("block") == "bottleneck" and args["variant"] == "v1":
        raise UserError(f"weights {name}: torchvision's bottlenecks are v1.5, this model's are v1\nset variant to v1.5")
    full = name
    if "." not in name:
        enum = TORCHVISION.get((args["block"], tuple(args["layers"]))) if args else None
        if enum is None or args["shortcut"] != "B" or args["stem"] != "imagenet":
            raise UserError(
                f"weights {name}: torchvision has no weights for {_describe(model)}\n"
                "give a path, a URL or a full name such as ConvNeXt_Tiny_Weights.IMAGENET1K_V1"
            )
        full = f"{enum}.{name}"
    try:
        return get_weight(full)
    except (ValueError, KeyError) as error:
        raise UserError(_unknown_weights(name, full)) from error


def _unknown_weights(name: str, full: str) -> str:
    """Returns the message for a torchvision name that does not exist."""
    enums = [get_model_weights(model) for model in list_models(module=torchvision.models)]
    known = [f"{enum.__name__}.{member}" for enum in enums for member in enum.__members__]
    available = [entry for entry in known if entry.startswith(f"{full.split('.')[0]}.")]
    near = similar(full, available or known, 2)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return (
        f"weights {name}: torchvision has no such weights{hint}\n"
        f"available: {', '.join(available) or 'a path, a URL, or a name of docs.pytorch.org/vision/stable/models.html'}"
    )


def _convert_key(key: str, expected: Mapping[str, Tensor]) -> str:
    """Returns the model's key for a key of the file."""
    new = key
    for pattern, replacement in RENAMES:
        new = re.sub(pattern, replacement, new)
    return new if new in expected and key not in expected else key


def _check_keys(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], problem: str) -> None:
    """Raises UserError if keys or shapes differ."""
    missing = [f"missing {k}" for k in expected if k not in state and not k.endswith(OPTIONAL)]
    unexpected = [f"unexpected {k}" for k in state if k not in expected]
    mismatched = [
        f"{key} is {tuple(value.shape)} in the file, {tuple(expected[key].shape)} in the model"
        for key, value in state.items()
        if key in expected and value.shape != expected[key].shape
    ]
    if first := next(iter(missing + unexpected + mismatched), ""):
        counts = f"{len(missing)} keys missing, {len(unexpected)} unexpected, {len(mismatched)} with another shape"
        raise UserError(f"{problem}: {counts}\nthe first: {first}")


def _describe(model: nn.Module) -> str:
    """Returns a short description of a model."""
    if not isinstance(model, ResNet):
        return type(model).__name__
    return "ResNet({block}, {layers}, shortcut {shortcut}, {stem} stem, width {width})".format(**model.init_args)
