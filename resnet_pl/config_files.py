"""Finds and reads configuration files; imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from resnet_pl import run_dir
from resnet_pl._renamed import REMOVED_RECIPES, is_own, upgrade_config
from resnet_pl.utils import UserError, expand_values, similar

if TYPE_CHECKING:
    from yaml import SafeLoader
else:
    SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# The wheel holds the folder configs/ of the repository as resnet_pl/configs/.
INSIDE = Path(__file__).parent / "configs"
CONFIGS = INSIDE if INSIDE.is_dir() else Path(__file__).parents[1] / "configs"


def config_names() -> list[str]:
    """Returns the names of the configs of this project, and of those in configs/ of the working folder."""
    files = [path.relative_to(root) for root in (Path("configs"), CONFIGS) for path in root.rglob("*.yaml")]
    return sorted({file.with_suffix("").as_posix() for file in files})


def find_config(name: str) -> str:
    """Returns the path of a configuration file.

    Args:
        name: a file, or a name such as `cifar10`, `recipes/ema` or `configs/cifar10.yaml`. The working folder and its
            folder configs/ are searched before the configs of this project.

    Returns:
        The path; `name` unchanged if there is no such file.
    """
    file = Path(name)
    if file.exists() and not file.is_dir():  # it can be a pipe
        return name
    file = file if file.suffix in (".yaml", ".yml") else Path(f"{file}.yaml")
    inside = Path(*file.parts[1:]) if file.parts[0] == "configs" else file
    return next((str(path) for path in (file, "configs" / inside, CONFIGS / inside) if path.is_file()), name)


class _Loader(SafeLoader):
    """YAML loader that rejects duplicate keys, of which PyYAML silently keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Raises ConstructorError at a duplicate key."""
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                problem = f"duplicate key {key.value}"
                raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_config(path: Path) -> dict[str, Any]:
    """Reads a configuration file.

    Raises:
        UserError: the file is missing, or is not a YAML mapping; the message has the line.
    """
    if not path.is_file():
        if path.parent.name == "recipes" and (removed := REMOVED_RECIPES.get(f"{path.stem}.yaml")):
            raise UserError(f"the recipe {path} was removed\n{removed}")
        raise UserError(f"configuration file not found: {path}\n{_hint(path)}")
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        # PyYAML describes a forbidden character in several lines.
        what = " ".join(str(getattr(error, "problem", error)).split())
        raise UserError(f"{path} is not valid YAML\n{where}{what}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read the configuration file {path}: {error}") from error
    if isinstance(config, dict) and (names := config.get(run_dir.BUILT_IN_PYTHON)):
        raise UserError(
            f"{path} lacks {', '.join(names)}, built in Python without a form in YAML\n"
            f"write it as class_path and init_args, and remove {run_dir.BUILT_IN_PYTHON}"
        )
    if not isinstance(config, dict | None):
        raise UserError(f"{path} must hold keys and values, such as `data:` and `model:`")
    sections = {key: (config or {}).get(key, {}) for key in ("model", "trainer", "checkpoint", "dashboard")}
    if not (isinstance(sections["model"], dict) and is_own(sections["model"].get("class_path"))):
        sections["model.schedule"] = run_dir.get_init_args(sections["model"]).get("schedule", {})
    for key, section in sections.items():
        # The parser would silently ignore it. A string is the name of a file.
        if not isinstance(section, dict | str) and not (key == "dashboard" and isinstance(section, bool)):
            raise UserError(f"{path}: {key} must hold keys and values\nremove it if there are none")
    return upgrade_config(expand_values(config or {}), str(path), hint=True)


def _hint(path: Path) -> str:
    """Suggests configs with a similar name."""
    names = config_names()
    near = similar(path.as_posix().removeprefix("configs/").removesuffix(".yaml"), names)
    near = near or [name for name in names if similar(path.stem, [name.rpartition("/")[2]])]
    available = ", ".join(name for name in names if "/" not in name)
    return f"did you mean {' or '.join(near)}?" if near else f"available: {available or 'none in configs/'}"


def read_section(section: Any, folder: Path) -> Any:
    """Returns a section that is given as the name of a file, or of its class, as keys and values."""
    if not isinstance(section, str):
        return section
    return read_config(folder / section) if (folder / section).is_file() else {"class_path": section}
