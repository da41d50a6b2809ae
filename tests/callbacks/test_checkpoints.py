"""best.ckpt and last.ckpt: which epoch they hold, after complete, interrupted and resumed runs."""

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
    """Logs the given validation score of each epoch."""

    def __init__(self, scores: list[float]) -> None:
        self.scores = scores

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        pl_module.log("val/score", self.scores[trainer.current_epoch])


def fit(folder: Path, scores: list[float], ckpt_path: Path | None = None, module: Any = None, **kwargs: Any) -> Any:
    callbacks = [Scores(scores), BestCheckpoint(folder, "val/score"), LastCheckpoint(folder)]
    callbacks += kwargs.pop("callbacks", [])
    settings = {"max_epochs": len(scores), "limit_train_batches": 2, "enable_checkpointing": True}
    run = trainer(callbacks=callbacks, **settings | kwargs)
    run.fit(module or classifier(), datamodule=Tiny(), ckpt_path=ckpt_path, weights_only=True)
    return run


def epoch(path: Path) -> int:
    return torch.load(path, weights_only=True)["epoch"]


@pytest.mark.parametrize(
    ("scores", "best"), [([0.5, 0.9, 0.2], 1), ([0.9, 0.5, 0.5], 0), ([0.1, 0.2, 0.3], 2), ([0.4, 0.7, 0.7], 2)]
)
def test_best_is_the_later_of_the_best_epochs_and_last_is_the_last(tmp_path, scores, best):
    run = fit(tmp_path, scores)
    assert (epoch(tmp_path / "best.ckpt"), epoch(tmp_path / "last.ckpt")) == (best, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.ckpt", "last.ckpt"]
    assert run.checkpoint_callbacks[0].score == pytest.approx(max(scores))


def test_mode_min(tmp_path):
    scores = Scores([0.5, 0.2, 0.9])
    best = BestCheckpoint(tmp_path, monitor="val/score", mode="min")
    trainer(callbacks=[scores, best], max_epochs=3, limit_train_batches=1, enable_checkpointing=True).fit(
        classifier(), datamodule=Tiny()
    )
    assert epoch(tmp_path / "best.ckpt") == 1


@pytest.mark.parametrize(
    ("settings", "epochs"), [({}, [1, 3, 4]), ({"max_steps": 5, "max_epochs": -1}, [1, 2]), ({"max_epochs": 4}, [1, 3])]
)
def test_last_is_saved_every_n_epochs_and_at_the_end(settings, epochs, tmp_path):
    class Recorded(LastCheckpoint):
        def save(self, trainer: Any) -> None:
            super().save(trainer)
            assert epoch(self.path) == trainer.current_epoch
            saved.append(trainer.current_epoch)

    saved: list[int] = []
    run = trainer(**{"max_epochs": 5, "limit_train_batches": 2, "enable_checkpointing": True} | settings)
    run.callbacks.append(Recorded(tmp_path, every_n_epochs=2))
    run.fit(classifier(), datamodule=Tiny())
    assert saved == epochs


def test_last_is_the_last_epoch_if_not_every_epoch_is_validated(tmp_path):
    fit(tmp_path, [0.1, 0.2, 0.3], check_val_every_n_epoch=2)
    assert (epoch(tmp_path / "best.ckpt"), epoch(tmp_path / "last.ckpt")) == (1, 2)


def test_a_run_that_ends_within_an_epoch_is_validated_there_and_resumes_exactly(tmp_path):
    scores = [0.1, 0.2, 0.3]
    fit(tmp_path, scores, limit_train_batches=4, max_steps=6, max_epochs=-1)
    at = {name: torch.load(tmp_path / f"{name}.ckpt", weights_only=True)["global_step"] for name in ("best", "last")}
    assert at == {"best": 6, "last": 6}
    modules = [classifier(schedule=Schedule(shape="constant")) for _ in range(2)]
    for module, ends, folder in [(modules[0], (6, 10), tmp_path / "two"), (modules[1], (10,), tmp_path / "one")]:
        for end in ends:
            ckpt_path = folder / "last.ckpt" if end > ends[0] else None
            fit(folder, scores, ckpt_path, module, limit_train_batches=4, max_steps=end, max_epochs=-1)
    resumed, complete = (module.state_dict() for module in modules)
    assert resumed.keys() == complete.keys() and all(torch.equal(resumed[key], complete[key]) for key in resumed)


def test_last_is_the_last_epoch_if_validations_are_within_epochs(tmp_path):
    fit(tmp_path, [0.1, 0.2], limit_train_batches=4, val_check_interval=3)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 8


def test_without_validation_there_is_no_best(tmp_path):
    run = trainer(
        callbacks=[BestCheckpoint(tmp_path), LastCheckpoint(tmp_path)], limit_train_batches=1, enable_checkpointing=True
    )
    run.fit(classifier(), datamodule=Tiny(val_split=0))
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_resumed_run_restores_the_best_score(tmp_path):
    fit(tmp_path, [0.9, 0.2])
    fit(tmp_path, [0, 0, 0.5], tmp_path / "last.ckpt")
    assert (epoch(tmp_path / "best.ckpt"), epoch(tmp_path / "last.ckpt")) == (0, 2)
    fit(tmp_path, [0, 0, 0, 0.95], tmp_path / "last.ckpt")
    assert epoch(tmp_path / "best.ckpt") == 3


def test_a_resumed_run_keeps_the_best_of_a_validation_that_ended_the_run_within_an_epoch(tmp_path):
    settings: dict[str, Any] = {"limit_train_batches": 4, "max_epochs": -1}
    fit(tmp_path, [0.1, 0.9], max_steps=6, **settings)
    fit(tmp_path, [0, 0.5], tmp_path / "last.ckpt", max_steps=8, **settings)
    at = {name: torch.load(tmp_path / f"{name}.ckpt", weights_only=True)["global_step"] for name in ("best", "last")}
    assert at == {"best": 6, "last": 8}


def test_a_resumed_run_in_a_renamed_folder_restores_the_best_score(tmp_path):
    fit(tmp_path / "old", [0.9, 0.2])
    (tmp_path / "old").rename(tmp_path / "new")
    fit(tmp_path / "new", [0, 0, 0.5], tmp_path / "new" / "last.ckpt")
    assert (epoch(tmp_path / "new" / "best.ckpt"), epoch(tmp_path / "new" / "last.ckpt")) == (0, 2)
    assert not (tmp_path / "old").exists()


def test_a_best_that_is_newer_than_the_last(tmp_path):
    # As after a crash between saving the two files.
    fit(tmp_path, [0.5], check_val_every_n_epoch=2)
    (tmp_path / "best.ckpt").touch()
    fit(tmp_path, [0, 0.25], tmp_path / "last.ckpt")
    assert epoch(tmp_path / "best.ckpt") == 1


def test_a_run_resumed_in_another_folder_has_its_own_best(tmp_path):
    fit(tmp_path / "old", [0.9])
    fit(tmp_path / "new", [0, 0.5], tmp_path / "old" / "last.ckpt")
    assert epoch(tmp_path / "new" / "best.ckpt") == 1
    assert epoch(tmp_path / "old" / "best.ckpt") == 0


class Fault(Callback):
    """Raises an error before a step."""

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


def test_an_error_before_training_does_not_change_the_checkpoint(tmp_path):
    fit(tmp_path, [0.5])
    before = (tmp_path / "last.ckpt").read_bytes()
    run = trainer(
        callbacks=[BestCheckpoint(tmp_path), LastCheckpoint(tmp_path)], max_epochs=2, enable_checkpointing=True
    )
    # An optimizer with other parameter groups cannot load the state: Lightning restores it last.
    extra = {"params": [torch.nn.Parameter(torch.zeros(1))]}
    module = classifier(optimizer=lambda p: torch.optim.SGD([{"params": p}, extra]))
    with pytest.raises(ValueError, match="parameter group"):
        run.fit(module, datamodule=Tiny(), ckpt_path=tmp_path / "last.ckpt")
    assert (tmp_path / "last.ckpt").read_bytes() == before


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path):
    module = [classifier(optimizer=optimizer(momentum=0.9)) for _ in range(3)]
    kwargs = {"enable_checkpointing": True, "check_val_every_n_epoch": 2}
    trainer(max_epochs=3, **kwargs, callbacks=[LastCheckpoint(tmp_path / "a")]).fit(module[0], datamodule=Tiny())
    # `max_epochs` is the same for both, because the schedule depends on it.
    stop = trainer(max_epochs=3, **kwargs, callbacks=[LastCheckpoint(tmp_path / "b"), Stop()])
    stop.fit(module[1], datamodule=Tiny())
    assert epoch(tmp_path / "b" / "last.ckpt") == 0
    resume = trainer(max_epochs=3, **kwargs, callbacks=[LastCheckpoint(tmp_path / "b")])
    resume.fit(module[2], datamodule=Tiny(), ckpt_path=tmp_path / "b" / "last.ckpt")
    assert resume.global_step == 12
    complete, resumed = module[0].state_dict(), module[2].state_dict()
    assert all(torch.equal(complete[name], resumed[name]) for name in complete)


class Stop(Callback):
    """Ends the run after an epoch."""

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        trainer.should_stop = True


def test_minutes_are_counted_from_the_last_checkpoint(tmp_path, monkeypatch):
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
    # Each batch takes 30 seconds; at the third batch after a checkpoint more than 84 seconds have passed.
    assert saved == [3, 6, 9, 10]


def test_nothing_is_saved_while_gradients_are_accumulated(tmp_path, monkeypatch):
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


def test_the_first_process_decides_about_the_score(tmp_path):
    best = BestCheckpoint(tmp_path, "val/acc")
    run = SimpleNamespace(
        state=SimpleNamespace(fn="fit"), sanity_checking=False, callback_metrics={"val/acc": torch.tensor(0.3)},
        strategy=SimpleNamespace(broadcast=lambda score: 0.9), save_checkpoint=lambda path: Path(path).touch(),
    )  # fmt: skip
    assert best.best_model_path == ""
    best.on_validation_end(run, None)
    assert best.score == 0.9 and best.best_model_path == str(tmp_path / "best.ckpt")


def test_lightning_finds_the_best_checkpoint(tmp_path):
    module, data = classifier(), Tiny()
    run = trainer(callbacks=[BestCheckpoint(tmp_path), LastCheckpoint(tmp_path)], enable_checkpointing=True)
    run.fit(module, datamodule=data)
    run.test(datamodule=data, ckpt_path="best", weights_only=True)
    assert module.results["images"] == 20
