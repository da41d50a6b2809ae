"""Commands on image files that vanish, form symlink loops, have no read permission or have unusual names."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image

from resnet_pl.cli.main import main
from resnet_pl.data.decode import read_image, verify_image
from resnet_pl.data.image_files import list_images
from resnet_pl.utils import UserError
from tests.cli.commands import refused, run
from tests.conftest import write_photos
from tests.faults.forks import UNREADABLE, ProcessResult, forked, without_root_privileges
from tests.faults.images import CONFIG
from tests.test_distributed import run as run_process

BAD = {"gone.jpg", "lost.jpg"}
UNUSUAL_NAMES = ["two\nlines.jpg", "[red]tag.jpg", "-rf.jpg", "žluť 🦆.jpg", "comma,;.jpg", "\x1b[31m.jpg", "*.jpg",
       "a" * 240 + ".jpg", "\udcff\udcfe.jpg"]  # fmt: skip


class Vanish(Callback):
    """Removes files after the data set has listed them.

    Args:
        root: folder of the class folders.
    """

    def __init__(self, root: str) -> None:
        self.root = Path(root)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name in BAD:
            (self.root / "ant" / name).unlink()


def fit(root: Path, folder: Path, *more: object) -> list[object]:
    """The command line of a training on all images of a folder."""
    model = ["--model.backbone", "cifar_resnet", "--model.backbone.depth", 8, "--model.weights", "null"]
    data = ["--data.root", root, "--data.image_size", 16, "--data.batch_size", 4, "--data.num_workers", 0]
    splits = ["--data.val_split", 0, "--data.test_split", 0, "--trainer.default_root_dir", folder / "runs"]
    return ["fit", "--config", CONFIG, *model, *data, *splits, "--trainer.max_epochs", 1, *more]


def skipped_files(folder: Path) -> list[str]:
    """Lines of bad_images.txt of the run in a folder."""
    text = (folder / "runs/folder/version_0/bad_images.txt").read_text(encoding="utf-8")
    return sorted(line.rpartition("/")[2] for line in text.splitlines())


@pytest.fixture
def vanishing_folder(photo_folder: Path) -> Path:
    """A folder with two additional images, which `Vanish` removes."""
    for shade, name in enumerate(sorted(BAD)):
        Image.new("RGB", (20, 20), (7, shade, 99)).save(photo_folder / "ant" / name)
    return photo_folder


@pytest.mark.parametrize("workers", [0, 2])
def test_files_that_vanish_during_a_run(
    vanishing_folder: Path, workers: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vanish = ["--trainer.callbacks+", f"{__name__}.Vanish", "--trainer.callbacks.root", vanishing_folder]
    contents = {path.name: path.read_bytes() for path in vanishing_folder.glob("ant/*") if path.name in BAD}
    more = [*vanish, "--data.num_workers", workers]
    message = refused(capsys, *fit(vanishing_folder, tmp_path / "error", *more))
    assert any(f"{vanishing_folder}/ant/{name}: No such file or directory\n" in message for name in BAD)
    for name, data in contents.items():
        (vanishing_folder / "ant" / name).write_bytes(data)
    run(*fit(vanishing_folder, tmp_path, *more, "--data.on_bad_image", "skip"))
    assert skipped_files(tmp_path) == sorted(f"{name}: No such file or directory" for name in BAD)
    assert re.search(r"2 so far.*\.jpg: No such file", capsys.readouterr().out)


def test_skipped_files_are_listed_once_after_a_resume(
    vanishing_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in BAD:
        (vanishing_folder / "ant" / name).write_bytes(b"")
    run(*fit(vanishing_folder, tmp_path, "--data.on_bad_image", "skip", "--trainer.max_epochs", 2))
    run("fit", "--ckpt_path", tmp_path / "runs/folder/version_0/checkpoints/last.ckpt", "--trainer.max_epochs", 3)
    assert skipped_files(tmp_path) == sorted(f"{name}: the file is empty" for name in BAD)


def test_symlink_loops_and_dangling_symlinks(
    vanishing_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The content of every file is read before the split.
    for name, target in zip(sorted(BAD), ("nowhere", "lost.jpg"), strict=True):
        (vanishing_folder / "ant" / name).unlink()
        (vanishing_folder / "ant" / name).symlink_to(target)
    (vanishing_folder / "ant" / "itself").symlink_to("itself")
    (vanishing_folder / "self").symlink_to(vanishing_folder)
    (vanishing_folder / "ant" / "round").symlink_to(vanishing_folder)
    assert f"{vanishing_folder}/ant/gone.jpg: No such file" in refused(capsys, *fit(vanishing_folder, tmp_path))
    run(*fit(vanishing_folder, tmp_path, "--data.on_bad_image", "skip", "--data.val_split", 3, "--data.test_split", 3))
    assert main(["check-data", str(vanishing_folder)]) == 1
    assert "gone.jpg: No such file" in capsys.readouterr().out


def test_unusual_file_names(photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for shade, name in enumerate(UNUSUAL_NAMES):
        Image.new("RGB", (20, 20), (7, shade, 99)).save(photo_folder / "ant" / name, format="JPEG")
    (photo_folder / "ant" / "two\nbad\nlines.jpg").write_bytes(b"")
    (photo_folder / "bee\x07").mkdir()
    write_photos(photo_folder, ["bee\x07"], count=3, first=50)
    message = refused(capsys, *fit(photo_folder, tmp_path / "error", "--data.verify_images", True))
    assert "two\\nbad\\nlines.jpg': the file is empty" in message
    line = ["--data.on_bad_image", "skip", "--data.val_split", 0.2, "--data.test_split", 0.2]
    run(*fit(photo_folder, tmp_path, *line))
    checkpoint = tmp_path / "runs/folder/version_0/checkpoints/last.ckpt"
    run("test", "--ckpt_path", checkpoint)
    run("predict", "--ckpt_path", checkpoint, "--images", photo_folder / "ant")
    capsys.readouterr()
    assert main(["check-data", str(photo_folder), "--output", str(tmp_path / "all.csv")]) == 1
    out = capsys.readouterr().out
    assert "'ant/two\\nbad\\nlines.jpg': the file is empty" in out and "'bee\\x07'" in out


@pytest.mark.process
@pytest.mark.slow
def test_two_processes_print_once_and_write_one_list_of_skipped_files(vanishing_folder: Path, tmp_path: Path) -> None:
    for name in BAD:
        (vanishing_folder / "ant" / name).write_bytes(b"")
    words = fit(vanishing_folder, tmp_path, "--trainer.devices", 2, "--trainer.accelerator", "cpu")
    words += ["--trainer.max_epochs", 2, "--data.val_split", 4]
    out = run_process(tmp_path, *map(str, words), "--data.on_bad_image", "skip")
    assert out.count("2 processes") == 1 and out.lower().count("best validation top-1") == 1
    assert [path.name for path in (tmp_path / "runs/folder").iterdir()] == ["version_0"]
    assert skipped_files(tmp_path) == sorted(f"{name}: the file is empty" for name in BAD)
    assert out.count(" so far") >= 2


# ------------------------------------------------------------------------------------ permissions
def run_unprivileged(folder: Path, work: Callable[[], int]) -> ProcessResult:
    """Calls a function in a forked process to which file permissions apply, even if root runs the tests."""

    def run_single_threaded() -> int:
        torch.set_num_threads(1)  # the threads of the parent do not exist in a forked process
        return work()

    result = forked(without_root_privileges(run_single_threaded), folder)
    if result.code == UNREADABLE:
        pytest.skip("this project can be read with root's privileges only")
    return result


def test_a_file_without_read_permission(photo_folder: Path, tmp_path: Path) -> None:
    path = photo_folder / "ant/0003.jpg"
    path.chmod(0)

    def work() -> int:
        for read in (read_image, verify_image):
            with pytest.raises(UserError, match=r"0003\.jpg: Permission denied"):
                read(path)
        return main(["check-data", str(photo_folder), "--threads", "1"])

    result = run_unprivileged(tmp_path / "work", work)
    assert result.code == 1 and "ant/0003.jpg: Permission denied\n" in result.out, result.err


@pytest.mark.parametrize("policy", ["error", "skip"])
def test_training_on_a_file_without_read_permission(photo_folder: Path, policy: str, tmp_path: Path) -> None:
    (photo_folder / "ant/0003.jpg").chmod(0)
    words = [*fit(photo_folder, tmp_path), "--data.on_bad_image", policy]
    result = run_unprivileged(tmp_path / "work", lambda: main([str(word) for word in words]))
    if policy == "error":
        assert result.rejected() and "0003.jpg: Permission denied" in result.message[0], result.err
    else:
        assert result.code == 0 and skipped_files(tmp_path) == ["0003.jpg: Permission denied"], result.err


def test_a_folder_without_read_permission(photo_folder: Path, tmp_path: Path) -> None:
    closed, link = photo_folder / "ant", photo_folder / "bee/linked.jpg"
    link.symlink_to(closed / "0000.jpg")
    closed.chmod(0)

    def work() -> int:
        assert link in list_images(photo_folder / "bee")
        with pytest.raises(UserError, match=r"linked\.jpg: Permission denied"):
            read_image(link)
        return main(["check-data", str(photo_folder)])

    result = run_unprivileged(tmp_path / "work", work)
    closed.chmod(0o700)
    assert result.rejected() and f"{closed}: Permission denied" in result.message[0], result.err
