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
from resnet_pl.data import ImageFolder, download
from resnet_pl.data import cache as module
from resnet_pl.data.cache import default_folder, estimate, open_cache
from resnet_pl.data.crops import RandomResizedCrop, ResizeCenterCrop
from resnet_pl.data.decode import read_image
from resnet_pl.data.loader import ResumableLoader
from resnet_pl.utils import UserError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of ten photos of noise; wide, tall, turned by EXIF, grey, transparent and small ones among them."""
    rng = np.random.default_rng(0)
    for number in range(20):
        path = tmp_path / "photos" / ("ant", "bee")[number % 2] / f"{number:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        height, width = (30 + 3 * number, 60) if number else (8, 10)
        # Smooth, as photos are: shrinking takes away only part of it.
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
def place(tmp_path: Path) -> Path:
    return tmp_path / "caches"


def names(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.glob("*/*"))


def keep(root: Path, place: Path, side: int | None = None) -> list[torch.Tensor | None]:
    photos = open_cache(root, names(root), side, str(place))
    return [photos[i] for i in range(len(photos.index))]


def data(root: Path, place: Path | None = None, stage: str = "fit", **kwargs: Any) -> ImageFolder:
    settings = {"image_size": 16, "batch_size": 4, "num_workers": 0, "val_split": 0.2, "test_split": 0.2} | kwargs
    if place:
        settings |= {"cache": True, "cache_dir": str(place)}
    module = ImageFolder(str(root), **settings)
    module.setup(stage)
    return module


def same(first: ResumableLoader, second: ResumableLoader) -> bool:
    pairs = list(zip(first, second, strict=True))
    return bool(pairs) and all(torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) for a, b in pairs)


# ------------------------------------------------------------------------------------ the file
def test_every_pixel_is_kept(root: Path, place: Path) -> None:
    for name, kept in zip(names(root), keep(root, place), strict=True):
        assert torch.equal(kept, read_image(root / name))
        assert kept.permute(1, 2, 0).is_contiguous(), "slower to crop"


def test_larger_photos_are_shrunk(root: Path, place: Path) -> None:
    shapes = set()
    for name, kept in zip(names(root), keep(root, place, 40), strict=True):
        image = read_image(root / name)
        large = min(image.shape[-2:]) > 40
        assert torch.equal(kept, TF.resize(image, [40], antialias=True) if large else image)
        shapes.add((large, min(kept.shape[-2:])))
    assert (True, 40) in shapes and (False, 8) in shapes


def test_the_estimate(root: Path) -> None:
    images = [read_image(root / name) for name in names(root)]
    assert estimate(root, names(root), None) == sum(image.numel() for image in images)
    resize_shorter_side = sum(module.resize_shorter_side(image, 40).numel() for image in images)
    assert estimate(root, names(root), 40) == pytest.approx(resize_shorter_side, rel=0.02)


def test_bad_photos_are_left_to_the_reader(root: Path, place: Path) -> None:
    (root / "ant/04.jpg").write_bytes(b"no image")
    (root / "ant/06.jpg").unlink()
    (root / "ant/06.jpg").symlink_to("nowhere")
    kept = dict(zip(names(root), keep(root, place), strict=True))
    assert [name for name, image in kept.items() if image is None] == ["ant/04.jpg", "ant/06.jpg"]
    (root / "ant/06.jpg").unlink()
    with pytest.raises(UserError, match=r"ant/04\.jpg.*\n.*on_bad_image skip"):
        list(data(root, place, val_split=0, test_split=0).train_dataloader())


def test_nothing_but_bad_photos(root: Path, place: Path) -> None:
    for name in names(root):
        (root / name).write_bytes(b"")
    assert keep(root, place) == [None] * 20


def test_a_transform_in_place_does_not_reach_it(root: Path, place: Path) -> None:
    photos = open_cache(root, names(root), None, str(place))
    photos[5].zero_()
    assert torch.equal(photos[5], read_image(root / names(root)[5]))


def test_it_travels_as_a_name(root: Path, place: Path) -> None:
    photos = open_cache(root, names(root), None, str(place)).select([7, 3])
    message = pickle.dumps(photos)
    assert len(message) < 1000
    assert torch.equal(pickle.loads(message)[1], read_image(root / names(root)[3]))


# ------------------------------------------------------------------------------------ shared and made anew
@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were decoded."""
    found = []
    monkeypatch.setattr(module, "read_image", lambda path: (found.append(path), read_image(path))[1])
    return found


def test_runs_share_it_whatever_their_split(root: Path, place: Path, decodings: list[Path]) -> None:
    data(root, place)
    assert len(decodings) == 20
    data(root, place, split_seed=1, val_split=0.4, image_size=32)
    again = data(root, place, num_folds=2)
    assert len(decodings) == 20
    assert again.splits["train"].cache and again.splits["val"].cache


@pytest.mark.parametrize("change", ["content", "new", "gone", "renamed"])
def test_made_anew_when_the_folder_changes(root: Path, place: Path, change: str, decodings: list[Path]) -> None:
    keep(root, place)
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
    kept = keep(root, place)
    assert len(decodings) == len(kept) == len(names(root))
    assert all(torch.equal(image, read_image(root / name)) for name, image in zip(names(root), kept, strict=True))
    assert sum(1 for _ in place.glob("*/*")) == 2, "the older cache takes room"


def test_each_side_and_folder_has_its_own(root: Path, place: Path, tmp_path: Path, decodings: list[Path]) -> None:
    other = shutil.copytree(root, tmp_path / "other" / root.name)
    for folder, side in ((root, None), (root, 40), (other, None)):
        keep(folder, place, side)
    assert len(decodings) == 60
    keep(root, place)
    assert len(decodings) == 60


def test_an_interrupted_one_is_begun_again(root: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def interrupted(*_: object) -> Iterator[Callable]:
        yield lambda amount: signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(module, "progress", interrupted)
        with pytest.raises(KeyboardInterrupt):
            keep(root, place)
    # As after a power cut, which leaves the partial file too.
    (own,) = (path for path in place.iterdir() if path.is_dir())
    (own / ".partial").write_bytes(b"half")
    assert all(image is not None for image in keep(root, place))
    assert sum(1 for _ in own.iterdir()) == 2


def test_processes_that_start_together_decode_once(
    root: Path, place: Path, monkeypatch: pytest.MonkeyPatch, decodings: list[Path]
) -> None:
    monkeypatch.setattr(download, "PAUSE", 0.01)
    with ThreadPool(3) as pool:
        found = pool.map(lambda _: keep(root, place), range(3))
    assert len(decodings) == 20
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*found, strict=True))
    assert not list(place.glob("*.lock"))


def test_where_it_is(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_folder() == tmp_path / "xdg" / "resnet_pl"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache" / "resnet_pl"


def test_size_is_told_before_and_compared_with_the_disk(
    root: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1000))
    with pytest.raises(
        UserError, match=r"20 decoded photos take about 0\.0 GB, .* has 0\.0 GB free\n.*--data\.cache null"
    ):
        keep(root, place)
    assert not list(place.glob("*/*"))
    monkeypatch.undo()
    keep(root, place)
    assert "decoding 20 photos into" in capsys.readouterr().out


def test_a_place_that_cannot_be_written(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written to .*file.*\n.*--data\.cache_dir"):
        keep(root, tmp_path / "file")


# ------------------------------------------------------------------------------------ what is learned
@pytest.mark.parametrize("workers", [0, 2])
def test_all_pixels_train_and_evaluate_the_same(root: Path, place: Path, workers: int) -> None:
    plain, cached = data(root), data(root, place, num_workers=workers)
    for split in cached.splits.values():
        split.root = Path("gone") if split.cache else split.root
    assert same(plain.train_dataloader(), cached.train_dataloader())
    assert same(plain.val_dataloader(), cached.val_dataloader())
    assert cached.splits["test"].cache is None, "tested once, decoded once"


@pytest.mark.parametrize(("side", "used"), [(round(16 * 256 / 224), True), (24, False)])
def test_evaluation_is_the_same_at_any_side(root: Path, place: Path, side: int, used: bool) -> None:
    plain, cached = data(root), data(root, place, cache_side=side)
    assert (cached.splits["val"].cache is not None) == used
    assert same(plain.val_dataloader(), cached.val_dataloader())
    assert cached.splits["train"].cache is not None
    assert cached.splits["val"].with_views(lambda image, size: [image]).cache is None


def test_evaluation_of_a_line_is_the_same(root: Path, place: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 900, 3), dtype=np.uint8)).save(root / "ant/04.jpg")
    kept = dict(zip(names(root), keep(root, place, 18), strict=True))["ant/04.jpg"]
    assert kept.shape == (3, 18, 288)
    assert torch.equal(ResizeCenterCrop()(kept, 16), ResizeCenterCrop()(read_image(root / "ant/04.jpg"), 16))


def test_views_of_shrunk_photos_have_the_statistics_of_whole_ones(root: Path, place: Path) -> None:
    settings = {"crop": RandomResizedCrop(0.3), "val_split": 0, "test_split": 0, "batch_size": 20}
    # So many pixels that no crop has to be enlarged.
    sides = [data(root, **settings), data(root, place, cache_side=34, **settings)]
    views = []
    for side in sides:
        loader = side.train_dataloader()
        views.append([])
        for epoch in range(20):
            loader.sampler.set_epoch(epoch)
            views[-1] += [batch.images.double() for batch in loader]
    whole, resize_shorter_side = map(torch.cat, views)
    assert not torch.equal(whole, resize_shorter_side)
    # The same boxes to within a pixel of the smaller photo: paired, so that the crops' own spread does not count.
    difference = (whole - resize_shorter_side).mean((1, 2, 3))
    assert difference.mean().abs() < 4 * difference.std() / len(difference) ** 0.5 + 0.5
    assert resize_shorter_side.std() == pytest.approx(float(whole.std()), rel=0.05)


def test_a_run_learns_the_same_with_it(root: Path, place: Path, tmp_path: Path) -> None:
    net = ["--model.backbone", "cifar_resnet", "--model.backbone.depth", "8", "--trainer.max_epochs", "2"]
    folder = ["--data", "ImageFolder", "--data.root", root, "--data.image_size", "16", "--data.num_workers", "0"]
    small = ["--data.batch_size", "4", "--trainer.accelerator", "cpu", "--trainer.devices", "1"]
    for name, extra in {"plain": [], "cached": ["--data.cache", "decoded", "--data.cache_dir", place]}.items():
        where = ["--name", name, "--trainer.default_root_dir", tmp_path / "runs"]
        assert main([str(word) for word in ("fit", *net, *folder, *small, *where, *extra)]) in (0, None)
    weights = [
        torch.load(tmp_path / "runs" / name / "version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for name in ("plain", "cached")
    ]
    assert list(place.glob("*/*.npy"))
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


def test_a_test_makes_no_cache(root: Path, place: Path) -> None:
    data(root, place, stage="test")
    assert not place.exists()
