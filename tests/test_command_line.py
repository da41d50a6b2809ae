"""The command line and its configuration files, parsed before torch is imported."""

from __future__ import annotations

from pathlib import Path

import pytest

from resnet_pl.cli.main import main
from resnet_pl.command_line import CommandLine, split_option
from resnet_pl.config import expand_arguments
from resnet_pl.utils import UserError

PROJECT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Runs a command line that must fail with exit code 2 and at most two lines; returns the message."""
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and "Traceback" not in err
    assert len(err.strip().splitlines()) <= 2
    return err


def write(name: str, text: str) -> str:
    Path(name).write_text(text)
    return name


# ------------------------------------------------------------------------------------ configuration files


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("configs/digit.yaml", "did you mean digits?"),
        ("cifr10", "did you mean cifar10?"),
        ("ema", "did you mean recipes/ema?"),
        ("nowhere.yaml", "available: cifar10, cifar100, digits"),
    ],
)
def test_a_missing_file_is_named_and_a_similar_one_is_suggested(
    name: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in (["--config", name], [f"--config={name}"], ["-c", name]):
        message = refused(capsys, "fit", *option)
        assert name in message and hint in message


def test_a_config_is_found_by_its_name_and_one_of_the_working_folder_wins() -> None:
    def found(*names: str) -> list[str]:
        return CommandLine(["fit", *(word for name in names for word in ("--config", name))]).files

    names = ["digits", "digits.yaml", "configs/digits.yaml", "recipes/ema", "configs/recipes/ema.yaml"]
    files = [
        PROJECT / "configs" / f"{name}.yaml" for name in ("digits", "digits", "digits", "recipes/ema", "recipes/ema")
    ]
    assert found(*names) == [str(file) for file in files]
    Path("configs").mkdir()
    Path("digits").mkdir()  # not a file
    own = write("configs/digits.yaml", "name: own")
    assert found("digits", "configs/digits.yaml") == [own, own]
    own = write("digits.yaml", "name: own")
    assert found("digits", "digits.yaml") == [own, own]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"model:\n  backbone: [resnet18\n", "line 3"),
        (b"a: b\0", ""),
        (b"\xff\xfe\x00", ""),
        (b"just words", "keys and values"),
        (b"- a\n- b\n", "keys and values"),
        (b"a: !!python/object:os.system x\n", "line 1"),
        (b"a: *nowhere\n", "line 1"),
    ],
)
def test_a_file_that_is_not_yaml_is_named_with_the_line(
    content: bytes, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("bad.yaml").write_bytes(content)
    message = refused(capsys, "fit", "--config", "bad.yaml")
    assert "bad.yaml" in message and words in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model:\n  depth: 1\n  depth: 2\n", "line 3, column 3: duplicate key depth"),
        ("name: a\ndata: Digits\nname: b\n", "line 3, column 1: duplicate key name"),
        ("trainer: {max_epochs: 1, max_epochs: 1}\n", "line 1, column 26: duplicate key max_epochs"),
        (
            "trainer:\n  callbacks:\n  - class_path: Timer\n    class_path: Freeze\n",
            "line 4, column 5: duplicate key class_path",
        ),
    ],
)
def test_a_duplicate_key_is_rejected(text: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "fit", "--config", write("twice.yaml", text))
    assert "twice.yaml" in message and words in message


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("trainer: [1]", "trainer"),
        ("trainer: null", "trainer"),
        ("model: 3", "model"),
        ("checkpoint: null", "checkpoint"),
        ("dashboard: 1", "dashboard"),
        ("model: {schedule: []}", "model.schedule"),
        ("model: {init_args: {schedule: null}}", "model.schedule"),
    ],
)
def test_a_section_without_keys_is_rejected(text: str, key: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"bare.yaml: {key} " in refused(capsys, "fit", "--config", write("bare.yaml", text))


def test_later_files_override_earlier_ones_and_options_override_files(place: Path) -> None:
    one = write("one.yaml", "name: one\nmodel: {weights: a}\ndata: {class_path: A.B, init_args: {root: x, fold: 1}}")
    two = write("two.yaml", "name: two\nmodel: {init_args: {weights: b}}\ndata: {init_args: {root: y}}")
    command_line = CommandLine(["fit", "--config", one, "--name", "line", "--config", two, "--data.fold=2"])
    assert command_line.files == [one, two] and command_line.options == ["--name", "line", "--data.fold=2"]
    assert command_line.get("name") == "line" and command_line.get("data.fold") == "2"
    assert command_line.get("data.root") == "y" and command_line.data_class == "A.B"
    assert command_line.get("model.weights") == "b"
    assert CommandLine(["fit", "--config", two, "--config", one]).get("name") == "one"
    assert command_line.get("model.nothing.below") is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("--a.b 1 --a C", "--a C --a.b 1"),
        ("--a.b 1 --a.c 2 --d 3 --a C", "--a C --a.b 1 --a.c 2 --d 3"),
        # A later class replaces an earlier one, and `+` appends one.
        ("--a B --a.b 1 --a C", "--a B --a.b 1 --a C"),
        ("--a+=B --a.b 1 --a+=C", "--a+=B --a.b 1 --a+=C"),
    ],
)
def test_a_class_precedes_its_options(given: str, expected: str) -> None:
    assert expand_arguments(given.split()) == expected.split()


@pytest.mark.parametrize(
    ("argv", "text", "name"),
    [
        (["--data", "Digits"], "", "Digits"),
        (["--data=resnet_pl.data.Digits"], "data: {class_path: ImageFolder}", "resnet_pl.data.Digits"),
        (["--data.class_path", "my.Data"], "data: ImageFolder", "my.Data"),
        ([], "data: ImageFolder", "ImageFolder"),
        ([], "data: {class_path: resnet_pl.data.ImageFolder}", "resnet_pl.ImageFolder"),
        (["--data.root", "x"], "", ""),
    ],
)
def test_the_class_of_the_data_is_known(argv: list[str], text: str, name: str) -> None:
    assert CommandLine(["fit", "--config", write("a.yaml", text), *argv]).data_class == name


def test_an_option_without_its_value_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--config" in refused(capsys, "fit", "--config")
    assert split_option(["a", "--x=1", "b", "--x", "2"], "--x") == (["1", "2"], ["a", "b"])


# ------------------------------------------------------------------------------------ checkpoints


def test_a_missing_checkpoint_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere.ckpt" in refused(capsys, "test", "--ckpt_path", "nowhere.ckpt")
    assert "--ckpt_path" in refused(capsys, "test")
    assert "runs/NAME/version_N/checkpoints/best.ckpt" in refused(capsys, "test", "--ckpt_path", "best")
    message = refused(capsys, "fit", "--name", "flowers", "--ckpt_path=last")
    assert "runs/flowers/version_N/checkpoints/last.ckpt" in message
    assert "elsewhere/NAME" in refused(capsys, "test", "--ckpt_path", "best", "--trainer.default_root_dir", "elsewhere")
    assert "aaa/checkpoints/best.ckpt: File name too long" in refused(capsys, "test", "--ckpt_path", "a" * 300)
    assert "ckpt_path: 3" in refused(capsys, "test", "--config", write("a.yaml", "ckpt_path: 3"))
    assert "nowhere.ckpt" in refused(capsys, "test", "--ensemble", "nowhere.ckpt", "other.ckpt")


def test_a_run_folder_is_its_last_checkpoint_for_fit_and_its_best_for_the_others(place: Path) -> None:
    folder = place / "runs/a/version_0/checkpoints"
    folder.mkdir(parents=True)
    for name in ("best.ckpt", "last.ckpt"):
        (folder / name).touch()
    run = str(folder.parent)
    assert CommandLine(["fit", "--ckpt_path", run]).checkpoint == folder / "last.ckpt"
    for subcommand in ("validate", "test", "predict"):
        assert CommandLine([subcommand, "--ckpt_path", run]).checkpoint == folder / "best.ckpt"
    assert CommandLine(["test", "--ensemble", run, "b"]).checkpoint == folder / "best.ckpt"
    assert CommandLine(["test", "--config", write("a.yaml", f"ckpt_path: {run}")]).checkpoint == folder / "best.ckpt"
    assert CommandLine(["fit", "--data", "Digits"]).checkpoint is None


def test_published_weights_need_no_checkpoint(place: Path) -> None:
    assert CommandLine(["test", "--model.weights", "w.pth"]).checkpoint is None
    assert CommandLine(["test", "--config", write("a.yaml", "model: {weights: w.pth}")]).checkpoint is None
    with pytest.raises(UserError, match="checkpoint"):
        CommandLine(["test", "--config", write("a.yaml", "model: {weights: null}")])


def test_help_needs_no_checkpoint() -> None:
    for argv in (["test", "--help"], ["test", "-h", "--config", "nowhere.yaml"]):
        command_line = CommandLine(argv)
        assert command_line.help and command_line.checkpoint is None


def test_the_data_class_is_read_from_a_separate_file(tmp_path: Path) -> None:
    file = tmp_path / "data.yaml"
    file.write_text("class_path: resnet_pl.data.Digits\ninit_args: {batch_size: 8}\n")
    (tmp_path / "all.yaml").write_text("data: data.yaml\n")  # relative to this file
    for words in (["--data", str(file)], ["--config", str(tmp_path / "all.yaml")]):
        command_line = CommandLine(["fit", *words])
        assert (command_line.data_class, command_line.get("data.batch_size")) == ("resnet_pl.Digits", 8)


# ------------------------------------------------------------------------------------ options of other scripts


@pytest.mark.parametrize(
    ("options", "instead"),
    [
        ("--epochs 10", "--trainer.max_epochs 10"),
        ("--lr=0.1", "--model.optimizer.lr 0.1"),
        ("--batch_size 32", "--data.batch_size 32"),
        ("--batch-size 32", "--data.batch_size 32"),
        ("--imgsz 224", "--data.image_size 224"),
        ("--img_size 224", "--data.image_size 224"),
        ("--image_size 224", "--data.image_size 224"),
        ("--workers 4", "--data.num_workers 4"),
        ("--device cuda:0", "--trainer.accelerator gpu --trainer.devices 1"),
        ("--devices 2", "--trainer.devices 2"),
        ("--gpus 2", "--trainer.devices 2"),
        ("--weight_decay 1e-4", "--model.optimizer.weight_decay 1e-4"),
        ("--momentum 0.9", "--model.optimizer.momentum 0.9"),
        ("--seed 1", "--seed_everything 1"),
        ("--data.path x", "--data.root x"),
        ("--data_dir x", "--data.root x"),
        ("--data my/photos", "--data ImageFolder --data.root my/photos"),
        ("--data here", "--data ImageFolder --data.root here"),
        ("--resume", "--ckpt_path last"),
        ("--pretrained", "--model.weights"),
        ("--weights x.pth", "--model.weights"),
        ("--amp", "--trainer.precision 16-mixed"),
        ("--fp16 --epochs 3", "--trainer.precision 16-mixed"),
        ("--arch resnet50", "--model.backbone resnet50"),
    ],
)
def test_options_of_other_scripts(options: str, instead: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("here").mkdir()
    message = refused(capsys, "fit", "--model.backbone", "resnet18", *options.split())
    assert options.split()[0].partition("=")[0] in message and instead in message.splitlines()[1]


def test_fit_alone_lists_the_configurations(capsys: pytest.CaptureFixture[str]) -> None:
    Path("configs").mkdir()
    write("configs/birds.yaml", "")
    for options in ([], ["--trainer.max_epochs", "3"], ["--data.root", "x"]):
        message = refused(capsys, "fit", *options)
        assert "start from --config folder (your own images), birds, cifar10" in message and "recipes" not in message


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["--data.help"], ("data", "")),
        (["--data.help", "Digits"], ("data", "Digits")),
        (["--data.help=Digits"], ("data", "Digits")),
        (["--data.help", "--name", "x"], ("data", "")),
        (["--data", "ImageFolder", "--data.init_args.crop.help", "ScaleCrop"], ("data.crop", "ScaleCrop")),
        (["--name", "help"], None),
    ],
)
def test_help_of_a_class(options: list[str], found: tuple[str, str] | None) -> None:
    assert CommandLine(["fit", "--model.backbone", "resnet18", *options]).class_help == found
