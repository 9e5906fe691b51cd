"""What a training took, counted at every step."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from paretune.spend import Spend


@dataclass
class Totals:
    """Sums over all steps of a training, over its sessions, however often it is logged.

    Attributes:
        steps: Steps that were taken.
        skipped: Steps left out, since a loss or gradient was NaN or infinite.
        vertices: Steps taken with all of λ* on one objective.
        solver_share: Sum over the steps taken of the share of time spent on λ*.
        moved: Whether a step has changed a weight.
        unmoved: Steps with a gradient and a learning rate before the first that changed one.
        spend: Tokens, passes and seconds, those of skipped steps as well; the seconds are of passes
            and weighting alone.
        times: Seconds of whole steps, optimiser included (``step``), of validation (``validation``)
            and of putting batches together (``loading``).
    """

    steps: int = 0
    skipped: int = 0
    vertices: int = 0
    solver_share: float = 0.0
    moved: bool = False
    unmoved: int = 0
    spend: Spend = field(default_factory=Spend)
    times: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """All that the training took but for writing checkpoints."""
        return math.fsum(self.times.values()) or self.spend.seconds

    def summary(self) -> dict[str, Any]:
        """The means and sums that ``training.json`` holds."""
        taken = max(self.steps, 1)
        return {
            "skipped_steps": self.skipped,
            "vertex_share": self.vertices / taken,
            "solver_share": self.solver_share / taken,
            "times": dict(self.times),
        }

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        return cls(**{**value, "spend": Spend.from_json(value["spend"])})

    @classmethod
    def from_log(cls, history: Sequence[Mapping[str, float]]) -> Self:
        """From a trainer's log, as far as it was written: 0.1 counted there."""
        rows = [row for row in history if "time/step" in row]
        counts = [b["step"] - a["step"] for a, b in zip([{"step": 0}, *rows], rows, strict=False)]

        def total(key: str) -> float:
            return math.fsum(n * row.get(key, 0.0) for n, row in zip(counts, rows, strict=True))

        spend = Spend(
            policy_tokens=round(total("spend/policy_tokens")),
            passes=round(total("spend/passes")),
            seconds=total("time/step"),
        )
        vertices, share = round(total("clamp/vertex")), total("time/solver_share")
        return cls(round(sum(counts)), 0, vertices, share, moved=True, spend=spend)
