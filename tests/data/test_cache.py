"""The cache of decoded images."""

import os
import pickle
import shutil
import signal
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as TF

from resnet_pl.cli.main import main
from resnet_pl.data import ImageFolder, ImageTable, download
from resnet_pl.data import cache as module
from resnet_pl.data.cache import default_folder, estimate, open_cache, resize_shorter_side
from resnet_pl.data.crops import RandomResizedCrop, ResizeCenterCrop
from resnet_pl.data.decode import read_image
from resnet_pl.data.loader import ResumableLoader
from resnet_pl.utils import UserError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of ten noise images: wide, tall, rotated by EXIF, gray, transparent and small."""
    rng = np.random.default_rng(0)
    for number in range(20):
        path = tmp_path / "photos" / ("ant", "bee")[number % 2] / f"{number:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        height, width = (30 + 3 * number, 60) if number else (8, 10)
        # Smooth, as photos are: downscaling removes only a part of the noise.
        noise = Image.fromarray(rng.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8))
        image, exif = noise.resize((width, height), Image.Resampling.BICUBIC), Image.Exif()
        if number == 1:
            exif[0x0112] = 6
        if number == 3:
            image.convert("RGBA").save(path, "PNG")
        else:
            (image.convert("L") if number == 2 else image).save(path, exif=exif, quality=95)
    return tmp_path / "photos"


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    return tmp_path / "caches"


def names(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.glob("*/*"))


def open_all(root: Path, cache_dir: Path, side: int | None = None) -> list[torch.Tensor | None]:
    cache = open_cache(root, names(root), side, str(cache_dir))
    return [cache[i] for i in range(len(cache.index))]


def data(root: Path, cache_dir: Path | None = None, stage: str = "fit", **kwargs: Any) -> ImageFolder:
    settings = {"image_size": 16, "batch_size": 4, "num_workers": 0, "val_split": 0.2, "test_split": 0.2} | kwargs
    settings = {"scaled_decoding": False} | settings  # the cache decodes in full
    if cache_dir:
        settings |= {"cache": True, "cache_dir": str(cache_dir)}
    module = ImageFolder(str(root), **settings)
    module.setup(stage)
    return module


def same(first: ResumableLoader, second: ResumableLoader) -> bool:
    pairs = list(zip(first, second, strict=True))
    return bool(pairs) and all(torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) for a, b in pairs)


# ------------------------------------------------------------------------------------ the file
def test_images_are_stored_exactly(root: Path, cache_dir: Path) -> None:
    for name, cached in zip(names(root), open_all(root, cache_dir), strict=True):
        assert torch.equal(cached, read_image(root / name))
        assert cached.permute(1, 2, 0).is_contiguous(), "another memory layout is slower to crop"


def test_larger_images_are_downscaled(root: Path, cache_dir: Path) -> None:
    shapes = set()
    for name, cached in zip(names(root), open_all(root, cache_dir, 40), strict=True):
        image = read_image(root / name)
        large = min(image.shape[-2:]) > 40
        assert torch.equal(cached, TF.resize(image, [40], antialias=True) if large else image)
        shapes.add((large, min(cached.shape[-2:])))
    assert (True, 40) in shapes and (False, 8) in shapes


def test_size_estimate(root: Path) -> None:
    images = [read_image(root / name) for name in names(root)]
    assert estimate(root, names(root), None) == sum(image.numel() for image in images)
    downscaled = sum(resize_shorter_side(image, 40).numel() for image in images)
    assert estimate(root, names(root), 40) == pytest.approx(downscaled, rel=0.02)


def test_bad_images_are_reported_when_they_are_loaded(root: Path, cache_dir: Path) -> None:
    (root / "ant/04.jpg").write_bytes(b"no image")
    (root / "ant/06.jpg").unlink()
    (root / "ant/06.jpg").symlink_to("nowhere")
    cached = dict(zip(names(root), open_all(root, cache_dir), strict=True))
    assert [name for name, image in cached.items() if image is None] == ["ant/04.jpg", "ant/06.jpg"]
    (root / "ant/06.jpg").unlink()
    with pytest.raises(UserError, match=r"ant/04\.jpg.*\n.*on_bad_image skip"):
        list(data(root, cache_dir, val_split=0, test_split=0).train_dataloader())


def test_all_images_bad(root: Path, cache_dir: Path) -> None:
    for name in names(root):
        (root / name).write_bytes(b"")
    assert open_all(root, cache_dir) == [None] * 20


def test_an_in_place_transform_does_not_change_the_cache(root: Path, cache_dir: Path) -> None:
    cache = open_cache(root, names(root), None, str(cache_dir))
    cache[5].zero_()
    assert torch.equal(cache[5], read_image(root / names(root)[5]))


def test_pickling_stores_the_path_only(root: Path, cache_dir: Path) -> None:
    pickled = pickle.dumps(open_cache(root, names(root), None, str(cache_dir)).select([7, 3]))
    assert len(pickled) < 1000
    assert torch.equal(pickle.loads(pickled)[1], read_image(root / names(root)[3]))


# ------------------------------------------------------------------------------------ shared and rebuilt
@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Returns the list of decoded files."""
    paths = []
    monkeypatch.setattr(module, "read_image", lambda path: (paths.append(path), read_image(path))[1])
    return paths


def test_runs_with_different_splits_share_the_cache(root: Path, cache_dir: Path, decodings: list[Path]) -> None:
    data(root, cache_dir)
    assert len(decodings) == 20
    data(root, cache_dir, split_seed=1, val_split=0.4, image_size=32)
    again = data(root, cache_dir, num_folds=2)
    assert len(decodings) == 20
    assert again.splits["train"].cache and again.splits["val"].cache


@pytest.mark.parametrize("change", ["content", "new", "gone", "renamed"])
def test_rebuilt_when_the_folder_changes(root: Path, cache_dir: Path, change: str, decodings: list[Path]) -> None:
    open_all(root, cache_dir)
    path = root / "ant/08.jpg"
    if change == "content":
        stat = path.stat()
        path.write_bytes(path.read_bytes()[:-20] + bytes(18) + b"\xff\xd9")
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    elif change == "new":
        shutil.copy2(path, root / "ant/99.jpg")
    elif change == "gone":
        path.unlink()
    else:
        path.rename(root / "ant/07.jpg")
    decodings.clear()
    cached = open_all(root, cache_dir)
    assert len(decodings) == len(cached) == len(names(root))
    assert all(torch.equal(image, read_image(root / name)) for name, image in zip(names(root), cached, strict=True))
    assert sum(1 for _ in cache_dir.glob("*/*")) == 2, "the outdated cache is deleted"


def test_each_side_and_folder_has_its_own_cache(
    root: Path, cache_dir: Path, tmp_path: Path, decodings: list[Path]
) -> None:
    other = shutil.copytree(root, tmp_path / "other" / root.name)
    for folder, side in ((root, None), (root, 40), (other, None)):
        open_all(folder, cache_dir, side)
    assert len(decodings) == 60
    open_all(root, cache_dir)
    assert len(decodings) == 60


def test_two_tables_of_a_folder_keep_their_caches(
    root: Path, cache_dir: Path, tmp_path: Path, decodings: list[Path]
) -> None:
    def opened(table: Path, names: list[str]) -> ImageTable:
        table.write_text("\n".join(["path,label", *(f"{name},{Path(name).parent}" for name in names)]))
        images = ImageTable(str(table), str(root), cache=True, cache_dir=str(cache_dir), val_split=0, test_split=0)
        images.setup("fit")
        return images

    first = opened(tmp_path / "one.csv", names(root)).splits["train"].cache
    opened(tmp_path / "two.csv", names(root)[5:15])
    assert len(decodings) == 30
    assert torch.equal(pickle.loads(pickle.dumps(first))[0], first[0]), "a worker process opens the file again"
    opened(tmp_path / "one.csv", names(root))
    assert len(decodings) == 30
    opened(tmp_path / "one.csv", names(root)[:15])
    assert sum(1 for _ in cache_dir.glob("*/*")) == 4, "the outdated cache is deleted"


def test_an_interrupted_cache_is_rebuilt(root: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def interrupted(*_: object) -> Iterator[Callable]:
        yield lambda amount: signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(module, "progress", interrupted)
        with pytest.raises(KeyboardInterrupt):
            open_all(root, cache_dir)
    # After a power failure, the partial file also remains.
    (folder,) = (path for path in cache_dir.iterdir() if path.is_dir())
    (folder / ".partial").write_bytes(b"half")
    assert all(image is not None for image in open_all(root, cache_dir))
    assert sum(1 for _ in folder.iterdir()) == 2


def test_processes_that_start_together_decode_once(
    root: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch, decodings: list[Path]
) -> None:
    monkeypatch.setattr(download, "PAUSE", 0.01)
    with ThreadPool(3) as pool:
        caches = pool.map(lambda _: open_all(root, cache_dir), range(3))
    assert len(decodings) == 20
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*caches, strict=True))
    assert not list(cache_dir.glob("*.lock"))


def test_default_folder(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_folder() == tmp_path / "xdg" / "resnet_pl"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache" / "resnet_pl"


def test_disk_space_is_checked_first(
    root: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1000))
    with pytest.raises(
        UserError, match=r"20 .* 0\.0 GB, .* 0\.0 GB free\n.*--data\.cache_side.*--data\.cache_dir.*--data\.cache false"
    ):
        open_all(root, cache_dir)
    assert not list(cache_dir.glob("*/*"))
    monkeypatch.undo()
    open_all(root, cache_dir)
    assert "decoding 20 images" in capsys.readouterr().out


def test_unwritable_folder(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written to .*file.*\n.*--data\.cache_dir"):
        open_all(root, tmp_path / "file")


# ------------------------------------------------------------------------------------ training and evaluation
@pytest.mark.parametrize("workers", [0, 2])
def test_a_cache_of_full_size_gives_the_same_batches(root: Path, cache_dir: Path, workers: int) -> None:
    plain, cached = data(root), data(root, cache_dir, num_workers=workers)
    for split in cached.splits.values():
        split.root = Path("gone") if split.cache else split.root
    assert same(plain.train_dataloader(), cached.train_dataloader())
    assert same(plain.val_dataloader(), cached.val_dataloader())
    assert cached.splits["test"].cache is None, "test images are decoded once, so they are not cached"


@pytest.mark.parametrize(("side", "used"), [(round(16 * 256 / 224), True), (24, False)])
def test_evaluation_is_the_same_for_any_cache_side(root: Path, cache_dir: Path, side: int, used: bool) -> None:
    plain, cached = data(root), data(root, cache_dir, cache_side=side)
    assert (cached.splits["val"].cache is not None) == used
    assert same(plain.val_dataloader(), cached.val_dataloader())
    assert cached.splits["train"].cache is not None
    assert cached.splits["val"].with_views(lambda image, size: [image]).cache is None


def test_evaluation_of_an_extreme_aspect_ratio_is_the_same(root: Path, cache_dir: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 900, 3), dtype=np.uint8)).save(root / "ant/04.jpg")
    cached = dict(zip(names(root), open_all(root, cache_dir, 18), strict=True))["ant/04.jpg"]
    assert cached.shape == (3, 18, 288)
    assert torch.equal(ResizeCenterCrop()(cached, 16), ResizeCenterCrop()(read_image(root / "ant/04.jpg"), 16))


def test_crops_of_downscaled_images_have_the_same_statistics(root: Path, cache_dir: Path) -> None:
    settings = {"crop": RandomResizedCrop(0.3), "val_split": 0, "test_split": 0, "batch_size": 20}
    # With 34 pixels, no crop is upscaled.
    modules = [data(root, **settings), data(root, cache_dir, cache_side=34, **settings)]
    crops = []
    for datamodule in modules:
        loader = datamodule.train_dataloader()
        crops.append([])
        for epoch in range(20):
            loader.sampler.set_epoch(epoch)
            crops[-1] += [batch.images.double() for batch in loader]
    full, downscaled = map(torch.cat, crops)
    assert not torch.equal(full, downscaled)
    # Both have the same boxes, to within a pixel of the smaller image. The test is paired, so that the variance between
    # crops does not count.
    difference = (full - downscaled).mean((1, 2, 3))
    assert difference.mean().abs() < 4 * difference.std() / len(difference) ** 0.5 + 0.5
    assert downscaled.std() == pytest.approx(float(full.std()), rel=0.05)


def test_a_run_with_a_cache_has_the_same_weights(root: Path, cache_dir: Path, tmp_path: Path) -> None:
    model = ["--model.backbone", "cifar_resnet", "--model.backbone.depth", "8", "--trainer.max_epochs", "2"]
    folder = ["--data", "ImageFolder", "--data.root", root, "--data.image_size", "16", "--data.num_workers", "0"]
    folder += ["--data.scaled_decoding", "false"]
    small = ["--data.batch_size", "4", "--trainer.accelerator", "cpu", "--trainer.devices", "1"]
    for name, extra in {"plain": [], "cached": ["--data.cache", "true", "--data.cache_dir", cache_dir]}.items():
        where = ["--name", name, "--trainer.default_root_dir", tmp_path / "runs"]
        assert main([str(word) for word in ("fit", *model, *folder, *small, *where, *extra)]) in (0, None)
    weights = [
        torch.load(tmp_path / "runs" / name / "version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for name in ("plain", "cached")
    ]
    assert list(cache_dir.glob("*/*.npy"))
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


def test_testing_builds_no_cache(root: Path, cache_dir: Path) -> None:
    data(root, cache_dir, stage="test")
    assert not cache_dir.exists()
