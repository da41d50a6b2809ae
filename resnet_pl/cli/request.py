"""What the command line asks for, as far as it can be told without torch."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from resnet_pl import run_dir as runs
from resnet_pl.utils import UserError, command_line

SUBCOMMANDS = {
    "fit": "train a net",
    "validate": "measure a checkpoint on the validation images",
    "test": "measure a checkpoint on the test images",
    "predict": "classify images with a checkpoint",
}
COMMANDS = {
    "summary": "layers, parameters, multiply-adds and memory of any net",
    "curves": "training and validation error of several runs, in one picture",
    "compare": "a table of runs, mean ± std over seeds, next to the paper",
    "responses": "how strongly each layer of a net responds (Fig. 7)",
    "gradients": "gradient of each layer, at the start and in a checkpoint",
    "sweep": "train and test many runs, one after another or several at a time",
    "check-data": "broken files, copies, class balance and sizes of a folder of photos",
}
# Data sets that are never downloaded: a root that is not there can be told before torch is imported.
FOLDER_DATA = {"ImageFolder": "data/photos", "ImageNet": "data/imagenet"}
# What holds keys and values and is no class.
GROUPS = ("model", "trainer", "checkpoint", "dashboard")


class Request:
    """What the command line asks for, as far as it can be told without torch.

    Args:
        args: arguments, the subcommand first.

    Raises:
        UserError: an unknown subcommand, or a file or folder that is not there.

    Attributes:
        args: the arguments.
        subcommand: the first of them.
        checkpoint: the file behind `--ckpt_path`, `best` and `last` resolved.
        files: the configuration files, in order.
        options: the other arguments; they win over the files wherever they stand.
    """

    def __init__(self, args: list[str]) -> None:
        self.args, self.subcommand = args, args[0]
        if self.subcommand not in SUBCOMMANDS:
            raise UserError(_unknown_subcommand(self.subcommand))
        self.checkpoint: Path | None = None
        self.files, self.options = apart(args[1:], "--config", "-c")
        if {"-h", "--help"} & set(args):
            return
        self._settings: dict[str, Any] = {}
        for path in self.files:
            self._settings = _merged(self._settings, read_config(Path(path)))
        self.checkpoint = self._find_checkpoint(self.setting("ckpt_path") or self._given("ensemble"))
        self._check_root()

    def _given(self, key: str) -> str | None:
        """The value of a dotted key on the command line, the last where there are several."""
        values, _ = apart(self.options, f"--{key}")
        return values[-1] if values else None

    def setting(self, key: str) -> Any:
        """The value of a dotted key: the command line's, else the configuration files'."""
        if (given := self._given(key)) is not None:
            return given
        value: Any = self._settings
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value

    def _find_checkpoint(self, path: Any) -> Path | None:
        if path is not None and not isinstance(path, str):
            raise UserError(f"ckpt_path: {path} is no path\ngive the path of a checkpoint, or best or last")
        root, name = Path(str(self.setting("trainer.default_root_dir") or "runs")), self.setting("name")
        if path is None:
            if self.subcommand == "fit":
                return runs.broken_off(root, str(name or "resnet"), command_line(self.args))
            # Published weights are measured without a checkpoint of ours.
            if self.setting("model.weights"):
                return None
            raise UserError(
                f"{self.subcommand} needs a checkpoint\n"
                "give --ckpt_path PATH, or --ckpt_path best for the best of the newest run"
            )
        if path in ("best", "last"):
            return runs.newest_checkpoint(root, None if name is None else str(name), path)
        for which in ("last", "best") if self.subcommand == "fit" else ("best", "last"):
            if (inside := Path(path) / "checkpoints" / f"{which}.ckpt").is_file():
                return inside
        if not Path(path).is_file():
            raise UserError(f"there is no checkpoint {path}\ncheckpoints are in runs/NAME/version_N/checkpoints")
        return Path(path)

    @property
    def data_class(self) -> str:
        """The last word of the data module's name, empty where none is given."""
        data = self.setting("data")
        name = data if isinstance(data, str) else self.setting("data.class_path")
        return name.rsplit(".", 1)[-1] if isinstance(name, str) else ""

    def _check_root(self) -> None:
        name = self.data_class
        if name not in FOLDER_DATA or self.checkpoint is not None:
            return
        given = self.setting("data.root") or self.setting("data.init_args.root")
        root = Path(given if isinstance(given, str) else FOLDER_DATA[name])
        if not root.is_dir():
            raise UserError(
                f"data.root: there is no folder {root}\n"
                "give the folder that holds one folder for each class with --data.root FOLDER"
            )


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """Refuses a key that is there twice, of which YAML's readers drop the first without a word."""

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
        near = difflib.get_close_matches(str(path), others, n=1)
        way_out = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(others)) or 'none in configs/'}"
        raise UserError(f"there is no configuration file {path}\n{way_out}")
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        # A character that no YAML may hold is told in several lines.
        what = " ".join(str(getattr(error, "problem", error)).split())
        raise UserError(f"{path} is no valid YAML\n{where}{what}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read the configuration file {path}: {error}") from error
    if not isinstance(config, dict | None):
        raise UserError(f"{path} must hold keys and values, such as `data:` and `model:`")
    groups = {key: (config or {}).get(key, {}) for key in GROUPS}
    if isinstance(groups["model"], dict):
        groups["model.schedule"] = groups["model"].get("schedule", {})
    for key, group in groups.items():
        # The parser would put later options in its place, without a word; text is the name of a file.
        if not isinstance(group, dict | str):
            raise UserError(f"{path}: {key} must hold keys and values\nleave it out where there are none")
    return config or {}


def apart(args: Sequence[str], *names: str) -> tuple[list[str], list[str]]:
    """The values of an option that has these names, and all other arguments, each in their order."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument(*names, action="append", default=[], dest="values")
    try:
        given, others = parser.parse_known_args(args)
    except argparse.ArgumentError as error:
        raise UserError(f"{names[0]} needs a value") from error
    return given.values, others


def _merged(lower: dict[str, Any], upper: dict[str, Any]) -> dict[str, Any]:
    """Both mappings, the upper one winning key by key."""
    both = {key: _merged(lower[key], upper[key]) for key in lower.keys() & upper.keys()
            if isinstance(lower[key], dict) and isinstance(upper[key], dict)}  # fmt: skip
    return lower | upper | both


def _unknown_subcommand(word: str) -> str:
    near = difflib.get_close_matches(word, [*SUBCOMMANDS, *COMMANDS], n=1)
    if word.startswith("-"):
        return f"the subcommand comes first, before {word}\nit is one of {', '.join(SUBCOMMANDS)}"
    hint = f"did you mean {near[0]}?" if near else f"it is one of {', '.join([*SUBCOMMANDS, *COMMANDS])}"
    return f"there is no subcommand {word}\n{hint}"
