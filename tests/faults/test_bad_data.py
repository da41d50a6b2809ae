"""Files that vanish, lead in circles, may not be read or have odd names, as a person's commands meet them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image

from resnet_pl.cli.main import main
from resnet_pl.data.decode import list_images, read_image, verify_image
from resnet_pl.utils import UserError
from tests.cli.commands import refused, run
from tests.conftest import write_photos
from tests.faults.forks import UNREADABLE, Ended, forked, with_permissions
from tests.faults.images import CONFIG
from tests.test_distributed import run as command

BAD = {"gone.jpg", "lost.jpg"}
ODD = ["two\nlines.jpg", "[red]tag.jpg", "-rf.jpg", "žluť 🦆.jpg", "comma,;.jpg", "\x1b[31m.jpg", "*.jpg",
       "a" * 240 + ".jpg", "\udcff\udcfe.jpg"]  # fmt: skip


class Vanish(Callback):
    """Removes files after they have been listed.

    Args:
        root: folder of the class folders.
    """

    def __init__(self, root: str) -> None:
        self.root = Path(root)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name in BAD:
            (self.root / "ant" / name).unlink()


def fit(root: Path, folder: Path, *more: object) -> list[object]:
    """The command line of a training on a folder of photos, all of which are trained on."""
    net = ["--model.backbone", "cifar_resnet", "--model.backbone.depth", 8, "--model.weights", "null"]
    data = ["--data.root", root, "--data.image_size", 16, "--data.batch_size", 4, "--data.num_workers", 0]
    splits = ["--data.val_split", 0, "--data.test_split", 0, "--trainer.default_root_dir", folder / "runs"]
    return ["fit", "--config", CONFIG, *net, *data, *splits, "--trainer.max_epochs", 1, *more]


def listed(folder: Path) -> list[str]:
    """What the newest run says it has left out."""
    text = (folder / "runs/folder/version_0/bad_images.txt").read_text(encoding="utf-8")
    return sorted(line.rpartition("/")[2] for line in text.splitlines())


@pytest.fixture
def doomed(photo_folder: Path) -> Path:
    """A folder with two photos more, which `Vanish` removes."""
    for shade, name in enumerate(sorted(BAD)):
        Image.new("RGB", (20, 20), (7, shade, 99)).save(photo_folder / "ant" / name)
    return photo_folder


@pytest.mark.parametrize("workers", [0, 2])
def test_files_that_vanish_while_a_run_goes_on(
    doomed: Path, workers: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vanish = ["--trainer.callbacks+", f"{__name__}.Vanish", "--trainer.callbacks.root", doomed]
    kept = {path.name: path.read_bytes() for path in doomed.glob("ant/*") if path.name in BAD}
    more = [*vanish, "--data.num_workers", workers]
    said = refused(capsys, *fit(doomed, tmp_path / "error", *more))
    assert any(f"{doomed}/ant/{name}: No such file or directory\n" in said for name in BAD)
    for name, data in kept.items():
        (doomed / "ant" / name).write_bytes(data)
    run(*fit(doomed, tmp_path, *more, "--data.on_bad_image", "skip"))
    assert listed(tmp_path) == sorted(f"{name}: No such file or directory" for name in BAD)
    assert "left out, 2 so far: " in capsys.readouterr().out


def test_what_is_left_out_is_listed_once_however_often_a_run_goes_on(
    doomed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in BAD:
        (doomed / "ant" / name).write_bytes(b"")
    run(*fit(doomed, tmp_path, "--data.on_bad_image", "skip", "--trainer.max_epochs", 2))
    run("fit", "--ckpt_path", tmp_path / "runs/folder/version_0/checkpoints/last.ckpt", "--trainer.max_epochs", 3)
    assert listed(tmp_path) == sorted(f"{name}: the file is empty" for name in BAD)


def test_files_that_cannot_even_be_compared(doomed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Before the split every file's content is looked at.
    for name, target in zip(sorted(BAD), ("nowhere", "lost.jpg"), strict=True):
        (doomed / "ant" / name).unlink()
        (doomed / "ant" / name).symlink_to(target)
    (doomed / "ant" / "itself").symlink_to("itself")
    (doomed / "self").symlink_to(doomed)
    (doomed / "ant" / "round").symlink_to(doomed)
    assert f"cannot read image {doomed}/ant/gone.jpg: No such file" in refused(capsys, *fit(doomed, tmp_path))
    run(*fit(doomed, tmp_path, "--data.on_bad_image", "skip", "--data.val_split", 3, "--data.test_split", 3))
    assert main(["check-data", str(doomed)]) == 1
    assert "gone.jpg: No such file" in capsys.readouterr().out


def test_names_of_every_kind(photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for shade, name in enumerate(ODD):
        Image.new("RGB", (20, 20), (7, shade, 99)).save(photo_folder / "ant" / name, format="JPEG")
    (photo_folder / "ant" / "two\nbad\nlines.jpg").write_bytes(b"")
    (photo_folder / "bee\x07").mkdir()
    write_photos(photo_folder, ["bee\x07"], count=3, first=50)
    said = refused(capsys, *fit(photo_folder, tmp_path / "error", "--data.verify_images", True))
    assert "two\\nbad\\nlines.jpg': the file is empty" in said
    line = ["--data.on_bad_image", "skip", "--data.val_split", 0.2, "--data.test_split", 0.2]
    run(*fit(photo_folder, tmp_path, *line))
    checkpoint = tmp_path / "runs/folder/version_0/checkpoints/last.ckpt"
    run("test", "--ckpt_path", checkpoint)
    run("predict", "--ckpt_path", checkpoint, "--images", photo_folder / "ant")
    capsys.readouterr()
    assert main(["check-data", str(photo_folder), "--output", str(tmp_path / "all.csv")]) == 1
    out = capsys.readouterr().out
    assert "  'ant/two\\nbad\\nlines.jpg': the file is empty" in out and "'bee\\x07'" in out


@pytest.mark.process
def test_what_two_processes_leave_out_is_one_list(doomed: Path, tmp_path: Path) -> None:
    for name in BAD:
        (doomed / "ant" / name).write_bytes(b"")
    words = fit(doomed, tmp_path, "--trainer.devices", 2, "--trainer.accelerator", "cpu", "--trainer.max_epochs", 2)
    out = command(tmp_path, *map(str, words), "--data.on_bad_image", "skip")
    assert listed(tmp_path) == sorted(f"{name}: the file is empty" for name in BAD)
    assert out.count("left out, ") >= 2


# ------------------------------------------------------------------------------------ permissions
def limited(folder: Path, work: Callable[[], int]) -> Ended:
    """Runs work in a process for which permissions hold, whoever runs the tests."""

    def alone() -> int:
        torch.set_num_threads(1)  # those of the process that is forked are not there
        return work()

    ended = forked(with_permissions(alone), folder)
    if ended.code == UNREADABLE:
        pytest.skip("this project can be read with root's rights only")
    return ended


def test_a_file_that_may_not_be_read(photo_folder: Path, tmp_path: Path) -> None:
    path = photo_folder / "ant/0003.jpg"
    path.chmod(0)

    def work() -> int:
        for look in (read_image, verify_image):
            with pytest.raises(UserError, match=r"0003\.jpg: Permission denied"):
                look(path)
        return main(["check-data", str(photo_folder), "--threads", "1"])

    ended = limited(tmp_path / "work", work)
    assert ended.code == 1 and "broken files: 1\n  ant/0003.jpg: Permission denied\n" in ended.out, ended.err


@pytest.mark.parametrize("policy", ["error", "skip"])
def test_a_training_on_a_file_that_may_not_be_read(photo_folder: Path, policy: str, tmp_path: Path) -> None:
    (photo_folder / "ant/0003.jpg").chmod(0)
    words = [*fit(photo_folder, tmp_path), "--data.on_bad_image", policy]
    ended = limited(tmp_path / "work", lambda: main([str(word) for word in words]))
    if policy == "error":
        assert ended.told() and "0003.jpg: Permission denied" in ended.message[0], ended.err
    else:
        assert ended.code == 0 and listed(tmp_path) == ["0003.jpg: Permission denied"], ended.err


def test_a_folder_that_may_not_be_looked_into(photo_folder: Path, tmp_path: Path) -> None:
    closed, link = photo_folder / "ant", photo_folder / "bee/linked.jpg"
    link.symlink_to(closed / "0000.jpg")
    closed.chmod(0)

    def work() -> int:
        assert link in list_images(photo_folder / "bee")
        with pytest.raises(UserError, match=r"linked\.jpg: Permission denied"):
            read_image(link)
        return main(["check-data", str(photo_folder)])

    ended = limited(tmp_path / "work", work)
    closed.chmod(0o700)
    assert ended.told() and f"cannot list folder {closed}: Permission denied" in ended.message[0], ended.err
