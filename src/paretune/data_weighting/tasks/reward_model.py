"""Data weighting for a reward model (Section 5.1, Appendix E.1 of the WC-Penalty paper).

The lower level trains a small network on the weighted mean of the sets' squared errors, the upper
level's objectives are its squared errors on the validation criteria. Scores are centred and scaled
by their mean and deviation on the training prompts, so that criteria of different scales compare
and an error of 1 is that of always predicting the mean.

The paper sums errors where these are means; its network ("depth of 500 and a width of 5") and its
input of 500 numbers are not those of any model it names, so sizes are the recipe's.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from paretune.data.messages import Text, prompt_key
from paretune.data_weighting.tasks.embeddings import embed
from paretune.data_weighting.tasks.task import Task, network
from paretune.errors import InputError
from paretune.moo.bilevel.problem import AnyBilevel, StochasticBilevelProblem

if TYPE_CHECKING:
    from paretune.recipes.data_weighting import RewardModelTask

RANDOM = "random"

_LEAST = 8  # responses of a split, below which no loss means anything


@dataclass(frozen=True)
class Scored:
    """Responses as numbers: one split of the data.

    Attributes:
        features: (n, d).
        scores: per criterion, (n,), centred and scaled.
    """

    features: Tensor
    scores: dict[str, Tensor]


def load_scored(
    task: "RewardModelTask", encode: Any = embed
) -> tuple[dict[str, Scored], dict[str, object]]:
    """The train, validation and test splits, by prompt, with what is to be said of them.

    Responses that lack one of the scores are left out. Principal components, means and scales are
    those of the training split.

    Args:
        encode: As `embed`.

    Raises:
        InputError: data that is missing or cannot be read, an unknown criterion, a criterion that
            is the same for all, or a split with too few responses.
    """
    names = list(dict.fromkeys([*task.criteria, *task.training_criteria]))
    ratings = _ratings(task, names)
    kept = [row for row in ratings if all(row[name] is not None for name in names)]
    prompts, responses = ([_plain(row[key]) for row in kept] for key in ("prompt", "response"))
    parts = _split([prompt_key(prompt) for prompt in prompts], task.split, task.split_seed)
    for name, rows in parts.items():
        if len(rows) < _LEAST:
            raise InputError(
                f"The {name} set has {len(rows)} rated responses, too few: give more data than "
                f"the {len(kept)} fully rated responses of {task.path or task.loader}, or another "
                "split."
            )
    encoded = partial(encode, encoder=task.encoder, max_length=task.max_length)
    features = _features(task, encoded(prompts), encoded(responses), responses, parts["train"])
    scores = {}
    for name in names:
        column = torch.tensor([float(row[name]) for row in kept], dtype=torch.float64)
        train = column[parts["train"]]
        if float(train.std()) == 0:
            raise InputError(f"All training responses have the same {name!r}: leave it out.")
        scores[name] = (column - train.mean()) / train.std()
    splits = {
        part: Scored(features[rows], {name: column[rows] for name, column in scores.items()})
        for part, rows in parts.items()
    }
    counts = {
        "responses": {part: len(rows) for part, rows in parts.items()},
        "not_fully_rated": len(ratings) - len(kept),
        "features": features.shape[1],
    }
    return splits, counts


def build(
    task: "RewardModelTask",
    splits: dict[str, Scored],
    counts: dict[str, object],
    seed: int,
) -> Task:
    """The bilevel problem of one seed, which draws the random scores and the network."""
    generator = torch.Generator().manual_seed(seed)
    train, validation, test = splits["train"], splits["validation"], splits["test"]
    targets = [train.scores[name] for name in task.training_criteria]
    sets = list(task.training_criteria)
    if task.random_set:
        targets.append(torch.randn(len(targets[0]), generator=generator, dtype=torch.float64))
        sets.append(RANDOM)
    # tanh and not ReLU: ∇²g is asked for.
    model = network([train.features.shape[1], *task.hidden, 1], nn.Tanh, seed)
    start = model.vector()
    lower_data = (train.features, torch.stack(targets))
    upper_data, test_data = (
        (part.features, torch.stack([part.scores[name] for name in task.criteria]))
        for part in (validation, test)
    )

    def errors(y: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        scores: Tensor = model.call(y, batch[0])
        return (scores.squeeze(1) - batch[1]).square().mean(1)

    def upper(x: Tensor, y: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        return errors(y, batch)

    def lower(x: Tensor, y: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        return x.softmax(0) @ errors(y, batch) + task.weight_decay / 2 * y.square().sum()

    stochastic = StochasticBilevelProblem(
        upper, lower, partial(_draw, upper_data), partial(_draw, lower_data), upper_data, lower_data
    )
    problem: AnyBilevel = stochastic if task.batch_size else stochastic.full
    return Task(
        problem=problem,
        start=(torch.zeros(len(sets), dtype=torch.float64), start),
        objectives=tuple(task.criteria),
        sets=tuple(sets),
        matched={name: name for name in task.training_criteria if name in task.criteria},
        random=(RANDOM,) if task.random_set else (),
        at=lambda x: problem,
        held_out=lambda x, y: upper(x, y, test_data),
        counts=counts | {"x": len(sets), "y": start.numel()},
    )


def _draw(
    data: tuple[Tensor, Tensor], size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    rows = torch.randint(len(data[0]), (size,), generator=generator)
    return data[0][rows], data[1][:, rows]


def _ratings(task: "RewardModelTask", names: Sequence[str]) -> Any:
    from paretune.data import LOADERS
    from paretune.data.loading import load, rated

    return rated(load(LOADERS[task.loader], names, task.path), task.loader)


def _plain(text: Text) -> str:
    """A prompt or response as one text."""
    if isinstance(text, str):
        return text
    return "\n\n".join(message["content"] for message in text)


def _split(keys: Sequence[str], shares: Sequence[float], seed: int) -> dict[str, list[int]]:
    """Row numbers of each split; prompts in the order of a hash, whatever the order of rows."""
    prompts = sorted(set(keys), key=lambda key: hashlib.sha256(f"{seed} {key}".encode()).digest())
    train = round(shares[0] * len(prompts))
    validation = train + round(shares[1] * len(prompts))
    place = {prompt: number for number, prompt in enumerate(prompts)}
    rows: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for row, key in enumerate(keys):
        number = place[key]
        part = "train" if number < train else "validation" if number < validation else "test"
        rows[part].append(row)
    return rows


def _features(
    task: "RewardModelTask",
    prompts: Tensor,
    responses: Tensor,
    texts: Sequence[str],
    train: Sequence[int],
) -> Tensor:
    """The response's embedding, scaled to variance 1 in all, and the surface features, 1 each."""
    prompts, responses = (
        nn.functional.normalize(part.double(), dim=1) for part in (prompts, responses)
    )
    embedded = responses - responses[train].mean(0)
    if task.components is not None:
        _, _, axes = torch.linalg.svd(embedded[train], full_matrices=False)
        embedded = embedded @ axes[: task.components].T
    embedded = embedded / embedded[train].square().sum(1).mean().sqrt()
    if not task.surface:
        return embedded
    plain = torch.tensor([_surface(text) for text in texts], dtype=torch.float64)
    plain = torch.cat([plain, (prompts * responses).sum(1, keepdim=True)], dim=1)
    spread = plain[train].std(0)
    plain = (plain - plain[train].mean(0)) / torch.where(spread > 0, spread, 1.0)
    return torch.cat([embedded, plain], dim=1)


def _surface(text: str) -> list[float]:
    words = text.split()
    sentences = sum(text.count(mark) for mark in ".!?")
    return [len(words), len(text), sentences, len(set(words)) / max(1, len(words))]
