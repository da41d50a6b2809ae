"""What is needed of other libraries and not documented there: each entry says why, and a test tells when it can go."""

from __future__ import annotations

from lightning.pytorch import Trainer

# Key and value that LightningCLI adds to the hyperparameters it saves. `load_from_checkpoint` builds the modules that
# are described there only if it finds them, and has no argument to ask for the same. Lightning 2.0 to 2.6.
INSTANTIATOR = {"_instantiator": "lightning.pytorch.cli.instantiate_module"}


def begin_next_epoch(trainer: Trainer) -> None:
    """Makes a run that resumes from the end of an epoch begin with the next one; call it in `on_train_start`.

    With `max_steps` Lightning repeats that end, and skips the images of an epoch (Lightning issue 19617, open). Its
    loops have no documented way to say where a run is.
    """
    loop, epochs = trainer.fit_loop, trainer.fit_loop.epoch_progress
    if epochs.current.completed < epochs.current.processed == epochs.current.ready:
        epochs.increment_completed()
        loop.reset_restart_stage()
        loop.epoch_loop.restarting = False
