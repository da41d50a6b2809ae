"""Workarounds that depend on undocumented parts of libraries; a test fails when one can be removed."""

from __future__ import annotations

from lightning.pytorch import Trainer
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher

# LightningCLI adds this entry to the hyperparameters that it saves. Without it `load_from_checkpoint` does not
# instantiate the modules that the hyperparameters describe, and no argument requests that. Lightning 2.0 to 2.6.
INSTANTIATOR = {"_instantiator": "lightning.pytorch.cli.instantiate_module"}


def begin_next_epoch(trainer: Trainer) -> None:
    """Begins with the next epoch if a run resumes from the end of an epoch; call it in `on_train_start`.

    With `max_steps` Lightning resumes at that end and then skips the images of one epoch (open Lightning issue 19617).
    Its loops have no public method to set the position.
    """
    loop, epochs = trainer.fit_loop, trainer.fit_loop.epoch_progress
    # Lightning annotates `current` with a base class that has no `processed`.
    processed: int = epochs.current.processed  # pyright: ignore[reportAttributeAccessIssue]
    if epochs.current.completed < processed == epochs.current.ready:
        epochs.increment_completed()
        loop.reset_restart_stage()
        loop.epoch_loop.restarting = False


def trains_in_copies(trainer: Trainer) -> bool:
    """Whether a Trainer would train in forked or spawned copies of this process, as `ddp_fork` does in a notebook.

    Strategies have no public attribute for it, and their names do not show it: in a notebook, `auto` is `ddp_fork`.
    """
    return isinstance(trainer.strategy.launcher, _MultiProcessingLauncher)
