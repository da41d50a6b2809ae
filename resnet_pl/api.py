"""Training and testing from Python: the same runs as those of the command line.

```python
from resnet_pl import Digits, ImageClassifier, cifar_resnet, fit, load_run, test

run = fit(model=ImageClassifier(cifar_resnet(20, num_classes=10)), data=Digits(), epochs=5, name="digits")
results = test(run.folder)
model, data = load_run(run.folder)
```
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Nothing here imports torch before a function is called: `from resnet_pl import fit` takes no time.
if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer


@dataclass
class Run:
    """A finished training.

    Attributes:
        folder: the run folder; `test` and `load_run` take it.
        metrics: last value of everything that was logged, such as `val/top1`.
        best: best value of the metric that best.ckpt is saved by; None without validation.
        trainer: the Trainer.
        model: the model with the weights of the last step; `load_run` returns the best ones.
        data: the data module.
    """

    folder: Path
    metrics: dict[str, float]
    best: float | None
    trainer: Trainer = field(repr=False)
    model: Any = field(repr=False)
    data: Any = field(repr=False)


def fit(
    args: Sequence[str] = (),
    *,
    model: LightningModule | None = None,
    data: Any = None,
    epochs: int | None = None,
    name: str | None = None,
    callbacks: Sequence[Callback] = (),
    ckpt_path: str | Path | None = None,
) -> Run:
    """Trains a model, as the command `fit` does.

    Args:
        args: arguments of the command, such as `["--config", "configs/digits.yaml", "--trainer.precision", "bf16"]`.
        model: a module, instead of the section `model` of the configuration.
        data: a data module, a `DataLoader`, or loaders for training, validation and testing, instead of the section
            `data`. The loaders yield `(images, labels)`.
        epochs: the same as `--trainer.max_epochs`.
        name: the same as `--name`.
        callbacks: further callbacks.
        ckpt_path: checkpoint to resume from, the same as `--ckpt_path`; `last` for the newest run.

    Raises:
        UserError: the user can fix the error.
        KeyboardInterrupt: the training was interrupted; `fit(…, ckpt_path="last")` resumes it.
        Exception: any exception of a callback, the model or the data, unchanged.
    """
    from resnet_pl.cli.objects import fit_objects

    named = {"--trainer.max_epochs": epochs, "--name": name, "--ckpt_path": ckpt_path}
    words = [word for key, value in named.items() if value is not None for word in (key, str(value))]
    return Run(**fit_objects([*args, *words], model, data, callbacks))


def test(
    checkpoint: str | Path | Sequence[str] = "best",
    args: Sequence[str] = (),
    *,
    model: LightningModule | None = None,
    data: Any = None,
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any]:
    """Evaluates a checkpoint on the test set, as the command `test` does.

    Args:
        checkpoint: a file, a run folder, `best` or `last`; or a list of all arguments of the command.
        args: further arguments of the command, such as `["--tta", "flip"]`.
        model: a module that receives the weights, for a checkpoint whose model was built in Python.
        data: other data, see `fit`.
        callbacks: callbacks of the test; those of the training do not run.

    Returns:
        The results of this test as in results.json: `top1`, `top5`, `loss`, `per_class` and others.

    Raises:
        UserError: the user can fix the error.
    """
    from resnet_pl.cli.objects import test_objects

    first = ["--ckpt_path", str(checkpoint)] if isinstance(checkpoint, str | Path) else checkpoint
    return test_objects([*first, *args], model, data, callbacks)


test.__test__ = False  # pyright: ignore[reportFunctionMemberAccess] - pytest would collect it where it is imported


def load_model(path: str | Path) -> Any:
    """Loads the model of a checkpoint, in evaluation mode, without its data: to use it where the images are not.

    Args:
        path: checkpoint, run folder, `best` or `last`.

    Returns:
        An `ImageClassifier`, unless the run had a module of another class.

    Raises:
        UserError: the checkpoint was not found, or its model was built in Python.
    """
    from resnet_pl import load

    return load.load_model(path)


def load_run(
    path: str | Path,
    data: Any = None,
    options: Sequence[str] = (),
    model: LightningModule | None = None,
) -> tuple[Any, Any]:
    """Loads the model of a checkpoint, in evaluation mode, and its data module with the checkpoint's splits.

    Args:
        path: checkpoint, run folder, `best` or `last`.
        data: arguments of the data module that replace the checkpoint's, such as `{"root": "elsewhere"}`; or other
            data, see `fit`.
        options: the same as command-line options, such as `--data.root=elsewhere`.
        model: a model that receives the weights, instead of a new one.

    Returns:
        An `ImageClassifier` and an `ImageDataModule`, unless the run had a module or data of another class.

    Raises:
        UserError: the checkpoint or its data was not found, or the checkpoint lacks what was built in Python.
    """
    from resnet_pl import load

    return load.load_run(path, data, options, model)
