"""Running another library's `transformers.Trainer` to its end, however often it is cut short."""

import time
from pathlib import Path
from typing import Any

from transformers import Trainer

from paretune.experiment.weights import load_weights
from paretune.training.checkpoints import finished_state, newest_complete, read_state


class Clock:
    """Seconds of training over all sessions; checkpoints keep them (see `CompleteCheckpoints`)."""

    def __init__(self) -> None:
        self.earlier = 0.0
        self._start = time.monotonic()

    def seconds(self) -> float:
        return self.earlier + time.monotonic() - self._start

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds()}


def train_to_end(trainer: Trainer, clock: Clock) -> None:
    """Train from the newest complete checkpoint on, if there is one."""
    checkpoint = newest_complete(str(trainer.args.output_dir))
    if checkpoint is not None:
        clock.earlier = read_state(checkpoint)["seconds"]
        # After the last step transformers would take one more.
        state = finished_state(checkpoint, trainer.args)
        if state is not None:
            best = state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
            load_weights(trainer.model, Path(best or checkpoint))
            trainer.state = state
            return
    trainer.train(resume_from_checkpoint=checkpoint)
