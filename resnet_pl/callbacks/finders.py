"""Applies and stores what Lightning's BatchSizeFinder and LearningRateFinder have found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder

from resnet_pl.callbacks.access import get_callbacks, get_datamodule
from resnet_pl.callbacks.save_config import SaveConfig
from resnet_pl.run_dir import class_name
from resnet_pl.utils import UserError

MODEL = "model.init_args."
# Keys of the configuration that hold what a finder has found; of those of the learning rate, each model has one.
BATCH_SIZES = ("data.init_args.batch_size", "data.init_args.eval_batch_size")
LEARNING_RATES = (f"{MODEL}optimizer.init_args.lr", f"{MODEL}lr", f"{MODEL}learning_rate")
BASE_BATCH_SIZE = f"{MODEL}base_batch_size"
KEYS = {"BatchSizeFinder": BATCH_SIZES, "LearningRateFinder": (*LEARNING_RATES, BASE_BATCH_SIZE)}


class FinderResults(Callback):
    """Applies and stores what Lightning's finders have found before the first step.

    The optimizer and its schedule are created again: the length of an epoch or the learning rate has changed. In the
    configuration, in config.yaml and in checkpoints, the values replace the finders: a resumed run uses them.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Runs after the finders, which come earlier in the list of callbacks."""
        callbacks = get_callbacks(trainer)
        if not (_has(callbacks, BatchSizeFinder) or _has(callbacks, LearningRateFinder)):
            return
        values: dict[str, Any] = {}
        if _has(callbacks, BatchSizeFinder):
            data: Any = get_datamodule(trainer)
            size = data.batch_size if hasattr(data, "batch_size") else pl_module.hparams["batch_size"]
            # An evaluation batch size of null would now stand for the found one. PositiveInt is not a plain type.
            sizes = int(size), int(getattr(data, "eval_batch_size", None) or size)
            values |= dict(zip(BATCH_SIZES, sizes, strict=True))
        places = (vars(pl_module), pl_module.hparams)
        found = (place.get(name) for name in ("lr", "learning_rate") for place in places)
        lr = next((value for value in found if value is not None), None)
        if _has(callbacks, LearningRateFinder) and lr is not None:
            # The rate is that of this batch size: it is not scaled.
            values |= dict.fromkeys(LEARNING_RATES, lr) | {BASE_BATCH_SIZE: None}
        _store(values, callbacks, pl_module)
        trainer.strategy.setup_optimizers(trainer)
        trainer.ckpt_path = None  # the finders leave the path of a file that they have deleted


def _has(callbacks: list[Callback], kind: type[Callback]) -> bool:
    return any(isinstance(callback, kind) for callback in callbacks)


def _store(values: dict[str, Any], callbacks: list[Callback], pl_module: LightningModule) -> None:
    """Stores values by their key in the configuration and in the hyperparameters, where these have the key."""
    for key, value in values.items():
        if key.startswith(MODEL):
            _replace(pl_module.hparams, key.removeprefix(MODEL), value)
    for callback in callbacks:
        if not isinstance(callback, SaveConfig):
            continue
        config = callback.config
        replaced = {key for key, value in values.items() if _replace(config, key, value)}
        if LEARNING_RATES[0] in values and not replaced.intersection(LEARNING_RATES):
            raise UserError(
                "trainer.callbacks: LearningRateFinder needs an optimizer with an argument `lr`\n"
                "write a class with this argument in place of the function"
            )
        config["trainer"]["callbacks"], _ = without_finders(config["trainer"]["callbacks"])


def keep_found(config: Namespace, stored: Mapping[str, Any]) -> None:
    """Makes a resumed run whose command has finders use what they have found, instead of searching again.

    Args:
        config: the parsed configuration of the resumed run; changed in place.
        stored: configuration of the checkpoint.
    """
    config["trainer"]["callbacks"], finders = without_finders(config["trainer"]["callbacks"])
    for key in (key for finder in finders for key in KEYS[finder]):
        section: Any = stored
        for name in key.split("."):
            section = section.get(name, Ellipsis) if isinstance(section, Mapping) else Ellipsis
        if section is not Ellipsis:
            _replace(config, key, section)


def without_finders(callbacks: Any) -> tuple[Any, list[str]]:
    """Returns the callbacks of a configuration without the finders, and the class names of the finders."""
    entries = callbacks if isinstance(callbacks, list) else [callbacks]
    names = [class_name(entry.get("class_path")) if entry else "" for entry in entries]
    finders = [name for name in names if name in KEYS]
    if not finders:
        return callbacks, []
    return [entry for entry, name in zip(entries, names, strict=True) if name not in KEYS], finders


def _replace(config: Any, key: str, value: Any) -> bool:
    """Replaces the value of a dotted key, and returns whether there is such a key."""
    *parents, name = key.split(".")
    for parent in parents:
        config = config.get(parent) if isinstance(config, Mapping | Namespace) else None
    if not isinstance(config, Mapping | Namespace) or name not in config:
        return False
    config[name] = value  # pyright: ignore[reportIndexIssue] - a dict or a Namespace
    return True
