"""What a piece of work cost: tokens, passes, time and memory."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self


@dataclass(frozen=True)
class Spend:
    """What a piece of work cost; sums add up, except that the larger peak of memory counts.

    Attributes:
        policy_tokens: tokens, prompts included, that went forward and backward through the policy;
            a prompt counts with each of its responses, also where they share it.
        reference_tokens: tokens scored without gradients by a language model (reference, margins).
        generated_tokens: tokens sampled, prompts not included.
        reward_tokens: tokens read by reward models, in their training and in scoring.
        passes: forward and backward passes of a batch through a language model, each one pass;
            an answer of n tokens sampled in a batch is n passes of that batch.
        seconds: wall-clock time of the work itself, without loading models.
        peak_memory_bytes: most memory in use: of the GPU where there is one, else of the process.
    """

    policy_tokens: int = 0
    reference_tokens: int = 0
    generated_tokens: int = 0
    reward_tokens: int = 0
    passes: int = 0
    seconds: float = 0.0
    peak_memory_bytes: int = 0

    def __add__(self, other: "Spend") -> "Spend":
        sums = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        peak = max(self.peak_memory_bytes, other.peak_memory_bytes)
        return Spend(**{**sums, "peak_memory_bytes": peak})

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        return cls(**value)


class Watch:
    """Measures time and peak memory from when it is made."""

    def __init__(self) -> None:
        _reset_peak()
        self._start = time.perf_counter()

    def spend(self, **counts: int) -> Spend:
        """What was spent since, with the counts of tokens and passes given."""
        return Spend(
            **counts, seconds=time.perf_counter() - self._start, peak_memory_bytes=peak_memory()
        )


def peak_memory() -> int:
    """Peak memory in bytes since a `Watch` was made: the GPU's, or else the process's."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0  # not known on this system


def _reset_peak() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        try:
            Path("/proc/self/clear_refs").write_text("5")  # Linux: VmHWM starts again from here
        except OSError:
            return  # the peak of the whole process, then
