"""Names of earlier versions: renamed ones work and print a hint; removed keys are refused with their replacement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from resnet_pl import _renamed
from resnet_pl._renamed import CLASSES, KEYS, REMOVED, RENAMED_METRICS, upgrade_arguments, upgrade_config, upgrade_path
from resnet_pl.cli.main import main
from resnet_pl.models import weights_file
from resnet_pl.reports.run_reader import read_metrics
from resnet_pl.run_dir import class_name
from tests.cli.commands import SMALL, run

PROJECT = Path(__file__).parent.parent
DIGITS = str(PROJECT / "configs/digits.yaml")
OLD = Path(__file__).parent / "old_checkpoint/middle.ckpt"
# A value of each removed key that is not its default.
REMOVED_VALUES = {
    "keep_memory": False,
    "model.on_bad_loss": "skip",
    "data.decode": "auto",
    "model.schedule.warmup_error": 0.8,
    "model.schedule.warmup_share": 0.2,
    "model.schedule.warmup_limit": 5000,
}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def resolved(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    """Returns the configuration that `fit` would use."""
    capsys.readouterr()
    assert main(["fit", *argv, "--print_config"]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def hints(text: str) -> list[str]:
    """Returns the hints in the output of a command."""
    return [line for line in text.splitlines() if line.startswith("note: ")]


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Returns the message, of at most two lines, with which a command line is refused."""
    assert main(argv) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and len(message.splitlines()) <= 2
    return message


def nested(key: str, value: Any, init_args: bool = False) -> dict[str, Any]:
    """Returns a configuration with one dotted key."""
    first, *others = key.split(".")
    if not others:
        return {first: value}
    section = nested(".".join(others), value)
    return {first: {"init_args": section} if init_args else section}


def some(cases: list[tuple[str, str]]) -> list[Any]:
    """Returns the cases as parameters; two of three are for the slow tests."""
    return [pytest.param(*case, marks=[pytest.mark.slow] if number % 3 else []) for number, case in enumerate(cases)]


# ------------------------------------------------------------------------------------ class paths


@pytest.mark.parametrize(
    ("old", "name"),
    [
        ("resnet_pl.data.digits.Digits", "Digits"),
        ("resnet_pl.data.transforms.RandomFlip", "RandomFlip"),
        ("resnet_pl.data.cutout.Cutout", "Cutout"),
        ("resnet_pl.data.transforms.ScaleCrop", "ScaleCrop"),
        ("resnet_pl.callbacks.whiten.WhitenStem", "WhiteningInit"),
        ("resnet_pl.models.cifar.cifar_resnet", "cifar_resnet"),
        ("resnet_pl.models.resnet.ResNet", "ResNet"),
        ("resnet_pl.classifier.ImageClassifier", "ImageClassifier"),
        ("resnet_pl.data.Digits", "Digits"),
        ("resnet_pl.models.resnet50", "resnet50"),
    ],
)
def test_old_class_paths_are_upgraded(old: str, name: str) -> None:
    new = upgrade_path(old)
    module, _, last = new.rpartition(".")
    assert last == name and callable(getattr(__import__(module, fromlist=[name]), name))
    assert upgrade_path(new) == new


@pytest.mark.parametrize(
    "path", ["torch.optim.SGD", "resnet_pl.ImageClassifier", "resnet_pl.utils.UserError", "mine.data.digits.Digits"]
)
def test_other_class_paths_are_unchanged(path: str) -> None:
    assert upgrade_path(path) == path


BACKBONE = ["--model.backbone.depth", "8"]
OLD_NAMES = [
    ["--data", "resnet_pl.data.gone.Digits", "--model.backbone", "resnet_pl.models.cifar.cifar_resnet", *BACKBONE],
    ["--data=resnet_pl.data.gone.Digits", "--model.backbone=resnet_pl.models.cifar.cifar_resnet", *BACKBONE],
    [
        *["--data.class_path", "resnet_pl.data.gone.Digits", *BACKBONE],
        *["--model.backbone.class_path=resnet_pl.models.cifar.cifar_resnet"],
    ],
    [
        *["--model", "resnet_pl.classifier.ImageClassifier", "--data", "Digits", *BACKBONE],
        *["--model.backbone", "resnet_pl.models.cifar.cifar_resnet"],
    ],
]


@pytest.mark.parametrize("argv", OLD_NAMES)
def test_old_class_paths_on_the_command_line(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    # Options of a class come after its name.
    argv = [word for word in argv if word not in BACKBONE] + BACKBONE
    more = ["--trainer.callbacks+=resnet_pl.callbacks.gone.Freeze", "--data.mix", "resnet_pl.data.gone.MixUp"]
    more += ["--data.batch_transforms+", "resnet_pl.data.cutout.Cutout"]
    config = resolved(capsys, *argv, *more)
    data = config["data"]["init_args"]
    assert class_name(config["data"]) == "Digits" and class_name(config["model"]) == "ImageClassifier"
    assert config["model"]["init_args"]["backbone"]["class_path"] == "resnet_pl.models.cifar_resnet"
    assert [class_name(each) for each in config["trainer"]["callbacks"]] == ["Freeze"]
    assert class_name(data["mix"]) == "MixUp"
    assert [class_name(each) for each in data["batch_transforms"]] == ["PadCrop", "Cutout"]


def test_old_class_paths_in_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    Path("old.yaml").write_text("""
model:
  class_path: resnet_pl.classifier.ImageClassifier
  init_args:
    backbone: {class_path: resnet_pl.models.cifar.cifar_resnet, init_args: {depth: 8}}
data:
  class_path: resnet_pl.data.gone.Digits
  init_args: {mix: resnet_pl.data.gone.MixUp, batch_transforms: [resnet_pl.data.cutout.Cutout]}
trainer: {callbacks: [resnet_pl.callbacks.gone.Freeze]}
""")
    config = resolved(capsys, "--config", "old.yaml")
    data = config["data"]["init_args"]
    assert class_name(config["data"]) == "Digits" and class_name(config["model"]) == "ImageClassifier"
    assert config["model"]["init_args"]["backbone"]["init_args"]["depth"] == 8
    assert class_name(data["mix"]) == "MixUp" and [class_name(each) for each in data["batch_transforms"]] == ["Cutout"]
    assert [class_name(each) for each in config["trainer"]["callbacks"]] == ["Freeze"]


# ------------------------------------------------------------------------------------ removed keys


def test_every_removed_key_is_tested() -> None:
    assert REMOVED_VALUES.keys() == REMOVED.keys()
    assert all(REMOVED_VALUES[key] != default for key, (default, _) in REMOVED.items())


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("key", REMOVED)
def test_a_removed_key_on_the_command_line_is_refused(
    key: str, joined: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    first, _, remainder = key.partition(".")
    for name in {key, f"{first}.init_args.{remainder}" if remainder else key}:
        words = [f"--{name}={REMOVED_VALUES[key]}"] if joined else [f"--{name}", str(REMOVED_VALUES[key])]
        message = refused(capsys, "fit", "--config", DIGITS, *words)
        assert key in message and REMOVED[key][1] in message


@pytest.mark.parametrize("init_args", [True, False])
@pytest.mark.parametrize("key", [key for key in REMOVED if key != "model.schedule.warmup_error"])
def test_a_removed_key_in_a_file_is_refused(key: str, init_args: bool, capsys: pytest.CaptureFixture[str]) -> None:
    Path("old.yaml").write_text(yaml.safe_dump(nested(key, REMOVED_VALUES[key], init_args)))
    message = refused(capsys, "fit", "--config", DIGITS, "--config", "old.yaml")
    assert "old.yaml" in message and key in message and REMOVED[key][1] in message
    assert not Path("runs").exists()


@pytest.mark.parametrize("init_args", [True, False])
@pytest.mark.parametrize("key", REMOVED)
def test_the_default_of_a_removed_key_in_a_file_is_ignored(
    key: str, init_args: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("old.yaml").write_text(yaml.safe_dump(nested(key, REMOVED[key][0], init_args)))
    assert resolved(capsys, "--config", DIGITS, "--config", "old.yaml") == resolved(capsys, "--config", DIGITS)


def test_the_replacements_are_options(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--trainer.callbacks+=ErrorWarmup", "--trainer.callbacks.error", "0.5"]
    words += ["--trainer.callbacks.factor", "0.2", "--trainer.callbacks.max_iterations", "7"]
    (callback,) = resolved(capsys, "--config", DIGITS, *words)["trainer"]["callbacks"]
    assert callback["init_args"] == {"error": 0.5, "factor": 0.2, "max_iterations": 7}
    photos = ["--data", "ImageFolder", "--model.backbone", "resnet18", "--data.cache", "true"]
    assert resolved(capsys, *photos)["data"]["init_args"]["cache"] is True


# ------------------------------------------------------------------------------------ the warm-up by training error

WARMUP = "{warmup_error: 0.5, warmup_share: 0.2, warmup_limit: 70}"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (f"model: {{schedule: {WARMUP}}}", ["ErrorWarmup"]),
        (f"model: {{init_args: {{schedule: {WARMUP}}}}}", ["ErrorWarmup"]),
        (f"model: {{schedule: {WARMUP}}}\ntrainer: {{callbacks: null}}", ["ErrorWarmup"]),
        (f"model: {{schedule: {WARMUP}}}\ntrainer: {{callbacks: [Freeze]}}", ["Freeze", "ErrorWarmup"]),
        (f"model: {{schedule: {WARMUP}}}\ntrainer: {{callbacks: {{class_path: Freeze}}}}", ["Freeze", "ErrorWarmup"]),
        (f"model: {{schedule: {WARMUP}}}\ntrainer: {{callbacks+: [Freeze]}}", ["Freeze", "ErrorWarmup"]),
    ],
)
def test_the_warm_up_in_a_file_becomes_a_callback(
    text: str, names: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("old.yaml").write_text(text)
    config = resolved(capsys, "--config", DIGITS, "--config", "old.yaml")
    assert [class_name(each) for each in config["trainer"]["callbacks"]] == names
    assert config["trainer"]["callbacks"][-1]["init_args"] == {"error": 0.5, "factor": 0.2, "max_iterations": 70}
    schedule = config["model"]["init_args"]["schedule"]
    assert schedule["warmup"] == 3 and not [key for key in schedule if key.startswith("warmup_")]


def test_the_warm_up_in_a_recipe_adds_to_the_callbacks_of_earlier_files(capsys: pytest.CaptureFixture[str]) -> None:
    Path("base.yaml").write_text("trainer: {callbacks: [Freeze]}")
    Path("recipe.yaml").write_text("model: {schedule: {warmup_error: 0.5}}")
    config = resolved(capsys, "--config", DIGITS, "--config", "base.yaml", "--config", "recipe.yaml")
    assert [class_name(each) for each in config["trainer"]["callbacks"]] == ["Freeze", "ErrorWarmup"]


def test_options_of_users_classes_keep_their_names() -> None:
    words = "--data own.Data --data.scan true --trainer.callbacks+=own.Stop --trainer.callbacks.up_to 3"
    assert upgrade_arguments(words.split()) == words.split()
    later = "--trainer.callbacks+=Freeze --trainer.callbacks.up_to layer1"
    assert upgrade_arguments(f"{words} {later}".split())[-2:] == ["--trainer.callbacks.last_frozen", "layer1"]


def test_a_configuration_is_not_changed_in_place() -> None:
    config = {"model": {"schedule": {"warmup_error": 0.5}}, "keep_memory": True}
    assert upgrade_config(config, "a.yaml") != config
    assert config == {"model": {"schedule": {"warmup_error": 0.5}}, "keep_memory": True}


# ------------------------------------------------------------------------------------ renamed options, keys and classes

PHOTOS = ["--data", "ImageFolder", "--model.backbone", "resnet18"]
PHOTOS_YAML = "{model: {backbone: resnet18}, data: {class_path: ImageFolder}}"
FREEZE = "--trainer.callbacks+=Freeze"
OPTIONS = [
    ("--data.scan=true", "--data.verify_images=true"),
    ("--data.init_args.scan true", "--data.verify_images true"),
    ("--data.cache decoded", "--data.cache true"),
    ("--data.cache=decoded", "--data.cache true"),
    ("--data.init_args.cache=null", "--data.cache=false"),
    ("--data.cache null", "--data.cache=false"),
    ("--dashboard.every_seconds 7", "--dashboard.min_interval_seconds 7"),
    (f"{FREEZE} --trainer.callbacks.up_to layer1", f"{FREEZE} --trainer.callbacks.last_frozen layer1"),
    (f"{FREEZE} --trainer.callbacks.init_args.up_to=layer1", f"{FREEZE} --trainer.callbacks.last_frozen layer1"),
    ("--data.crop CentreCrop", "--data.crop ResizeCenterCrop"),
    ("--data.crop.class_path=CentreCrop", "--data.crop ResizeCenterCrop"),
    ("--data.crop=resnet_pl.data.transforms.CentreCrop", "--data.crop ResizeCenterCrop"),
    ("--trainer.callbacks+=EpochLine", "--trainer.callbacks+=EpochSummary"),
    ("--trainer.callbacks+ resnet_pl.callbacks.start.StartReport", "--trainer.callbacks+=RunSummary"),
    ("--trainer.callbacks [EpochLine,Freeze]", "--trainer.callbacks [EpochSummary,Freeze]"),
    ("--trainer.callbacks WhitenStem", "--trainer.callbacks WhiteningInit"),
]
FILES = [
    ("data: {scan: true}", "data: {verify_images: true}"),
    ("data: {init_args: {scan: true}}", "data: {verify_images: true}"),
    ("data: {cache: decoded}", "data: {cache: true}"),
    ("data: {init_args: {cache: null}}", "data: {cache: false}"),
    ("dashboard: {every_seconds: 7}", "dashboard: {min_interval_seconds: 7}"),
    (
        "trainer: {callbacks: [{class_path: Freeze, init_args: {up_to: layer1}}]}",
        "trainer: {callbacks: [{class_path: Freeze, init_args: {last_frozen: layer1}}]}",
    ),
    (
        "trainer: {callbacks+: {class_path: Freeze, init_args: {up_to: layer1}}}",
        "trainer: {callbacks+: {class_path: Freeze, init_args: {last_frozen: layer1}}}",
    ),
    ("data: {crop: CentreCrop}", "data: {crop: ResizeCenterCrop}"),
    ("data: {init_args: {crop: {class_path: resnet_pl.data.gone.CentreCrop}}}", "data: {crop: ResizeCenterCrop}"),
    (
        "trainer: {callbacks: [EpochLine, Freeze, EpochLine]}",
        "trainer: {callbacks: [EpochSummary, Freeze, EpochSummary]}",
    ),
    ("trainer: {callbacks+: [{class_path: WhitenStem}]}", "trainer: {callbacks: [WhiteningInit]}"),
    ("trainer: {callbacks: StartReport}", "trainer: {callbacks: RunSummary}"),
]


@pytest.mark.parametrize(("old", "new"), some(OPTIONS))
def test_an_old_name_on_the_command_line(old: str, new: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["fit", *PHOTOS, *old.split(), "--print_config"]) == 0
    out, err = capsys.readouterr()
    (hint,) = hints(err)
    assert any(name in hint for name in (*CLASSES.values(), *KEYS.values(), "data.cache"))
    assert main(["fit", *PHOTOS, *new.split(), "--print_config"]) == 0
    expected, err = capsys.readouterr()
    assert yaml.safe_load(out) == yaml.safe_load(expected) and not hints(err)


@pytest.mark.parametrize(("old", "new"), some(FILES))
def test_an_old_name_in_a_file(old: str, new: str, capsys: pytest.CaptureFixture[str]) -> None:
    configs = []
    Path("photos.yaml").write_text(PHOTOS_YAML)
    for name, text in (("old.yaml", old), ("new.yaml", new)):
        Path(name).write_text(text)
        assert main(["fit", "--config", "photos.yaml", "--config", name, "--print_config"]) == 0
        out, err = capsys.readouterr()
        configs.append(yaml.safe_load(out))
        assert len(hints(err)) == (name == "old.yaml") and all("old.yaml: " in line for line in hints(err))
    assert configs[0] == configs[1]


@pytest.mark.parametrize("old", ["--views flip", "--views=flip", "--views single", "--views=single", "--tta=single"])
def test_old_options_of_an_evaluation(old: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", "--ckpt_path", str(OLD), *old.split(), "--print_config"]) == 0
    out, err = capsys.readouterr()
    assert yaml.safe_load(out)["tta"] == ("flip" if "flip" in old else "none")
    assert len(hints(err)) == 1 and "--tta" in hints(err)[0]


@pytest.mark.parametrize(
    ("text", "value"), [("views: flip", "flip"), ("views: single", "none"), ("tta: single", "none")]
)
def test_old_keys_of_an_evaluation(text: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("test.yaml").write_text(text)
    assert main(["test", "--ckpt_path", str(OLD), "--config", "test.yaml", "--print_config"]) == 0
    out, err = capsys.readouterr()
    assert yaml.safe_load(out)["tta"] == value
    assert len(hints(err)) == 1 and "test.yaml" in hints(err)[0]


def test_an_old_option_of_an_analysis(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["summary", "--backbone", "resnet18", "--compare", "resnet34"]) == 0
    expected = capsys.readouterr().out
    assert main(["summary", "--backbone", "resnet18", "--beside", "resnet34"]) == 0
    out, err = capsys.readouterr()
    assert out == expected and len(hints(err)) == 1 and "--compare" in hints(err)[0]


def test_each_old_name_of_a_command_line_is_hinted_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    upgrade_arguments(["fit", "--data.scan", "true", "--data.scan", "false", "--data.crop=CentreCrop"])
    assert len(hints(capsys.readouterr().err)) == 2


def test_only_the_first_process_prints_hints(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert upgrade_arguments(["test", "--views=flip"]) == ["test", "--tta=flip"]
    assert not capsys.readouterr().err


@pytest.mark.parametrize("init_args", [True, False])
def test_a_file_with_both_names_of_a_key_is_refused(init_args: bool, capsys: pytest.CaptureFixture[str]) -> None:
    data = {"scan": True, "verify_images": False}
    Path("both.yaml").write_text(yaml.safe_dump({"data": {"init_args": data} if init_args else data}))
    message = refused(capsys, "fit", "--config", DIGITS, "--config", "both.yaml")
    assert "both.yaml" in message and "data.scan" in message and "data.verify_images" in message


def test_a_later_file_or_option_replaces_an_old_name(capsys: pytest.CaptureFixture[str]) -> None:
    Path("photos.yaml").write_text(PHOTOS_YAML)
    Path("old.yaml").write_text("data: {scan: true}")
    Path("new.yaml").write_text("data: {verify_images: false}")
    files = [word for name in ("photos", "old", "new") for word in ("--config", f"{name}.yaml")]
    assert resolved(capsys, *files)["data"]["init_args"]["verify_images"] is False
    assert resolved(capsys, *files, "--data.scan=true")["data"]["init_args"]["verify_images"] is True


def test_values_of_other_types_are_unchanged() -> None:
    config = {"tta": ["single"], "data": {"cache": {"side": 3}, "crop": 7}, "trainer": {"callbacks": None}}
    assert upgrade_config(config, "a.yaml") == config


def test_arguments_of_other_classes_are_unchanged() -> None:
    config = {"class_path": "my.Model", "init_args": {"views": 3, "keep_memory": False, "crop": "my.CentreCrop"}}
    assert upgrade_config(config, "a.yaml") == config
    assert upgrade_config({"model": config}, "a.yaml") == {"model": config}


@pytest.mark.parametrize(
    "text", ["{epoch},step,{rate}\r\n0.5,1,\r\n,2,7\r\n", "step,{epoch},{rate}\r\n1,0.5,\r\n2,,7\r\n"]
)
def test_old_columns_of_metrics(text: str) -> None:
    (old_epoch, epoch), (old_rate, rate) = RENAMED_METRICS.items()
    Path("metrics.csv").write_text(text.format(epoch=old_epoch, rate=old_rate))
    metrics = read_metrics(Path("metrics.csv"))
    assert {name: [list(part) for part in series] for name, series in metrics.items()} == {
        epoch: [[1], [0.5]],
        rate: [[2], [7]],
    }


def test_a_resumed_run_can_have_old_and_new_columns() -> None:
    (old, new), _ = RENAMED_METRICS.items()
    Path("metrics.csv").write_text(f"step,{old},{new}\r\n1,0.5,\r\n2,,0.25\r\n")
    assert [list(part) for part in read_metrics(Path("metrics.csv"))[new]] == [[1, 2], [0.5, 0.25]]


# ------------------------------------------------------------------------------------ a former package
def with_package(value: Any, name: str) -> Any:
    """Returns a value with another name of the package in its keys and texts."""
    if isinstance(value, dict):
        return {key.replace("resnet_pl", name): with_package(item, name) for key, item in value.items()}
    if isinstance(value, list):
        return [with_package(item, name) for item in value]
    return value.replace("resnet_pl", name) if isinstance(value, str) else value


def test_checkpoints_and_files_of_a_former_package_are_used(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run("fit", *SMALL)
    best, last = (Path("runs/digits/version_0/checkpoints", f"{name}.ckpt") for name in ("best", "last"))
    for path in (best, last):
        checkpoint = torch.load(path, weights_only=True)
        named = {key: with_package(checkpoint[key], "former") for key in ("resnet_pl", "hyper_parameters")}
        del checkpoint["resnet_pl"]
        torch.save({**checkpoint, "former": named["resnet_pl"], "hyper_parameters": named["hyper_parameters"]}, path)
    assert "was not written by this project" in refused(capsys, "test", "--ckpt_path", str(best))
    for module in (_renamed, weights_file):
        monkeypatch.setattr(module, "FORMER_PACKAGES", ("former",))
    run("test", "--ckpt_path", best)
    run("calibrate", "--ckpt_path", best)
    run("fit", "--ckpt_path", last, "--trainer.max_epochs", 3)
    assert torch.load(last, weights_only=True)["resnet_pl"]["config"]["model"]["class_path"].startswith("resnet_pl.")
    assert "--ckpt_path" in refused(capsys, "test", "--config", DIGITS, "--model.weights", str(best))
    Path("own.yaml").write_text("data: former.data.Digits\n")
    assert resolved(capsys, "--config", "own.yaml")["data"]["class_path"] == "resnet_pl.Digits"
