"""Data weighting for a language model (Section 5.2, Appendix E.2 of the WC-Penalty paper).

The lower level trains an adapter on the weighted mean of the sets' cross-entropies, the upper
level's objectives are its cross-entropies on well-rated responses of each criterion; means over
responses of means over tokens, where the paper sums.

The problem is that of `DataWeightingTrainer`, posed so that every method of `minimize` runs on it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from paretune.data.records import PreferenceData
from paretune.data.splitting import split_by_prompt
from paretune.data.tokenization import TokenSequence, pad_sequences, tokenize_responses
from paretune.data_weighting.tasks.task import Task
from paretune.errors import InputError
from paretune.models import gpu, load_model_and_tokenizer
from paretune.moo.bilevel.problem import StochasticBilevelProblem
from paretune.training.bilevel_objectives import LanguageModelObjectives
from paretune.training.checks import check_weights
from paretune.training.responses import Batches, Draw, Part, all_of

if TYPE_CHECKING:
    from paretune.recipes.language_model import LanguageModelTask

SETS = ("high", "low")

Rows = Sequence[Mapping[str, Any]]


def load_rows(task: "LanguageModelTask") -> dict[str, dict[Part, list[dict[str, Any]]]]:
    """Rows with ``prompt`` and ``completion`` of each split's parts.

    ``train`` has the two training sets, ``validation`` and ``test`` the criteria.

    Raises:
        InputError: data that is missing or cannot be read, an unknown criterion, or a set without
            responses.
    """
    data = _load(task)
    splits = split_by_prompt(replace(data, pairs={}), task.split, task.split_seed)
    scales = dict.fromkeys(task.criteria, (0.0, 1.0))
    if task.normalise:
        scales = {name: _scale(data.ratings, name) for name in task.criteria}
    result: dict[str, dict[Part, list[dict[str, Any]]]] = {}
    for split, part in splits.items():
        rated: list[tuple[dict[str, Any], list[float]]] = []
        for row in part.ratings or ():
            if any(row[name] is None for name in task.criteria):
                continue
            ratings = [(row[n] - scales[n][0]) / scales[n][1] for n in task.criteria]
            rated.append(({"prompt": row["prompt"], "completion": row["response"]}, ratings))
        found: dict[Part, list[dict[str, Any]]] = {}
        if split == "train":
            means = [sum(ratings) / len(ratings) for _, ratings in rated]
            for name, fits in zip(
                SETS, ([m >= task.high for m in means], [m <= task.low for m in means]), strict=True
            ):
                rows = [row for (row, _), fit in zip(rated, fits, strict=True) if fit]
                found[Part("set", name)] = rows
        else:
            for n, name in enumerate(task.criteria):
                rows = [row for row, ratings in rated if ratings[n] >= task.good]
                found[Part("criterion", name)] = rows
        for (_, name), rows in found.items():
            if not rows:
                raise InputError(
                    f"No response of the {split} prompts is in {name!r}: change task.high, low or "
                    f"good (mean ratings there, of {len(rated)} rated responses, are those of "
                    "task.criteria)."
                )
        result[split] = found
    return result


def prepare(
    task: "LanguageModelTask", rows: Mapping[str, Mapping[Part, Rows]], tokenizer: Any
) -> dict[str, dict[Part, list[TokenSequence]]]:
    """The rows as tokens, cut to length, at most `task.rows` of each part."""
    generator = torch.Generator().manual_seed(task.split_seed)
    result: dict[str, dict[Part, list[TokenSequence]]] = {}
    for split, parts in rows.items():
        result[split] = {}
        for part, some in parts.items():
            order = torch.randperm(len(some), generator=generator).tolist()[: task.rows]
            sequences, _ = tokenize_responses(
                [some[i] for i in order], tokenizer, f"{split} rows of {part.name!r}"
            )
            cut = [_cut(sequence, task) for sequence in sequences]
            kept = [sequence for sequence in cut if sequence.completion_length > 0]
            if not kept:
                raise InputError(
                    f"No response of {part.name!r} fits into task.max_length={task.max_length}: "
                    "raise it, or cut prompts by task.max_prompt."
                )
            result[split][part] = kept
    return result


def build(task: "LanguageModelTask", rows: Mapping[str, Mapping[Part, Rows]], seed: int) -> Task:
    """The bilevel problem of one seed, which draws the adapter."""
    from peft import LoraConfig, get_peft_model

    settings = task.lora.model_dump()
    config = LoraConfig(
        r=settings["r"],
        lora_alpha=settings["alpha"],
        lora_dropout=settings["dropout"],
        target_modules=settings["target_modules"],
    )
    device = gpu() or "cpu"
    base, tokenizer = load_model_and_tokenizer(**task.model.model_dump(), device=device)
    check_weights(base)
    # Unrolled methods differentiate twice, which fused attention cannot.
    base.set_attn_implementation("eager")
    sequences, pad_token_id = prepare(task, rows, tokenizer), int(tokenizer.pad_token_id)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = get_peft_model(base, config).eval()
    levels = LanguageModelObjectives(model, in_place=False)
    train, validation, test = (sequences[split] for split in ("train", "validation", "test"))

    def draw_from(parts: Mapping[Part, Sequence[TokenSequence]]) -> Any:
        def draw(size: int, generator: torch.Generator) -> Batches:
            picked: Draw = {}
            for part, some in parts.items():
                rows = torch.randint(len(some), (size,), generator=generator).tolist()
                picked[part] = pad_sequences([some[row] for row in rows], pad_token_id)
            return _to(Batches.of([picked]), device)

        return draw

    lower, upper, held_out = (
        _to(all_of(parts, pad_token_id, task.micro_batch), device)
        for parts in (train, validation, test)
    )
    problem = StochasticBilevelProblem(
        upper=levels.upper(task.criteria),
        lower=levels.lower(SETS, task.ridge),
        draw_upper=draw_from(validation),
        draw_lower=draw_from(train),
        full_upper=upper,
        full_lower=lower,
        hvp=task.hvp,
    )

    def on_test(x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            terms = levels.upper(task.criteria)
            return torch.stack([term(x, y, held_out) for term in terms]).cpu()

    start = levels.vector()
    return Task(
        problem=problem,
        start=(torch.zeros(len(SETS), dtype=torch.float64), start),
        objectives=tuple(task.criteria),
        sets=SETS,
        matched={},
        random=(),
        at=lambda x: problem,
        held_out=on_test,
        counts={
            split: {part.name: len(some) for part, some in parts.items()}
            for split, parts in sequences.items()
        }
        | {"x": len(SETS), "y": start.numel()},
    )


def _load(task: "LanguageModelTask") -> PreferenceData:
    from paretune.data import LOADERS
    from paretune.data.loading import load, rated

    data = load(LOADERS[task.loader], task.criteria, task.path)
    rated(data, task.loader)
    return data


def _scale(ratings: Any, name: str) -> tuple[float, float]:
    """The lowest rating, and how far the highest is above it."""
    known = [value for value in ratings[name] if value is not None]
    low, high = min(known, default=math.nan), max(known, default=math.nan)
    if not high > low:
        raise InputError(f"All responses have the same {name!r}: leave it out.")
    return low, high - low


def _cut(sequence: TokenSequence, task: "LanguageModelTask") -> TokenSequence:
    """The end of the prompt and the beginning of the response, as far as they are to be used."""
    start = 0
    if task.max_prompt is not None:
        start = max(0, sequence.prompt_length - task.max_prompt)
    ids = sequence.input_ids[start : start + task.max_length]
    return TokenSequence(ids, sequence.prompt_length - start)


def _to(batches: Batches, device: str) -> Batches:
    draws = [
        {part: {k: v.to(device) for k, v in tensors.items()} for part, tensors in draw.items()}
        for draw in batches.draws
    ]
    return replace(batches, draws=draws)
