"""The command line and its configuration files, as far as they can be read without torch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from resnet_pl import run_dir
from resnet_pl._renamed import upgrade_config
from resnet_pl.utils import UserError, shell_command, similar


class CommandLine:
    """What the command line asks for, as far as it can be known without torch.

    Args:
        args: arguments, the subcommand first.

    Raises:
        UserError: a file that is missing or not YAML, or an option that is gone.

    Attributes:
        args: the arguments.
        subcommand: the first of them.
        help: whether the options are asked for.
        checkpoint: the file behind `--ckpt_path`, `best` and `last` resolved.
        files: the configuration files, in order.
        options: the other arguments; they win over the files wherever they stand.
    """

    def __init__(self, args: Sequence[str]) -> None:
        self.args, self.subcommand = list(args), args[0]
        self.checkpoint: Path | None = None
        self.files, self.options = split_option(args[1:], "--config", "-c")
        self.help = bool({"-h", "--help"} & set(args))
        if self.help:
            return
        self._settings: dict[str, Any] = {}
        for path in self.files:
            self._settings = _deep_merge(self._settings, read_config(Path(path)))
        self.checkpoint = self._find_checkpoint(self.get("ckpt_path") or self._given("ensemble"))

    def _given(self, key: str) -> str | None:
        """The value of a dotted key on the command line, the last where there are several."""
        values, _ = split_option(self.options, f"--{key}")
        return values[-1] if values else None

    def get(self, key: str) -> Any:
        """The value of a dotted key: the command line's, else the configuration files'."""
        if (given := self._given(key)) is not None:
            return given
        value: Any = self._settings
        for part in key.split("."):
            value = run_dir.get_init_args(value).get(part) if part != "class_path" else (value or {}).get(part)
        return value

    def _find_checkpoint(self, path: Any) -> Path | None:
        if path is not None and not isinstance(path, str):
            raise UserError(f"ckpt_path: {path} is not a path\ngive the path of a checkpoint, or best or last")
        root, name = Path(str(self.get("trainer.default_root_dir") or "runs")), self.get("name")
        if path is not None:
            order = ("last", "best") if self.subcommand == "fit" else ("best", "last")
            return run_dir.find_checkpoint(path, root, None if name is None else str(name), order)
        if self.subcommand == "fit":
            return run_dir.find_interrupted_run(root, str(name or "resnet"), shell_command(self.args))
        # Published weights are evaluated without a checkpoint of ours.
        if self.get("model.weights"):
            return None
        raise UserError(
            f"{self.subcommand} needs a checkpoint\n"
            "give --ckpt_path PATH, or --ckpt_path best for the best of the newest run"
        )

    @property
    def data_class(self) -> str:
        """The last word of the data module's name, empty where none is given."""
        data = self._given("data.class_path") or self.get("data")
        # `--data data.yaml` names a file with the section.
        return run_dir.class_name(read_config(Path(data)) if isinstance(data, str) and Path(data).is_file() else data)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """Refuses a duplicate key: YAML's readers drop the first without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """See yaml's SafeConstructor."""
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                problem = f"{key.value} is there twice"
                raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_config(path: Path) -> dict[str, Any]:
    """Reads a configuration file; raises UserError where it is missing or no YAML mapping, and says where."""
    if not path.is_file():
        others = [str(other) for other in Path("configs").rglob("*.yaml")]
        near = similar(str(path), others)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(others)) or 'none in configs/'}"
        raise UserError(f"there is no configuration file {path}\n{hint}")
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        # A character that YAML does not allow is described in several lines.
        what = " ".join(str(getattr(error, "problem", error)).split())
        raise UserError(f"{path} is not valid YAML\n{where}{what}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read the configuration file {path}: {error}") from error
    if not isinstance(config, dict | None):
        raise UserError(f"{path} must hold keys and values, such as `data:` and `model:`")
    sections = {key: (config or {}).get(key, {}) for key in ("model", "trainer", "checkpoint", "dashboard")}
    sections["model.schedule"] = run_dir.get_init_args(sections["model"]).get("schedule", {})
    for key, section in sections.items():
        # The parser would ignore it without a word; text is the name of a file.
        if not isinstance(section, dict | str):
            raise UserError(f"{path}: {key} must hold keys and values\nremove it if there are none")
    upgrade_config(config or {}, str(path), hint=True)
    return config or {}


def split_option(args: Sequence[str], *names: str) -> tuple[list[str], list[str]]:
    """The values of an option that has these names, and all other arguments, each in their order."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument(*names, action="append", default=[], dest="values")
    try:
        given, others = parser.parse_known_args(args)
    except argparse.ArgumentError as error:
        raise UserError(f"{names[0]} needs a value") from error
    return given.values, others


def _deep_merge(lower: dict[str, Any], upper: dict[str, Any]) -> dict[str, Any]:
    """Both mappings, the upper one winning key by key."""
    both = {
        key: _deep_merge(lower[key], upper[key])
        for key in lower.keys() & upper.keys()
        if isinstance(lower[key], dict) and isinstance(upper[key], dict)
    }
    return lower | upper | both
