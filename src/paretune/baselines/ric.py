"""Rewards-in-Context (Yang et al., 2024): one adapter that is told, in the prompt, what to score.

Offline, the training answers are scored and imitated with their scores in the prompt. Online, the
model answers prompts that ask for high scores; answers are labelled with the scores they did get,
and the best are imitated. A preference is then turned into the scores to ask for.
"""

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from paretune.baselines.context import Baseline, Context, Watch, trained
from paretune.baselines.reward import Source, normalised_scorers, section_digest, tokens_read
from paretune.baselines.score_prompts import ScorePrompt, ScoreTemplate
from paretune.data.messages import distinct_prompts
from paretune.errors import InputError
from paretune.evaluation.scorers import answers_of
from paretune.files import read_objects, write_jsonl
from paretune.moo.preference import Preference
from paretune.recipes.rewards import RewardSource
from paretune.recipes.section import Positive
from paretune.results.points import read_spend

if TYPE_CHECKING:
    from paretune.results.answers import Prompt

Range = tuple[float, float]
PreferenceMap = Literal["l2", "linf", "linear"]
"""From weights to the scores that RiC asks for."""

_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")


class Ric(Baseline):
    """Rewards-in-Context (Yang et al., 2024). The defaults are those of the authors' code."""

    rewards: dict[str, RewardSource] | None = None
    """What scores each objective; null is what the recipe's `rewards` says, or the demo data's own
    scorers."""
    preference_map: PreferenceMap = "l2"
    """From weights p to scores to ask for: `l2` (p / ‖p‖₂ of the range, as in the authors'
    evaluation), `linf` (the largest weight gets the top, the others M p of the range) or `linear`
    (p of the range)."""
    template: ScoreTemplate = "chat"
    """Where the scores stand: `chat` (`<name_score> 1.2` at the end of the user's last message, in
    the model's chat template) or `authors` (`<rm1_score> 1.2` before the last `Assistant:` of a
    plain dialogue, outside of it, as in the authors' code)."""
    batch_size: Positive = 8
    """Answers to an update of the weights."""
    offline_steps: Positive = 20_000
    """Updates on the training answers."""
    offline_learning_rate: float = Field(default=1.414e-4, gt=0)
    """Of AdamW, falling linearly to 0."""
    online_rounds: int = Field(default=1, ge=0)
    """Times that the model answers, and imitates its best answers."""
    online_steps: Positive = 4_000
    """Updates in each round."""
    online_learning_rate: float = Field(default=1e-5, gt=0)
    """Of AdamW, constant."""
    online_prompts: Positive = 20_000
    """Training prompts answered in each round, drawn with replacement if there are fewer."""
    offline_mixed: int = Field(default=10_000, ge=0)
    """Most training answers that are imitated along with the online ones."""
    keep_quantile: float = Field(default=0.7, ge=0, lt=1)
    """Answers are imitated online if one of their scores reaches this quantile of all."""
    max_length: Positive = 512
    """Longest prompt and answer in tokens; longer ones are left out."""
    max_new_tokens: Positive = 128
    """Longest answer of the model; answers cut there are left out."""
    temperature: float = Field(default=0.7, gt=0)
    """Of the sampling."""
    top_p: float = Field(default=0.9, gt=0, le=1)
    """Nucleus."""
    generation_batch_size: Positive = 32
    """Prompts answered at a time."""
    save_steps: Positive = 100
    """Updates between checkpoints."""

    def train(self, context: Context, preferences: Sequence[Preference]) -> None:
        """Train the one adapter, and give every preference a copy with the scores to ask for.

        Each folder gets the adapter, ``prompt.json`` (scores by objective, see `ScorePrompt`) and
        ``training.json``, whose spend is that of the shared adapter's folder alone.

        Raises:
            InputError: a recipe without adapter, an objective without a scorer, or online answers
                of which none can be used.
        """
        pending = context.untrained(preferences)
        if not pending:
            return
        if context.recipe.lora is None:
            raise InputError("RiC trains an adapter: the recipe needs a lora section.")
        names = context.recipe.data.objectives
        sources = normalised_scorers(context, self.rewards, names)
        training = self.model_copy(update={"preference_map": "l2"})  # which it does not depend on
        key = f"ric-seed{context.seed}-{section_digest(training)}"
        adapter = context.once(key, lambda folder: _build(context, self, sources, folder))
        for preference in pending:
            folder, watch = context.point(preference), Watch()
            folder.mkdir(parents=True, exist_ok=True)
            for name in _ADAPTER:
                shutil.copyfile(adapter / name, folder / name)
            scores = target_scores(
                preference, score_ranges(names, context.seed), self.preference_map
            )
            ScorePrompt(scores, self.template).write(folder)
            needed = [key, *(source.key for source in sources.values())]
            context.finish(folder, 0, watch.spend(), shared=needed)


@dataclass(frozen=True)
class Sample:
    """An answer and its normalised scores."""

    prompt: "Prompt"
    response: str
    scores: dict[str, float]


def score_ranges(objectives: Sequence[str], seed: int, draws: int = 50_000) -> dict[str, Range]:
    """Per objective, lowest and highest of so many standard normal draws (the authors' range)."""
    values = np.random.default_rng(seed).standard_normal((draws, len(objectives)))
    lowest, highest = values.min(axis=0).tolist(), values.max(axis=0).tolist()
    return dict(zip(objectives, zip(lowest, highest, strict=True), strict=True))


def target_scores(
    preference: Mapping[str, float], ranges: Mapping[str, Range], kind: PreferenceMap
) -> dict[str, float]:
    """The scores to ask for at a preference, rounded to one decimal (RiC's f(p)).

    >>> target_scores({"a": 0.6, "b": 0.8}, {"a": (-2, 2), "b": (-2, 2)}, "l2")
    {'a': 0.4, 'b': 1.2}
    """
    if kind == "l2":
        length = math.hypot(*preference.values())
        shares = {name: weight / length for name, weight in preference.items()}
    elif kind == "linear":
        shares = dict(preference)
    else:
        largest = max(preference, key=lambda name: preference[name])
        shares = {name: min(len(preference) * p, 1.0) for name, p in preference.items()}
        shares[largest] = 1.0
    lowest = {name: low for name, (low, _) in ranges.items()}
    spans = {name: high - low for name, (low, high) in ranges.items()}
    return {name: round(lowest[name] + share * spans[name], 1) for name, share in shares.items()}


def online_goals(ranges: Mapping[str, Range], count: int, seed: int) -> list[dict[str, float]]:
    """Scores to ask for online: uniform in the ranges, then all but the smallest set to the top."""
    names, random = list(ranges), np.random.default_rng(seed)
    low, high = (np.array([ranges[name][side] for name in names]) for side in (0, 1))
    goals = random.uniform(low, high, (count, len(names)))
    keep = goals.argmin(axis=1)
    rows = np.arange(count)
    topped = np.tile(high, (count, 1))
    topped[rows, keep] = goals[rows, keep]
    return [dict(zip(names, np.round(row, 1).tolist(), strict=True)) for row in topped]


def keep_good(samples: Sequence[Sample], quantile: float) -> list[Sample]:
    """The answers one of whose scores reaches its quantile over all of them."""
    if not samples:
        return []
    names = list(samples[0].scores)
    table = np.array([[sample.scores[name] for name in names] for sample in samples])
    good = (table >= np.quantile(table, quantile, axis=0)).any(axis=1)
    return [sample for sample, kept in zip(samples, good, strict=True) if kept]


def _build(context: Context, options: Ric, sources: Mapping[str, Source], folder: Path) -> None:
    """Train the adapter into `folder`, stage by stage; finished stages are not done again."""
    watch, before = Watch(), _tokens_read(sources)
    prompts, responses = answers_of(context.splits["train"])
    offline = _scored(sources, prompts, responses)
    spend = watch.spend(reward_tokens=_tokens_read(sources) - before)
    stage = folder / "offline"
    _imitate(context, options, offline, None, stage, 0)
    stages, online = [stage], list[Sample]()
    good = keep_good(offline, options.keep_quantile)
    for number in range(1, options.online_rounds + 1):
        stage = folder / f"round-{number}"
        answers = _answer(context, options, sources, prompts, stages[-1], stage, number)
        online += keep_good(answers, options.keep_quantile)  # of their round
        random = np.random.default_rng([context.seed, number])
        mixed = random.permutation(len(good))[: options.offline_mixed]
        samples = online + [good[i] for i in sorted(mixed)]
        _imitate(context, options, samples, stages[-1], stage, number)
        stages.append(stage)
        spend += read_spend(stage / "answers")
    for name in _ADAPTER:
        shutil.copyfile(stages[-1] / name, folder / name)
    steps = options.offline_steps + options.online_rounds * options.online_steps
    context.finish(folder, steps, sum(map(read_spend, stages), start=spend))


def _scored(
    sources: Mapping[str, Source], prompts: Sequence["Prompt"], responses: Sequence[str]
) -> list[Sample]:
    columns = {name: each.scorer.score(prompts, responses) for name, each in sources.items()}
    return [
        Sample(prompt, response, {name: round(column[i], 1) for name, column in columns.items()})
        for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
    ]


def _answer(
    context: Context,
    options: Ric,
    sources: Mapping[str, Source],
    prompts: Sequence["Prompt"],
    adapter: Path,
    stage: Path,
    number: int,
) -> list[Sample]:
    """The model's answers to training prompts that ask for high scores, with those they got."""
    from paretune.evaluation.generation import generate_answers
    from paretune.experiment.weights import load_weights

    folder = stage / "answers"
    file = folder / "answers.jsonl"
    if trained(folder):
        return [Sample(**row) for row in read_objects(file)]
    context.report("prepare", 0.0)
    model, tokenizer = _fresh_model(context)
    load_weights(model, adapter)
    watch, before = Watch(), _tokens_read(sources)
    distinct = distinct_prompts(prompts)
    random = np.random.default_rng([context.seed, number, 1])
    count = options.online_prompts
    drawn = [distinct[i] for i in random.choice(len(distinct), count, count > len(distinct))]
    ranges = score_ranges(list(sources), context.seed, 100_000)
    goals = online_goals(ranges, count, context.seed + number)
    asked = [ScorePrompt(goal, options.template) for goal in goals]
    answers = generate_answers(
        model,
        tokenizer,
        [each.prompt(prompt) for each, prompt in zip(asked, drawn, strict=True)],
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        seed=context.seed + number,
        batch_size=options.generation_batch_size,
        progress=lambda done, of: context.report("train", done / of),
    )
    whole = [
        (prompt, each.words(answer.response))
        for each, prompt, answer in zip(asked, drawn, answers, strict=True)
        if _usable(answer)
    ]
    if not whole:
        raise InputError(
            f"None of the {count} online answers ended within max_new_tokens="
            f"{options.max_new_tokens}: raise it, or train for more offline_steps."
        )
    samples = _scored(sources, [prompt for prompt, _ in whole], [text for _, text in whole])
    write_jsonl(file, map(asdict, samples))
    lengths = [len(tokenizer(answer.response)["input_ids"]) + 1 for answer in answers]
    batches = -(-count // options.generation_batch_size)
    spend = watch.spend(
        generated_tokens=sum(lengths),
        passes=batches * max(lengths),
        reward_tokens=_tokens_read(sources) - before,
    )
    context.finish(folder, 0, spend, usable=len(samples), answered=count)
    return samples


def _usable(answer: Any) -> bool:
    return bool(answer.finished and answer.response.strip())


def _imitate(
    context: Context,
    options: Ric,
    samples: Sequence[Sample],
    adapter: Path | None,
    folder: Path,
    number: int,
) -> None:
    """Train on the answers, from an earlier stage's adapter or a fresh one; `number` of the round.

    Supervised fine-tuning by TRL's SFTTrainer, on the tokens of the answers alone.
    """
    if trained(folder):
        return
    from paretune.baselines.sft import fine_tune
    from paretune.data.tokenization import tokenize_responses
    from paretune.experiment.setup import trl_arguments
    from paretune.experiment.train_point import free_memory, save_weights
    from paretune.experiment.weights import load_weights

    context.report("prepare", 0.0)
    model, tokenizer = _fresh_model(context)
    if adapter is not None:
        load_weights(model, adapter)
    rows = []
    for sample in samples:
        asked = ScorePrompt(sample.scores, options.template)
        answer = asked.response(sample.prompt, sample.response)
        rows.append({"prompt": asked.prompt(sample.prompt), "completion": answer})
    name = "answers to imitate"
    sequences, dropped = tokenize_responses(rows, tokenizer, name, options.max_length)
    steps = options.online_steps if number else options.offline_steps
    spend = fine_tune(
        model,
        tokenizer,
        sequences,
        folder / "checkpoints",
        steps=steps,
        batch_size=options.batch_size,
        learning_rate=options.online_learning_rate if number else options.offline_learning_rate,
        schedule="constant" if number else "linear",
        save_steps=options.save_steps,
        seed=context.seed + number,
        report=context.report,
        arguments=trl_arguments(context.recipe),
    )
    save_weights(model, tokenizer, folder)
    context.finish(folder, steps, spend, samples=len(sequences), dropped=dropped)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    free_memory()


def _fresh_model(context: Context) -> tuple[Any, Any]:
    """The base with an adapter that changes nothing yet, and the tokenizer."""
    from peft import get_peft_model
    from transformers import set_seed

    from paretune.experiment.setup import lora_config
    from paretune.models import gpu, load_model_and_tokenizer
    from paretune.training.checks import check_weights

    base, tokenizer = load_model_and_tokenizer(**context.recipe.model.model_dump(), device=gpu())
    check_weights(base)
    set_seed(context.seed)
    return get_peft_model(base, lora_config(context.recipe)), tokenizer


def _tokens_read(sources: Mapping[str, Source]) -> int:
    return sum(tokens_read(source.scorer.scorer) for source in sources.values())
