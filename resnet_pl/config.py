"""Options and classes as jsonargparse takes them, and short error messages."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from pydoc import ErrorDuringImport, locate
from typing import Any, get_args, get_type_hints

import torchvision
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from resnet_pl import models
from resnet_pl._renamed import is_own, upgrade_path, upgrade_value
from resnet_pl.data import BatchTransform, Crop, ImageDataModule
from resnet_pl.data.defaults import describe_defaults
from resnet_pl.utils import UserError, similar
from resnet_pl.yaml_forms import PARSER_MODE, expand_option

# Classes that can be given by their name, without the module.
NAMEABLE = (ImageDataModule, BatchTransform, Crop, Callback, Logger, Optimizer, LRScheduler)

# Options that take something else than the name of a class, and what to use here.
FORMS = {
    "--model.schedule": "--model.lr_scheduler {}, or --model.schedule.shape step",
    "--model.metrics": "--model.metrics '{{my_name: {}}}'",
}

# Lines of jsonargparse's messages that are dropped.
WRAPPING = (
    "Does not validate", "Subtypes:", "Errors:", "Given value", "Problem with given class_path", "Expected a path",
    "Expected a config path",
    "Expected a <class 'NoneType'>", "Expected a <class 'collections.abc.Iterable'>", "Not a valid subclass",
    "Subclass types", "a class path", "a dict with",
)  # fmt: skip
KEY = re.compile(r'Parser key "([\w.+]+)":?')
RESTRICTION = re.compile(r"Not of type \w+: (?:(\S+) )?does not conform to restriction (.*)")
UNKNOWN_OPTION = re.compile(r"(?:[Oo]ption '(?:init_args\.)?|[Kk]ey '|unrecognized arguments: --)([\w.-]+)")
# What to use for a class that does not belong into a list of transforms.
OTHER_TRANSFORMS = {
    "data.transforms": "takes transforms of single images\nfor those of batches use data.batch_transforms",
    "data.batch_transforms": "takes transforms of batches\nfor those of single images use data.transforms",
}
CLASS_PATH = re.compile(r"class_path[ =]'([\w.]+)'")
UNKNOWN_CLASS = re.compile(r"Expected a dot import path string: (\S+)")


def _classes_first(args: Sequence[str]) -> list[str]:
    """Moves a class before its options, which must follow it, and `--data CLASS` and `--model CLASS` to the front."""
    groups: list[list[str]] = [[]]
    for word in args:
        if word.startswith("--"):
            groups.append([])
        groups[-1].append(word)
    names = ("--data", "--model", "--data.class_path", "--model.class_path")
    groups.sort(key=lambda group: bool(group) and group[0].partition("=")[0] not in names)
    ordered: list[list[str]] = []
    for group in groups:
        key = group[0].partition("=")[0] if group else ""
        before = [other[0].partition("=")[0] if other else "" for other in ordered]
        place = next((index for index, other in enumerate(before) if other.startswith(f"{key}.")), len(ordered))
        # An option that appends to a list, or replaces an earlier class, keeps its place.
        ordered.insert(len(ordered) if not key or key.endswith("+") or key in before else place, group)
    return [word for group in ordered for word in group]


def expand_arguments(args: Sequence[str]) -> list[str]:
    """Replaces class paths of earlier versions, and short names of networks by import paths; classes come first.

    Args:
        args: the options, such as `--model.backbone resnet50`.

    Raises:
        UserError: `--model` names a network, which is a backbone.
    """
    expanded: list[str] = []
    models_given = [
        word.partition("=")[2] or following
        for word, following in pairwise([*args, ""])
        if word.partition("=")[0] in ("--model", "--model.class_path")
    ]
    own_model = any(map(is_own, models_given))
    for word, following in pairwise([*_classes_first(args), ""]):
        key, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        if key == "--dashboard" and (value if equals else following).lower() in ("true", "false"):
            key = "--dashboard.enabled"
        named = key if equals else expanded[-1] if expanded else ""
        value = upgrade_value(value, named.rpartition(".")[2].rstrip("+"))
        if named == "--model" and value in models.NETWORKS:
            raise UserError(f"--model: {value} is a backbone\nuse --model.backbone {value}")
        takes_name = re.fullmatch(r"[\w.]+", value) and value != "null" and not Path(value).is_file()
        if named in FORMS and takes_name and not own_model:
            raise UserError(f"{named}: {value} is not accepted\nuse {FORMS[named].format(value)}")
        if named.startswith("--"):
            value = expand_option(named, value)
        expanded.append(f"{key}{equals}{value}")
    return expanded


def keep_short_names(parsed: Namespace) -> None:
    """Gives a text argument `backbone` of a user's class its value back: only that of a network is an import path."""
    for section in ("model", "data"):
        cls, key = locate(str(parsed.get(f"{section}.class_path"))), f"{section}.init_args.backbone"
        value = parsed.get(key)
        if isinstance(cls, type) and isinstance(value, str):
            with suppress(NameError, TypeError):  # of annotations that cannot be resolved
                hint = get_type_hints(cls.__init__).get("backbone")
                if hint is str or str in get_args(hint):
                    parsed[key] = value.removeprefix("resnet_pl.models.")


def instantiate(parser: ArgumentParser, parsed: Namespace) -> Any:
    """Builds the objects of a parsed configuration; jsonargparse 4.49 has renamed the method."""
    method = getattr(parser, "instantiate", None) or parser.instantiate_classes
    return method(parsed)


def check_annotations(section: str, class_path: Any) -> None:
    """Raises UserError if an argument of a user's class has neither a type annotation nor a default.

    jsonargparse would pass None or text.

    Args:
        section: `model` or `data`.
        class_path: import path of the class.
    """
    cls = locate(class_path) if isinstance(class_path, str) else None
    parameters = inspect.signature(cls).parameters.values() if isinstance(cls, type) else ()
    for parameter in parameters:
        is_named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if is_named and parameter.annotation is parameter.empty and parameter.default is parameter.empty:
            raise UserError(
                f"{section}: the argument {parameter.name} of {class_path} has no type annotation\n"
                "write its type, such as lr: float or backbone: nn.Module"
            )


def keep_text(dumped: Any, parsed: Any) -> Any:
    """Returns a dumped configuration with its text as it was parsed.

    jsonargparse dumps a name in the place of a function, such as `ModelPruning.pruning_fn`, as an error message.

    Args:
        dumped: the configuration as plain types.
        parsed: the same configuration before it was dumped.
    """
    if isinstance(dumped, dict) and isinstance(parsed, dict):
        return {key: keep_text(value, parsed.get(key)) for key, value in dumped.items()}
    if isinstance(dumped, list) and isinstance(parsed, list) and len(dumped) == len(parsed):
        return [keep_text(value, other) for value, other in zip(dumped, parsed, strict=True)]
    return parsed if type(dumped) is type(parsed) is str else dumped


# ---------------------------------------------------------------------------------------- messages
def parser_message(message: str, options: Iterable[str] = ()) -> str:
    """Shortens a message of jsonargparse to the key, the value and what is wrong.

    Args:
        message: the message, of any length.
        options: the options of the command line, for suggestions.
    """
    key = ".".join(dict.fromkeys(KEY.findall(message)))
    lines = [KEY.sub("", line).strip().removeprefix("- ") for line in message.splitlines()]
    # A class for a callable is described in one line, with the complete value at its end.
    lines = [line.rpartition("callable class:")[2].partition(". Got value: Namespace")[0].strip() for line in lines]
    lines = [line for line in lines if line and not line.startswith(WRAPPING)]
    lines = list(dict.fromkeys(lines)) or [message.partition("\n")[0]]
    if match := UNKNOWN_OPTION.search(message):
        text = _unknown_option(message, match, list(options))
        if key.endswith("data") and text == "unknown option root":
            text = "this data has no option root\nfor image files, add --data ImageFolder"
    elif match := re.match("unrecognized arguments: (.*)", lines[0]):
        text = f"unexpected argument {match[1]}"
    elif hint := _needs_objects(message):
        text = hint
    elif match := re.search("(?:No module named '|import of )(timm|litdata)", message):
        text = f"needs the package {match[1]}\npip install {match[1]}"
    elif match := re.match("the following arguments are required: (.*)", lines[0]):
        return ", ".join(f"{key}.{name}" if key else name for name in match[1].split(", ")) + ": required"
    elif key in OTHER_TRANSFORMS and _is_other_class(lines):
        text = OTHER_TRANSFORMS[key]
    elif key.endswith("data.image_size"):
        text = "not a size in pixels\nuse one whole number, such as 224, or [height, width], such as [192,256]"
    elif unknown := _unknown_class(lines):
        text = unknown
    else:
        # Python's notation of types, which jsonargparse prints.
        lines = [
            re.sub(r"a <class '(?:\w+\.)*(\w+)'>", r"\1", line).replace("a typing.Literal", "one of ") for line in lines
        ]
        lines = [line for line in lines if not UNKNOWN_CLASS.match(line) and "of type Tensor" not in line] or lines
        others = lines[1:2] if lines[0].startswith("Expected") else []
        if key.endswith("backbone") and "does not correspond to a subclass of Module" in lines[0]:
            lines[0] += "\nannotate a function with -> nn.Module"
        text = RESTRICTION.sub(_limits, lines[0])
        text += "".join(f" or {line.removeprefix('Expected ')}" for line in others)
    return f"{key}: {text}" if key else text


def _limits(match: re.Match[str]) -> str:
    """The limits of a number, such as "must be >=0 and <1, not 1.5"; the value is not always in the message."""
    return f"must be {match[2].replace('v', '')}" + (f", not {match[1]}" if match[1] else "")


def _unknown_option(message: str, match: re.Match[str], options: list[str]) -> str:
    """The message for an unknown option, with the most similar one of the class or of the command line."""
    group = re.search(r"Group '([\w.]+)' does not accept", message)
    name = f"{group[1]}.{match[1]}" if group else match[1]
    before, after = message[: match.start()], message[match.start() :].partition("\n")[0]
    if owner := CLASS_PATH.findall(after)[:1] or CLASS_PATH.findall(before):
        near = similar(name.rpartition(".")[2], [each for each in arguments_of(owner[-1]) if not each.startswith("_")])
    else:
        known = {option.rpartition(".")[2]: option for option in reversed(options)}
        near = similar(name, options) or [known[word] for word in similar(name.rpartition(".")[2], known)]
    last = name.rpartition(".")[2]
    if near[:1] == [last]:  # of the class that the function returns
        return f"unknown option {name}\nthe function passes it on: use dict_kwargs.{last}"
    dashes = "--" if after.startswith("unrecognized") and not owner else ""
    return f"unknown option {dashes}{name}" + (f", did you mean {dashes}{near[0]}?" if near else "")


def _needs_objects(message: str) -> str:
    """The message for a class or function whose arguments YAML cannot give; empty for any other error."""
    path = (CLASS_PATH.findall(message.partition(" required")[2]) or [""])[0]
    if path.endswith(".SequentialLR"):
        return "SequentialLR takes schedulers, which YAML cannot give\nuse LRSequence, which takes their classes"
    if "callable class: Dict must include a class_path" in message or inspect.isfunction(locate(path)):
        return "a function is given by its name alone\nfor arguments, write a class in place of the function"
    return ""


def _is_other_class(lines: list[str]) -> bool:
    """Whether the error is a class that exists but is not of the needed kind, such as a BatchTransform for a Module."""
    names = [cls.__name__ for cls in _subclasses(BatchTransform)]
    unknown = [match[1] for line in lines if (match := UNKNOWN_CLASS.match(line))]
    return any("not correspond to a subclass" in line for line in lines) or any(name in names for name in unknown)


def _unknown_class(lines: list[str]) -> str:
    """The message for a name without a class, with the most similar name; empty for any other error."""
    unknown = [match[1] for line in lines if (match := UNKNOWN_CLASS.match(line))]
    # A list of classes, or a switch, would be accepted too.
    others = [line for line in lines if line not in ("Expected a <class 'list'>", "Expected a <class 'bool'>")]
    if not unknown or len(unknown) < len(others):
        return ""
    names = [cls.__name__ for base in NAMEABLE for cls in _subclasses(base) if not cls.__name__.startswith("_")]
    near = similar(unknown[0].rpartition(".")[2], [*names, *models.NETWORKS])
    if unknown[0] in torchvision.models.list_models(module=torchvision.models):
        near = [f"torchvision.models.{unknown[0]}"]
    hint = f", did you mean {near[0]}?" if near else "\ngive the import path, such as package.module.Class"
    return f"unknown class {unknown[0]}{hint}"


def arguments_of(class_path: str) -> list[str]:
    """Returns the names of the arguments of a class, with those of its base classes, or of a function."""
    if not callable(named := locate(class_path)):
        return []
    found = list(inspect.signature(named).parameters)
    if not isinstance(named, type) and "kwargs" in found:
        # A function that passes its arguments to the class it returns.
        named = inspect.signature(named, eval_str=True).return_annotation
    for owner in getattr(named, "__mro__", ()):
        found += inspect.signature(owner.__init__).parameters
    return [name for name in dict.fromkeys(found) if name not in ("self", "args", "kwargs")]


def default_arguments(name: str) -> dict[str, Any]:
    """Returns the arguments of a data module that are objects by default, as in a configuration file.

    Args:
        name: name or import path of the class; an unknown one has no defaults, and is reported when it is parsed.
    """
    cls = find_data_module(name)
    if not isinstance(cls, type) or not (defaults := describe_defaults(cls)):
        return {}
    # A subclass may pass on a value of its own and not take the argument any longer, or have another default.
    arguments = _signature_defaults(cls)
    return {key: value for key, value in defaults.items() if arguments.get(key, defaults) is None}


def default_image_size(name: str) -> Any:
    """Returns the default image size of a data module, by name or import path; None if it is not known."""
    cls = find_data_module(name)
    return _signature_defaults(cls).get("image_size") if isinstance(cls, type) else None


def _signature_defaults(cls: type) -> dict[str, Any]:
    """The default of each argument of a class, also of those that it passes on to its base class."""
    parser = ArgumentParser(exit_on_error=False, parser_mode=PARSER_MODE)
    parser.add_class_arguments(cls, fail_untyped=False)
    return parser.get_defaults().as_dict()


def find_data_module(name: str) -> Any:
    """Returns the class with a short name or an import path; something else, or None, if there is none."""
    if "." not in name:
        return next((cls for cls in _subclasses(ImageDataModule) if cls.__name__ == name), None)
    try:
        return locate(upgrade_path(name))
    except ErrorDuringImport:
        return None


def _subclasses(base: type) -> Iterable[type]:
    for cls in base.__subclasses__():
        yield cls
        yield from _subclasses(cls)
