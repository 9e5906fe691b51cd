"""Whether y, which the paper's methods train on validation rows, too, has fitted those instead."""

import logging
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger(__name__)

_WINDOW = 10  # steps that are averaged
_FAR_BELOW = 0.5  # of what the ratio of a criterion's loss to the sets' was at first
_FALLEN = 0.9  # of what ‖∇_y g‖ was at first
_PATIENCE = 3  # windows until ‖∇_y g‖ must have fallen


class LeakWatch:
    """Warns, once each, of two signs that the losses of criteria mean nothing.

    One is a loss on validation rows far below that on training rows, against what it was at first,
    the other ‖∇_y g‖ that does not fall. Means over ten steps are compared.
    """

    def __init__(self) -> None:
        self._first: dict[str, float] = {}
        self._sums: dict[str, float] = {}
        self._steps = self._windows = 0
        self._told: list[str] = []

    def see(self, training: float, criteria: Mapping[str, float], gradient_norm: float) -> None:
        """Take note of a step.

        Args:
            training: The highest loss of a training set.
            criteria: Losses on the validation rows.
            gradient_norm: ‖∇_y g‖.
        """
        ratios = {name: value / training for name, value in criteria.items() if training > 0}
        for name, value in {**ratios, "": gradient_norm}.items():
            self._sums[name] = self._sums.get(name, 0.0) + value / _WINDOW
        self._steps += 1
        if self._steps < _WINDOW:
            return
        now, self._sums, self._steps = self._sums, {}, 0
        self._windows += 1
        if not self._first:
            self._first = now
            return
        for name in now.keys() - {""}:
            if now[name] < _FAR_BELOW * self._first.get(name, 0.0):
                self._tell(
                    "loss",
                    f"The loss on the validation rows of {name!r} is far below that on the "
                    "training sets: the model is being trained on them, and the sets' weights "
                    "follow a criterion that is met already. Use method='lookahead', or a larger u "
                    "and a start at which the training loss is solved (polish).",
                )
        if self._windows > _PATIENCE and now[""] > _FALLEN * self._first[""]:
            self._tell(
                "gradient",
                f"‖∇_y g‖ does not fall (from {self._first['']:.3g} to {now['']:.3g}): the model "
                "is not where the weighted training loss has its minimum, so the criteria's losses "
                "are not those of training on the weighted sets. Raise u, lower the learning rate, "
                "or use method='lookahead'.",
            )

    def _tell(self, what: str, sentence: str) -> None:
        if what not in self._told:
            self._told.append(what)
            logger.warning("%s", sentence)

    def state_dict(self) -> dict[str, Any]:
        return {name.lstrip("_"): value for name, value in vars(self).items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`; where it is empty, from the beginning."""
        for name in state and vars(self):
            setattr(self, name, state[name.lstrip("_")])
