"""The base class of data modules, without and with a Trainer."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from resnet_pl.data import BatchTransform, Digits, ImageDataModule, ImageFolder, MixUp, PadCrop, PCAColor, RandomFlip
from resnet_pl.data.batch import Batch
from resnet_pl.utils import UserError


def digits(**kwargs: object) -> Digits:
    data = Digits(**kwargs)
    data.setup("fit")
    return data


def fake_trainer(rank: int, world: int) -> SimpleNamespace:
    """Stands in for a Trainer: the attributes that the loaders read."""
    device, state = SimpleNamespace(root_device=torch.device("cpu")), SimpleNamespace(fn="fit")
    return SimpleNamespace(global_rank=rank, world_size=world, num_devices=world, strategy=device, state=state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": [0.5]}, r"mean.*\[0\.5\]"),
        ({"std": [0.5, 0.5]}, r"std.*\[0\.5, 0\.5\]"),
        ({"std": [0.5, 0.5, 0.0]}, r"std.*\[0\.5, 0\.5, 0\.0\]"),
        ({"image_size": 1}, "image_size is 1"),
    ],
)
def test_invalid_values_are_named(options: dict, message: str) -> None:
    for kind in (Digits, ImageFolder):
        with pytest.raises((ValueError, UserError), match=message):
            kind(**options)


def test_batch_size_above_the_number_of_images() -> None:
    data = digits(batch_size=10_000)
    assert [len(batch.images) for batch in data.train_dataloader()] == [1257]
    assert [len(batch.images) for batch in data.test_dataloader()] == [360]


def test_evaluation_batch_size() -> None:
    data = digits(batch_size=100, eval_batch_size=50)
    assert len(next(iter(data.train_dataloader())).images) == 100
    assert len(next(iter(data.val_dataloader())).images) == 50
    assert digits(batch_size=100).eval_batch_size == 100


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_evaluate_each_image_once(world: int) -> None:
    data = digits(eval_batch_size=64)
    for split in ("val", "test"):
        seen = []
        for rank in range(world):
            data.trainer = fake_trainer(rank, world)
            seen += [i for batch in getattr(data, f"{split}_dataloader")() for i in batch.indices.tolist()]
        assert sorted(seen) == list(range(len(data.splits[split])))


def test_fewer_images_than_processes() -> None:
    data = digits(val_split=10)
    data.trainer = fake_trainer(0, 11)
    with pytest.raises(UserError, match=r"10 images .* 11 processes\n.*--trainer\.devices"):
        data.val_dataloader()


def test_missing_split() -> None:
    data = digits(val_split=0)
    assert data.val_dataloader() == []
    with pytest.raises(UserError, match=r"Digits .*no val split\n.*--data\.val_split"):
        data.split("val")


def test_training_order_depends_on_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    def first(seed: str) -> list[int]:
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        return next(iter(digits().train_dataloader())).indices.tolist()

    assert first("1") == first("1") != first("2")


class SquareRoot(BatchTransform):
    """NaN where an earlier transform made a pixel negative."""

    def __call__(self, images: torch.Tensor, labels: torch.Tensor, rng: object) -> tuple[torch.Tensor, torch.Tensor]:
        return images.sqrt(), labels


def test_a_transform_that_makes_nan_is_named() -> None:
    images, numbers = torch.zeros(8, 3, 16, 16, dtype=torch.uint8), torch.arange(8)
    batch = Batch(images, numbers, numbers, 0, 0)
    digits(batch_transforms=[SquareRoot()]).augment(batch)
    with pytest.raises(UserError, match="SquareRoot makes NaN"):
        digits(batch_transforms=[PCAColor(), SquareRoot()]).augment(batch)


def test_augmentation_is_a_function_of_seed_epoch_and_image() -> None:
    data = digits(batch_transforms=[RandomFlip(), PadCrop(2)])
    images = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8)

    def augment(order: list[int], epoch: int = 0, batch_idx: int = 0) -> dict[int, torch.Tensor]:
        chosen = torch.tensor(order)
        batch = data.augment(Batch(images[chosen], chosen, chosen, epoch, batch_idx))
        assert batch.images.dtype == torch.float32
        return dict(zip(order, batch.images, strict=True))

    first, second = augment([0, 1, 2, 3, 4, 5]), augment([3, 5, 1], batch_idx=7)
    assert all(torch.equal(first[i], image) for i, image in second.items())
    later = augment([0, 1, 2, 3, 4, 5], epoch=1)
    assert any(not torch.equal(first[i], later[i]) for i in first)


def test_predict_files_need_no_data_set(photo_folder: Path) -> None:
    data = ImageFolder("not there", image_size=16, num_workers=0)
    data.use_provenance({"root": "gone", "classes": ["bee", "cat", "dog"], "splits": {"train": ["bee/1.jpg"]}})
    data.set_predict_files([photo_folder / name for name in ("cat/0001.jpg", "ant/0001.jpg", "bee/0002.jpg")])
    data.prepare_data()
    data.setup("predict")
    (batch,) = data.predict_dataloader()
    assert batch.labels.tolist() == [1, -1, 0]
    assert data.predict_images.load_full_image(0).shape[0] == 3


def test_predict_reads_the_test_split_by_default() -> None:
    data = digits()
    assert data.predict_images is data.splits["test"]


def test_a_subclass_only_needs_find_splits(photo_folder: Path) -> None:
    class Mine(ImageDataModule):
        def find_splits(self) -> dict[str, object]:
            self.classes = ["a", "b"]
            return {"train": digits().splits["train"]}

    data = Mine(image_size=16)
    data.setup("fit")
    assert data.class_names == ["a", "b"]
    assert "train" in data.describe_split("train") and "Mine" in data.describe_split("train")
    assert data.provenance()["root"] is None
    # Its split may be any class, which transforms of single images need a method of.
    mine = Mine(image_size=16, transforms=[torch.nn.Identity()])
    mine.splits = {"train": range(9)}
    with pytest.raises(UserError, match="range has no method with_transforms"):
        mine.train_dataloader()


class RecordingModule(LightningModule):
    """A model with one weight that records its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.batches: dict[str, list[Batch]] = {"train": [], "val": []}

    def training_step(self, batch: Batch) -> torch.Tensor:
        self.batches["train"].append(batch)
        return self.weight * batch.images.mean()

    def validation_step(self, batch: Batch) -> None:
        self.batches["val"].append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.fixture
def trainer(tmp_path: Path) -> Callable[..., Trainer]:
    """Returns a function that makes trainers without output."""

    def make(**kwargs: object) -> Trainer:
        quiet = {
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
        }
        settings = {"default_root_dir": tmp_path, "accelerator": "cpu", "use_distributed_sampler": False}
        return Trainer(**quiet, **settings, **{"enable_checkpointing": False, "max_epochs": 2, **kwargs})

    return make


@pytest.mark.filterwarnings("ignore")
def test_a_trainer_augments_training_batches_only(trainer: Callable[..., Trainer]) -> None:
    model, data = RecordingModule(), Digits(batch_size=400, batch_transforms=[MixUp()])
    trainer().fit(model, datamodule=data)
    train, val = model.batches["train"], model.batches["val"]
    assert [(batch.epoch, batch.batch_idx) for batch in train] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert {batch.labels.shape for batch in train} == {(400, 10)}
    assert {batch.images.dtype for batch in train} == {torch.float32}
    assert {batch.images.dtype for batch in val} == {torch.uint8}
    assert [batch.labels.ndim for batch in val] == [1, 1]
    assert not torch.equal(train[0].indices, train[3].indices)


class SaveAt(Callback):
    """Saves a checkpoint after a number of steps; after the epoch's end if they end there."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: Trainer, *args: object) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)

    def on_train_epoch_end(self, trainer: Trainer, *args: object) -> None:
        self.on_train_batch_end(trainer)


@pytest.mark.parametrize("restored_first", [True, False])
def test_the_position_is_restored_before_or_after_the_loader_is_made(restored_first: bool) -> None:
    data = digits(batch_size=200)
    loader = None if restored_first else data.train_dataloader()  # as with strategies that shard the model
    data.load_state_dict({"epoch": 0, "done": 2})
    batches = list(loader or data.train_dataloader())
    assert [batch.batch_idx for batch in batches] == [2, 3, 4, 5]


def test_another_number_of_images_per_step_is_noted(capsys: pytest.CaptureFixture[str]) -> None:
    states = []
    for world, size in [(1, 200), (2, 100), (2, 200)]:
        data = digits(batch_size=size)
        data.trainer = fake_trainer(0, world)
        data.train_dataloader()
        states.append(data.state_dict())
        data.load_state_dict(states[0])
        note = "note: the run had 200 images per step, now it has 400" in capsys.readouterr().out
        assert note == (world * size == 400)
    data.load_state_dict({"epoch": 0, "done": 2})  # of an earlier version
    data.trainer = fake_trainer(0, 2)
    data.trainer.state.fn = "test"
    data.load_state_dict(states[0])
    assert not capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("step", [2, 3, 5])
def test_a_trainer_resumes_exactly(trainer: Callable[..., Trainer], tmp_path: Path, step: int) -> None:
    def run(path: Path | None = None) -> list[Batch]:
        model = RecordingModule()
        # Training uses three of the six batches of an epoch; the next epoch must start with its own first batch.
        fit = trainer(limit_train_batches=3, callbacks=[SaveAt(step, tmp_path / "stopped.ckpt")])
        fit.fit(model, datamodule=Digits(batch_size=200), ckpt_path=path, weights_only=True)
        return model.batches["train"]

    uninterrupted = run()
    resumed = run(tmp_path / "stopped.ckpt")
    assert (len(uninterrupted), len(resumed)) == (6, 6 - step)
    for first, second in zip(uninterrupted[step:], resumed, strict=True):
        assert torch.equal(first.images, second.images)
        assert torch.equal(first.indices, second.indices)
