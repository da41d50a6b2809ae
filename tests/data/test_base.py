from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from resnet_pl.data import Digits, ImageDataModule, ImageFolder, MixUp, PadCrop, RandomFlip
from resnet_pl.data.loader import Batch
from resnet_pl.utils import UserError


def digits(**kwargs: object) -> Digits:
    data = Digits(**kwargs)
    data.setup("fit")
    return data


def process(rank: int, world: int) -> SimpleNamespace:
    """As much of a trainer as the loaders ask for."""
    device = SimpleNamespace(root_device=torch.device("cpu"))
    return SimpleNamespace(global_rank=rank, world_size=world, num_devices=world, strategy=device)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": [0.5]}, r"mean is \[0.5\], it needs three values"),
        ({"std": [0.5, 0.5]}, "std is"),
        ({"std": [0.5, 0.5, 0.0]}, "std is"),
        ({"image_size": 1}, "image_size is 1, it must be 8 or more"),
    ],
)
def test_values_that_cannot_be_are_named(options: dict, message: str) -> None:
    for kind in (Digits, ImageFolder):
        with pytest.raises(ValueError, match=message):
            kind(**options)


def test_batches_larger_than_the_data() -> None:
    data = digits(batch_size=10_000)
    assert [len(batch.images) for batch in data.train_dataloader()] == [1257]
    assert [len(batch.images) for batch in data.test_dataloader()] == [360]


def test_evaluation_has_its_own_batch_size() -> None:
    data = digits(batch_size=100, eval_batch_size=50)
    assert len(next(iter(data.train_dataloader())).images) == 100
    assert len(next(iter(data.val_dataloader())).images) == 50
    assert digits(batch_size=100).eval_batch_size == 100


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_share_every_split(world: int) -> None:
    data = digits(eval_batch_size=64)
    for part in ("val", "test"):
        seen = []
        for rank in range(world):
            data.trainer = process(rank, world)
            seen += [i for batch in getattr(data, f"{part}_dataloader")() for i in batch.indices.tolist()]
        assert sorted(seen) == list(range(len(data.splits[part])))


def test_fewer_images_than_processes() -> None:
    data = digits(val_split=10)
    data.trainer = process(0, 11)
    with pytest.raises(UserError, match="Digits: 10 images cannot be shared by 11 processes\n"):
        data.val_dataloader()


def test_a_split_that_is_not_there() -> None:
    data = digits(val_split=0)
    assert data.val_dataloader() == []
    with pytest.raises(UserError, match=r"Digits has no images for val\nhold some out with --data.val_split"):
        data.split("val")


def test_seed_of_the_run_decides_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    def first(seed: str) -> list[int]:
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        return next(iter(digits().train_dataloader())).indices.tolist()

    assert first("1") == first("1") != first("2")


def test_augmentation_is_a_function_of_seed_epoch_and_image() -> None:
    data = digits(batch_transforms=[RandomFlip(), PadCrop(2)])
    images = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8)

    def augmented(order: list[int], epoch: int = 0, number: int = 0) -> dict[int, torch.Tensor]:
        chosen = torch.tensor(order)
        batch = data.augment(Batch(images[chosen], chosen, chosen, epoch, number))
        assert batch.images.dtype == torch.float32
        return dict(zip(order, batch.images, strict=True))

    first, second = augmented([0, 1, 2, 3, 4, 5]), augmented([3, 5, 1], number=7)
    assert all(torch.equal(first[i], image) for i, image in second.items())
    later = augmented([0, 1, 2, 3, 4, 5], epoch=1)
    assert any(not torch.equal(first[i], later[i]) for i in first)


def test_images_that_are_named_need_no_data_set(photo_folder: Path) -> None:
    data = ImageFolder("not there", image_size=16, num_workers=0)
    data.use_provenance({"root": "gone", "classes": ["bee", "cat", "dog"], "splits": {"train": ["bee/1.jpg"]}})
    data.set_predict_files([photo_folder / name for name in ("cat/0001.jpg", "ant/0001.jpg", "bee/0002.jpg")])
    data.prepare_data()
    data.setup("predict")
    (batch,) = data.predict_dataloader()
    assert batch.labels.tolist() == [1, -1, 0]
    assert data.predict_images.load_full_image(0).shape[0] == 3


def test_predicts_the_test_split_otherwise() -> None:
    data = digits()
    assert data.predict_images is data.splits["test"]


def test_what_a_new_data_set_needs(photo_folder: Path) -> None:
    class Mine(ImageDataModule):
        def find_splits(self) -> dict[str, object]:
            self.classes = ["a", "b"]
            return {"train": digits().splits["train"]}

    data = Mine(image_size=16)
    data.setup("fit")
    assert data.class_names == ["a", "b"]
    assert data.describe_split("train") == "the train split, Mine"
    assert data.provenance()["root"] is None


class Watcher(LightningModule):
    """A net of one weight that keeps what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: dict[str, list[Batch]] = {"train": [], "val": []}

    def training_step(self, batch: Batch) -> torch.Tensor:
        self.seen["train"].append(batch)
        return self.weight * batch.images.mean()

    def validation_step(self, batch: Batch) -> None:
        self.seen["val"].append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.fixture
def trainer(tmp_path: Path) -> Callable[..., Trainer]:
    """Makes trainers that keep quiet."""

    def make(**kwargs: object) -> Trainer:
        quiet = {
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
        }
        place = {"default_root_dir": tmp_path, "accelerator": "cpu", "use_distributed_sampler": False}
        return Trainer(**quiet, **place, **{"enable_checkpointing": False, "max_epochs": 2, **kwargs})

    return make


@pytest.mark.filterwarnings("ignore")
def test_a_trainer_augments_training_alone_and_names_the_epochs(trainer: Callable[..., Trainer]) -> None:
    watcher, data = Watcher(), Digits(batch_size=400, batch_transforms=[MixUp()])
    trainer().fit(watcher, datamodule=data)
    train, val = watcher.seen["train"], watcher.seen["val"]
    assert [(batch.epoch, batch.batch_idx) for batch in train] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert {batch.labels.shape for batch in train} == {(400, 10)}
    assert {batch.images.dtype for batch in train} == {torch.float32}
    assert {batch.images.dtype for batch in val} == {torch.uint8}
    assert [batch.labels.ndim for batch in val] == [1, 1]
    assert not torch.equal(train[0].indices, train[3].indices)


class SaveAt(Callback):
    """Saves a checkpoint after so many steps, at the end of the epoch if that is where they end."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: Trainer, *args: object) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)

    def on_train_epoch_end(self, trainer: Trainer, *args: object) -> None:
        self.on_train_batch_end(trainer)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("step", [2, 3, 5])
def test_a_trainer_resumes_exactly(trainer: Callable[..., Trainer], tmp_path: Path, step: int) -> None:
    def run(path: Path | None = None) -> list[Batch]:
        watcher = Watcher()
        # An epoch ends at three of its six batches, and the next one must start with its own first batch.
        fit = trainer(limit_train_batches=3, callbacks=[SaveAt(step, tmp_path / "stopped.ckpt")])
        fit.fit(watcher, datamodule=Digits(batch_size=200), ckpt_path=path, weights_only=True)
        return watcher.seen["train"]

    whole = run()
    rest = run(tmp_path / "stopped.ckpt")
    assert (len(whole), len(rest)) == (6, 6 - step)
    for first, second in zip(whole[step:], rest, strict=True):
        assert torch.equal(first.images, second.images)
        assert torch.equal(first.indices, second.indices)
