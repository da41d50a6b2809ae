"""Which epoch best.ckpt and last.ckpt hold, after whatever happens."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from resnet_pl.callbacks import BestCheckpoint, LastCheckpoint
from resnet_pl.optim import Schedule
from tests.tiny import Tiny, classifier, optimizer, trainer


class Scores(Callback):
    """Says what validation finds, epoch by epoch."""

    def __init__(self, scores: list[float]) -> None:
        self.scores = scores

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        pl_module.log("val/score", self.scores[trainer.current_epoch])


def fit(folder: Path, scores: list[float], ckpt_path: Path | None = None, net: Any = None, **kwargs: Any) -> Any:
    callbacks = [Scores(scores), BestCheckpoint(folder, "val/score"), LastCheckpoint(folder)]
    callbacks += kwargs.pop("callbacks", [])
    settings = {"max_epochs": len(scores), "limit_train_batches": 2, "enable_checkpointing": True}
    run = trainer(callbacks=callbacks, **settings | kwargs)
    run.fit(net or classifier(), datamodule=Tiny(), ckpt_path=ckpt_path, weights_only=True)
    return run


def epoch(path: Path) -> int:
    return torch.load(path, weights_only=True)["epoch"]


@pytest.mark.parametrize(
    ("scores", "best"), [([0.5, 0.9, 0.2], 1), ([0.9, 0.5, 0.5], 0), ([0.1, 0.2, 0.3], 2), ([0.4, 0.7, 0.7], 2)]
)
def test_best_is_the_later_of_the_best_epochs_and_last_the_last(tmp_path, scores, best):
    run = fit(tmp_path, scores)
    assert (epoch(tmp_path / "best.ckpt"), epoch(tmp_path / "last.ckpt")) == (best, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.ckpt", "last.ckpt"]
    assert run.checkpoint_callbacks[0].score == pytest.approx(max(scores))


def test_the_best_can_be_the_smallest(tmp_path):
    scores = Scores([0.5, 0.2, 0.9])
    best = BestCheckpoint(tmp_path, monitor="val/score", mode="min")
    trainer(callbacks=[scores, best], max_epochs=3, limit_train_batches=1, enable_checkpointing=True).fit(
        classifier(), datamodule=Tiny()
    )
    assert epoch(tmp_path / "best.ckpt") == 1


@pytest.mark.parametrize(
    ("settings", "epochs"), [({}, [1, 3, 4]), ({"max_steps": 5, "max_epochs": -1}, [1, 2]), ({"max_epochs": 4}, [1, 3])]
)
def test_last_is_written_every_so_many_epochs_and_at_the_end(settings, epochs, tmp_path):
    class Noted(LastCheckpoint):
        def save(self, trainer: Any) -> None:
            super().save(trainer)
            assert epoch(self.path) == trainer.current_epoch
            written.append(trainer.current_epoch)

    written: list[int] = []
    # Steps at the end of an epoch and in its middle.
    run = trainer(**{"max_epochs": 5, "limit_train_batches": 2, "enable_checkpointing": True} | settings)
    run.callbacks.append(Noted(tmp_path, every_n_epochs=2))
    run.fit(classifier(), datamodule=Tiny())
    assert written == epochs


def test_last_is_the_last_epoch_also_where_not_every_epoch_is_validated(tmp_path):
    fit(tmp_path, [0.1, 0.2, 0.3], check_val_every_n_epoch=2)
    assert (epoch(tmp_path / "best.ckpt"), epoch(tmp_path / "last.ckpt")) == (1, 2)


def test_a_run_that_ends_in_the_middle_of_an_epoch_is_validated_there_and_goes_on_as_if_it_had_not(tmp_path):
    scores = [0.1, 0.2, 0.3]
    fit(tmp_path, scores, limit_train_batches=4, max_steps=6, max_epochs=-1)
    at = {name: torch.load(tmp_path / f"{name}.ckpt", weights_only=True)["global_step"] for name in ("best", "last")}
    assert at == {"best": 6, "last": 6}
    nets = [classifier(schedule=Schedule(shape="constant")) for _ in range(2)]
    for net, ends, folder in [(nets[0], (6, 10), tmp_path / "two"), (nets[1], (10,), tmp_path / "one")]:
        for end in ends:
            begun = folder / "last.ckpt" if end > ends[0] else None
            fit(folder, scores, begun, net, limit_train_batches=4, max_steps=end, max_epochs=-1)
    on, whole = (net.state_dict() for net in nets)
    assert on.keys() == whole.keys() and all(torch.equal(on[key], whole[key]) for key in on)


def test_last_is_the_last_epoch_also_where_it_is_validated_in_the_middle(tmp_path):
    fit(tmp_path, [0.1, 0.2], limit_train_batches=4, val_check_interval=3)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 8


def test_nothing_held_out_means_no_best(tmp_path):
    run = trainer(
        callbacks=[BestCheckpoint(tmp_path), LastCheckpoint(tmp_path)], limit_train_batches=1, enable_checkpointing=True
    )
    run.fit(classifier(), datamodule=Tiny(val_split=0))
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_resumed_run_remembers_the_best_score(tmp_path):
    fit(tmp_path, [0.9, 0.2])
    fit(tmp_path, [0, 0, 0.5], tmp_path / "last.ckpt")
    assert (epoch(tmp_path / "best.ckpt"), epoch(tmp_path / "last.ckpt")) == (0, 2)
    fit(tmp_path, [0, 0, 0, 0.95], tmp_path / "last.ckpt")
    assert epoch(tmp_path / "best.ckpt") == 3


def test_also_where_its_folder_was_renamed(tmp_path):
    fit(tmp_path / "old", [0.9, 0.2])
    (tmp_path / "old").rename(tmp_path / "new")
    fit(tmp_path / "new", [0, 0, 0.5], tmp_path / "new" / "last.ckpt")
    assert (epoch(tmp_path / "new" / "best.ckpt"), epoch(tmp_path / "new" / "last.ckpt")) == (0, 2)
    assert not (tmp_path / "old").exists()


def test_a_best_of_a_later_epoch_than_the_one_resumed_from(tmp_path):
    # As after a crash between the two files.
    fit(tmp_path, [0.5], check_val_every_n_epoch=2)
    (tmp_path / "best.ckpt").touch()
    fit(tmp_path, [0, 0.25], tmp_path / "last.ckpt")
    assert epoch(tmp_path / "best.ckpt") == 1


def test_a_run_elsewhere_that_starts_from_its_checkpoint_has_a_best_of_its_own(tmp_path):
    fit(tmp_path / "old", [0.9])
    fit(tmp_path / "new", [0, 0.5], tmp_path / "old" / "last.ckpt")
    assert epoch(tmp_path / "new" / "best.ckpt") == 1
    assert epoch(tmp_path / "old" / "best.ckpt") == 0


class Fault(Callback):
    """Fails at a batch."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            raise RuntimeError("fault")


def test_an_error_in_training_saves_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="fault"):
        fit(tmp_path, [0.5, 0.5], callbacks=[Fault(3)])
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 2
    assert epoch(tmp_path / "best.ckpt") == 0


def test_an_error_before_training_leaves_the_checkpoint_alone(tmp_path):
    fit(tmp_path, [0.5])
    before = (tmp_path / "last.ckpt").read_bytes()
    run = trainer(
        callbacks=[BestCheckpoint(tmp_path), LastCheckpoint(tmp_path)], max_epochs=2, enable_checkpointing=True
    )
    # Another optimiser cannot take up the state of this one; that shows when all but it is restored.
    module = classifier(optimizer=lambda p: torch.optim.SGD([*p, {"params": [torch.nn.Parameter(torch.zeros(1))]}]))
    with pytest.raises(ValueError, match="parameter group"):
        run.fit(module, datamodule=Tiny(), ckpt_path=tmp_path / "last.ckpt")
    assert (tmp_path / "last.ckpt").read_bytes() == before


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path):
    module = [classifier(optimizer=optimizer(momentum=0.9)) for _ in range(3)]
    kwargs = {"enable_checkpointing": True, "check_val_every_n_epoch": 2}
    trainer(max_epochs=3, **kwargs, callbacks=[LastCheckpoint(tmp_path / "a")]).fit(module[0], datamodule=Tiny())
    # The schedule's length is that of the whole run in both.
    stop = trainer(max_epochs=3, **kwargs, callbacks=[LastCheckpoint(tmp_path / "b"), Stop()])
    stop.fit(module[1], datamodule=Tiny())
    assert epoch(tmp_path / "b" / "last.ckpt") == 0
    go_on = trainer(max_epochs=3, **kwargs, callbacks=[LastCheckpoint(tmp_path / "b")])
    go_on.fit(module[2], datamodule=Tiny(), ckpt_path=tmp_path / "b" / "last.ckpt")
    assert go_on.global_step == 12
    whole, resumed = module[0].state_dict(), module[2].state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


class Stop(Callback):
    """Ends the run after an epoch."""

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        trainer.should_stop = True


def test_minutes_are_counted_from_the_last_file(tmp_path, monkeypatch):
    clock = iter(range(0, 100_000, 30))
    monkeypatch.setattr("resnet_pl.callbacks.checkpoints.time", SimpleNamespace(monotonic=lambda: next(clock)))
    saved = []
    run = trainer(
        callbacks=[LastCheckpoint(tmp_path, every_minutes=1.4)],
        enable_checkpointing=True,
        limit_val_batches=0,
    )
    monkeypatch.setattr(run, "save_checkpoint", lambda *args: saved.append(run.global_step))
    run.fit(classifier(), datamodule=Tiny(count=140))
    # Half a minute a look at the clock, after each batch: at the third since the last file 90 of 84 seconds are over.
    assert saved == [3, 6, 9, 10]


def test_accumulated_batches_are_not_torn(tmp_path, monkeypatch):
    saved = []
    run = trainer(
        callbacks=[LastCheckpoint(tmp_path, every_minutes=1e-9)],
        enable_checkpointing=True,
        accumulate_grad_batches=2,
        limit_val_batches=0,
    )
    progress = run.fit_loop.epoch_loop.batch_progress.current
    monkeypatch.setattr(run, "save_checkpoint", lambda *args: saved.append(progress.processed))
    run.fit(classifier(), datamodule=Tiny(count=110))
    assert saved == [2, 4, 6, 7]
