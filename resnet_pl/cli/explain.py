"""What the parser says of a wrong configuration, in a line or two."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
import traceback
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from pydoc import locate

import yaml
from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger
from torch.optim import Optimizer

from resnet_pl import models
from resnet_pl.data import ImageDataModule
from resnet_pl.data.transforms import BatchTransform, Crop

# What can be named by a short name; nets are added apart, for they are functions.
NAMEABLE = (ImageDataModule, BatchTransform, Crop, Callback, Logger, Optimizer)


def explain(message: str, parser: LightningArgumentParser, args: Sequence[str], files: Sequence[str]) -> str:
    """Says what is wrong, where, and the way out.

    Args:
        message: what jsonargparse says, of any length.
        parser: the subcommand's parser, which knows the keys there are.
        args: the command line; what is wrong there is not looked for in files.
        files: configuration files, in which a wrong key is looked for.

    Returns:
        One or two lines. A message of no known kind comes back with the lines that matter most.
    """
    path = [key.rstrip("+") for key in re.findall(r'Parser key "([\w.+]+)"', message)]
    for kind in (_required, _unrecognised, _no_good_class, _not_accepted, _no_such_class, _not_a_choice, _wrong_value):
        told = kind(message, path, parser)
        if told is not None:
            key, what = told
            on_the_line = any(re.match(rf"--{re.escape(key)}(\.class_path)?\+?(=|$)", arg) for arg in args)
            return f"{_where(key, [] if on_the_line else files)}{what}"
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return "\n".join(lines[:2])


def constructor_error(message: str) -> str:
    """What a constructor refused, without what the parser wraps around it; one or two lines."""
    wrapping = "Expected a |Does not validate|Problem with|Not a valid subclass|a class path|a dict with"
    causes = re.findall(rf"^\s*- (?!{wrapping})(.+)$", message, re.MULTILINE)
    return causes[-1] if causes else "\n".join(message.splitlines()[:2])


Told = tuple[str, str] | None


def _required(message: str, path: list[str], parser: LightningArgumentParser) -> Told:
    found = re.search(r"following arguments are required: (.+)", message)
    if not found:
        return None
    keys = [key.split(".", 1)[-1] for key in found[1].split(", ")]
    if path:
        key = ".".join([*path, keys[0]])
        return key, f"it must be given\ngive --{key} VALUE"
    return (
        "",
        f"{' and '.join(keys)} must be given\nstart from a file of configs/, such as --config configs/flowers.yaml",
    )


def _unrecognised(message: str, path: list[str], parser: LightningArgumentParser) -> Told:
    found = re.search(r"unrecognized arguments: (.+)", message)
    if found:
        word = found[1].split()[0]
        if not word.startswith("-"):
            return "", f"{word} belongs to no option\noptions are written --key value; see --help"
        key = word.lstrip("-").split("=")[0]
    else:
        found = re.search(r"does not accept option '([^']+)'", message)
        if not found:
            return None
        key = found[1]
    known = [action.dest for action in parser._actions if action.dest]
    return key, f"there is no such option{_near(key, known)}"


# How the parser says that a path leads to nothing that it can use.
REFUSED = (
    r"Import path (?P<path>[\w.]+) does not correspond to a subclass of (?P<base>\w+)",
    r"Import path does not correspond to a subclass of (?P<base>\w+).*?Given value: \W*(class_path\W*)?(?P<path>[\w.]+)",  # noqa: E501
    r"Expected '(?P<path>[\w.]+)' to be a (subclass of|function that returns) <class '(\w+\.)*(?P<base>\w+)'",
    r"Problem with given class_path '(?P<path>[\w.]+)'(?P<base>)",
    r"callable class: .* Got value: (?P<path>[\w.]+)(?P<base>)",
)


def _no_good_class(message: str, path: list[str], parser: LightningArgumentParser) -> Told:
    """A class given by its path that is not what is needed; the parser leaves out why, so it is looked at here."""
    for found in (found for pattern in REFUSED for found in re.finditer(pattern, message, re.DOTALL)):
        if "." in found["path"] and (fault := _fault_of_class(found["path"], found["base"])):
            return ".".join(path), fault
    return None


def _fault_of_class(name: str, base: str) -> str | None:
    """Why a path leads to no class, or to none that derives from the base where one is named."""
    module, _, word = name.rpartition(".")
    try:
        holder = importlib.import_module(module)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            return f"there is no module {error.name}\nit is looked for in {Path.cwd()} and among installed packages"
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{module} cannot be imported\n{error} ({where.filename}, line {where.lineno})"
    if not hasattr(holder, word):
        return f"there is no {word} in {module}{_near(word, dir(holder))}"
    found = getattr(holder, word)
    if not base:
        return None
    if not inspect.isfunction(found):
        return f"{name} is no class that derives from {base}"
    returns = inspect.signature(found).return_annotation
    if returns is inspect.Signature.empty:
        annotation = "nn.Module" if base == "Module" else base
        return f"the function {name} does not say what it returns\nwrite def {word}(…) -> {annotation}:"
    return f"the function {name} returns {getattr(returns, '__name__', returns)}, not {base}"


def _not_accepted(message: str, path: list[str], parser: LightningArgumentParser) -> Told:
    found = re.search(r"Option '([^']+)' is not accepted", message)
    if not found:
        return None
    owners = re.findall(r"class_path[ =]'([^']+)'", message)
    if not owners:
        return None
    owner = owners[-1]
    word = found[1].removeprefix("init_args.")
    return ".".join([*path, word]), f"{owner.rsplit('.', 1)[-1]} has no such argument{_near(word, arguments_of(owner))}"


def _no_such_class(message: str, path: list[str], parser: LightningArgumentParser) -> Told:
    found = re.findall(
        r"(?:Expected a dot import path string|Import path|Expected a .*class.* but got): (\S+)", message
    )
    if not found or not path or re.search(r"<class '(int|float)'>", message):
        return None
    name = found[-1]
    known = [cls.__name__ for base in NAMEABLE for cls in _subclasses(base)] + list(models.__all__)
    return ".".join(path), f"there is no {name}{_near(name, known) or ', give the full path, such as package.Class'}"


def _not_a_choice(message: str, path: list[str], parser: LightningArgumentParser) -> Told:
    choices = re.findall(r"typing\.Literal\[([^\]]+)\]", message)
    if not choices or not path:
        return None
    known = list(dict.fromkeys(word.strip(" '") for choice in choices for word in choice.split(",")))
    value = _value(message, path[-1])
    near = difflib.get_close_matches(value, known, n=1)
    return ".".join(path), f"{value} is none of {', '.join(known)}" + (f"; did you mean {near[0]}?" if near else "")


def _wrong_value(message: str, path: list[str], parser: LightningArgumentParser) -> Told:
    if not path:
        return None
    bound = re.search(r"Not of type \w+: (?:(\S+) )?does not conform to restriction (.+)", message)
    if bound:
        wanted = bound[2].strip().replace("v>=", "at least ").replace("v>", "above ").replace("v<", "below ")
        return ".".join(path), f"{bound[1] or _value(message)} is out of range, it must be {wanted}"
    types = re.findall(r"Expected an? <class '(?:\w+\.)*(\w+)'>", message)
    if number := re.search(r"invalid literal for int|(int|float)\(\) argument", message):
        types = [number[1] or "int", *types]
    if not types and not re.search(r"Expected|Not of type", message):
        return None
    names = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "list": "a list",
             "NoneType": "null", "dict": "keys and values"}  # fmt: skip
    wanted = " or ".join(dict.fromkeys(names.get(name, name) for name in types if name != "NoneType"))
    return ".".join(
        path
    ), f"{_value(message, path[-1].rsplit('.', 1)[-1])} is not {wanted or 'of the type that is needed'}"


def _value(message: str, argument: str = "") -> str:
    """The value that was given, to an argument if it is named."""
    for pattern in (
        rf"\b{re.escape(argument or ' ')}='([^']*)'",
        rf"\b{re.escape(argument or ' ')}=(None)\b",
r"NestedArg\(key='[^']*', val='([^']*)'", r"Got value: (.+)", r"Given value: (.+)",
                    r"base 10: '([^']*)'", r"could not convert string to float: '([^']*)'"):  # fmt: skip
        found = re.findall(pattern, message)
        if found:
            return "null" if found[-1] == "None" else found[-1].strip()
    return "null" if "not 'NoneType'" in message else "what is given"


def arguments_of(class_path: str) -> list[str]:
    """Names of the arguments of a class, those of its parents included, or of a function."""
    if not callable(named := locate(class_path)):
        return []
    found = list(inspect.signature(named).parameters)
    if not isinstance(named, type) and "kwargs" in found:
        # A function that hands on what it is given, to the class it returns.
        named = inspect.signature(named, eval_str=True).return_annotation
    for owner in getattr(named, "__mro__", ()):
        found += inspect.signature(owner.__init__).parameters
    return [name for name in dict.fromkeys(found) if name not in ("self", "args", "kwargs")]


def _subclasses(base: type) -> Iterable[type]:
    for cls in base.__subclasses__():
        yield cls
        yield from _subclasses(cls)


def _near(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, [name for name in known if not name.startswith("_")], n=1, cutoff=0.6)
    return f", did you mean {near[0]}?" if near else ""


def _where(key: str, files: Sequence[str]) -> str:
    """The key, and the file and line where it stands."""
    if not key:
        return ""
    for name in reversed(files):
        # The reader that took the file in: Python's own is stricter about tabs.
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        root = yaml.compose(Path(name).read_text(encoding="utf-8"), Loader=loader)
        if lines := list(dict.fromkeys(_lines(root, key.split(".")))):
            return f"{key} ({name}, line {' or '.join(map(str, lines))}): "
    return f"{key}: "


def _lines(node: yaml.Node | None, path: Sequence[str]) -> Iterator[int]:
    """Lines that a key can stand in: the items of a list have no names, so it can be in any of them."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _lines(item, path)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value in ("init_args", "dict_kwargs", "<<"):
                yield from _lines(value, path)
            elif key.value.rstrip("+") == path[0]:
                yield from _lines(value, path[1:]) if path[1:] else [key.start_mark.line + 1]
