"""What the methods that need rewards optimise: scorers, normalised once, and their weighted sum."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from paretune.baselines.context import Context
from paretune.errors import InputError
from paretune.evaluation.scorers import Normalised, Scorer, normalise
from paretune.files import read_json, write_json
from paretune.models import gpu
from paretune.recipes.rewards import RewardSource
from paretune.recipes.section import Section
from paretune.spend import Watch


class Source(NamedTuple):
    """What scores an objective, and the key (see `Context.once`) of its normalisation constants."""

    scorer: Normalised
    key: str


def normalised_scorers(
    context: Context, rewards: Mapping[str, RewardSource] | None, objectives: Sequence[str]
) -> dict[str, Source]:
    """What scores these objectives, normalised on the training answers once for all points.

    Raises:
        InputError: an objective that nothing scores.
    """
    from paretune.experiment.reward_sources import build_scorers, recipe_scorers, recipe_sources

    sources = recipe_sources(context.recipe) if rewards is None else rewards
    for name in objectives:
        if name not in sources:
            raise InputError(
                f"Nothing scores the objective {name!r}: name a scorer or a reward model under "
                "'rewards', in the recipe or in the method's options (docs/methods/morlhf.md)."
            )
    sources = {name: source for name, source in sources.items() if name in objectives}
    if rewards is None:
        scorers = {name: recipe_scorers(context.recipe)[name] for name in sources}
    else:
        trained_here = Path(context.recipe.output_dir) / "rewards"
        scorers = build_scorers(sources, trained_here, gpu())
    result = {}
    for name, scorer in scorers.items():

        def build(folder: Path, scorer: Scorer = scorer) -> None:
            watch, before = Watch(), tokens_read(scorer)
            constants = normalise(scorer, context.splits["train"]).constants()
            write_json(folder / "constants.json", constants)
            context.finish(folder, 0, watch.spend(reward_tokens=tokens_read(scorer) - before))

        key = f"normalisation-{name}-{section_digest(sources[name])}"
        constants = read_json(context.once(key, build) / "constants.json")
        result[name] = Source(Normalised(scorer, **constants), key)
    return result


@dataclass
class ScalarReward:
    """``Σ_k p_k (r_k − mean_k) / std_k`` of answers, and the means of its parts for the log.

    Attributes:
        scorers: By objective; those without weight are left out.
        weights: p, by objective.
    """

    scorers: Mapping[str, Normalised]
    weights: Mapping[str, float]

    def __call__(
        self, prompts: Sequence[Any], texts: Sequence[str]
    ) -> tuple[list[float], dict[str, float]]:
        before, total, entry = self._tokens(), [0.0] * len(texts), {}
        for name, scorer in self.scorers.items():
            scores = scorer.score(prompts, texts)
            mean = sum(scores) / len(scores)
            entry[f"{name}/normalised"] = mean
            entry[f"{name}/score"] = scorer.mean + scorer.std * mean
            total = [t + self.weights[name] * s for t, s in zip(total, scores, strict=True)]
        return total, {**entry, "reward_tokens": float(self._tokens() - before)}

    def _tokens(self) -> int:
        return sum(tokens_read(scorer.scorer) for scorer in self.scorers.values())


def tokens_read(scorer: Scorer) -> int:
    """How many tokens a reward model has read so far; a plain function reads none."""
    return int(getattr(scorer, "tokens", 0))


def section_digest(section: Section) -> str:
    """Eight hexadecimal digits that differ where settings differ."""
    return hashlib.sha256(section.model_dump_json().encode()).hexdigest()[:8]
