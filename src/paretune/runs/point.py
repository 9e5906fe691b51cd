"""One point of a run: trained, kept, and measured."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretune.baselines.score_prompts import ScorePrompt
from paretune.data import PreferenceData
from paretune.data.messages import distinct_prompts
from paretune.data.tokenization import TokenizedPairs, tokenize_pairs
from paretune.errors import InputError
from paretune.evaluation.generation import generate_answers
from paretune.experiment.reward_sources import recipe_scorers
from paretune.experiment.setup import build_trainer
from paretune.experiment.train_point import StepReport, train_point, wait_for_all
from paretune.experiment.weights import load_weights
from paretune.files import main_process, read_object, write_json
from paretune.models import is_sharded
from paretune.moo.weightings import Linear
from paretune.progress import Phase, Report
from paretune.results.answers import Answer, write_answers
from paretune.results.front import FrontPoint, ObjectiveMetrics, Score
from paretune.results.points import PlannedPoint
from paretune.results.text_statistics import text_statistics
from paretune.results.weights import ADAPTER, CHECKSUMS, TRAINING, check_weights, damaged
from paretune.runs.plan import VALIDATION
from paretune.training import MultiObjectiveTrainer

if TYPE_CHECKING:
    from paretune.recipes.schema import Recipe

_TRAINING_SHARE = 0.7  # of a point's preparation, guessed: the rest is the test split


def run_point(
    recipe: "Recipe",
    point: PlannedPoint,
    folder: Path,
    splits: Mapping[Any, PreferenceData],
    start_from: Path | None = None,
    report: Report = lambda phase, done: None,
    shared: Sequence[str] = (),
    validate: bool = False,
) -> None:
    """Train a point, unless it is trained already, and measure it on the test split.

    Afterwards `folder` holds the adapter, ``log.jsonl``, ``training.json`` (written when training
    is over), ``answers.jsonl`` and, written last, ``metrics.json``.

    Args:
        start_from: Folder of the point whose adapter to start from.
        shared: As in `train_point`.
        validate: Keep the losses on the validation split in ``training.json``, too.
    """
    if (folder / TRAINING).exists():
        measure_point(recipe, point, folder, folder, splits["test"], report)
        return
    report("prepare", 0.0)
    scoring = _Scoring(report, (0.0, _TRAINING_SHARE))
    trainer = build_trainer(
        recipe,
        point.preference,
        point.seed,
        splits,
        folder / "checkpoints",
        [StepReport(report)],
        scoring,
    )
    scoring.share = (_TRAINING_SHARE, 1.0)
    test = trainer.prepare(splits["test"].pairs)  # after full fine-tuning there is no reference
    checked = {VALIDATION: trainer.prepare(splits["validation"].pairs)} if validate else {}
    if start_from is not None:
        load_weights(trainer.model, start_from)
    train_point(trainer, folder, report, shared, partial(_losses, trainer, checked))
    scoring.phase, scoring.share = "evaluate", (0.0, 1.0)
    _measure(recipe, point, trainer, test, splits["test"], folder, folder, report)


def _losses(
    trainer: MultiObjectiveTrainer, data: Mapping[str, TokenizedPairs]
) -> dict[str, dict[str, float]]:
    """Losses of each objective on each of the data."""
    found = {key: trainer.measure(pairs, "at") for key, pairs in data.items()}
    return {
        key: {name: values[f"at_{name}_loss"] for name in trainer.objectives}
        for key, values in found.items()
    }


def measure_point(
    recipe: "Recipe",
    point: PlannedPoint,
    source: Path | None,
    target: Path,
    data: PreferenceData,
    report: Report = lambda phase, done: None,
    asked: ScorePrompt | None = None,
) -> None:
    """Measure the trained point in `source` on `data`; metrics and answers go to `target`.

    Args:
        source: The point's folder; None measures the base model.
        asked: How the policy is told scores to reach. The reference sees the prompt itself.
    """
    report("prepare", 0.0)
    recipe = _with_adapter(recipe, source)
    # The trainer wants training data; what is measured will do, and is prepared once. Nothing is
    # trained, so its rows need no counterparts and the method does not matter.
    train = recipe.train | {"sampling": "independent", "report_to": "none"}
    recipe = recipe.model_copy(update={"train": train, "method": Linear()})
    splits = {"train": data, "validation": data}
    scoring = _Scoring(report, (0.0, 1.0))
    trainer = build_trainer(
        recipe, point.preference, point.seed, splits, target / "checkpoints", on_scored=scoring
    )
    pairs = trainer.train_pairs
    if asked is not None:
        pairs = _rewritten(trainer, data, pairs, asked)
    if source is not None:
        load_weights(trainer.model, source)
    scoring.phase = "evaluate"
    _measure(recipe, point, trainer, pairs, data, source, target, report, asked)


def _with_adapter(recipe: "Recipe", source: Path | None) -> "Recipe":
    """The recipe with the rank and scale of the adapter in `source`: a soup has its own."""
    if source is None or recipe.lora is None:
        return recipe
    check_weights(source)
    saved = read_object(source / ADAPTER[0])
    try:
        lora = recipe.lora.model_copy(update={"r": saved["r"], "alpha": saved["lora_alpha"]})
    except KeyError as error:
        raise damaged(source / ADAPTER[0], f"it has no {error}") from error
    return recipe.model_copy(update={"lora": lora})


def _rewritten(
    trainer: MultiObjectiveTrainer, data: PreferenceData, plain: TokenizedPairs, asked: ScorePrompt
) -> TokenizedPairs:
    """The pairs with other prompts, and the reference's log-probabilities under their own."""
    kept = {
        name: list(map(asked.row, data.pairs[name].select(index.row)))
        for name, index in plain.pairs.items()
    }
    pairs = tokenize_pairs(kept, trainer.processing_class)  # in the same order
    if len(pairs.sequences) != len(plain.sequences):
        raise InputError("Prompts with scores make two test pairs the same: remove one of them.")
    pairs.reference = plain.reference
    return pairs


@dataclass
class _Scoring:
    """Turns the share of a data set that is scored into the share of a phase."""

    report: Report
    share: tuple[float, float]
    phase: Phase = "prepare"

    def __call__(self, done: float) -> None:
        start, end = self.share
        self.report(self.phase, start + (end - start) * done)


def _measure(
    recipe: "Recipe",
    point: PlannedPoint,
    trainer: MultiObjectiveTrainer,
    pairs: TokenizedPairs,
    data: PreferenceData,
    source: Path | None,
    target: Path,
    report: Report,
    asked: ScorePrompt | None = None,
) -> None:
    report("evaluate", 0.0)
    if source is None and asked is None:  # the base model is its own reference, scored already
        values = trainer.measure(pairs, logps=pairs.reference)
    else:
        values = trainer.evaluate(pairs)
    metrics = {
        name: ObjectiveMetrics(
            **{
                column: values[f"eval_{name}_{column}"]
                for column in ("loss", "accuracy", "margin", "perplexity")
            }
        )
        for name in recipe.data.objectives
    }
    answers: list[Answer] = []
    if recipe.evaluation.generate and (main_process() or is_sharded(trainer.model)):
        report("generate", 0.0)
        answers = _answers(recipe, trainer, data, report, asked)
    if main_process():
        if answers:
            write_answers(target / "answers.jsonl", answers)
        names = answers[0].scores if answers else ()
        tokenizer: Any = trainer.processing_class
        lengths = [len(tokenizer(answer.response)["input_ids"]) for answer in answers]
        result = FrontPoint(
            preference=dict(point.preference),
            metrics=metrics,
            chebyshev=values["eval_chebyshev"],
            seed=point.seed,
            folder=f"points/{point.name}",
            scores={name: Score.of([a.scores[name] for a in answers]) for name in names},
            answer_tokens=sum(lengths) / len(lengths) if lengths else None,
            text=text_statistics((answer.response, answer.finished) for answer in answers),
            training={} if source is None else _training(source),
        )
        shutil.rmtree(target / "checkpoints", ignore_errors=True)
        write_json(target / "metrics.json", result.to_json())
    wait_for_all()
    report("generate", 1.0)


def _training(folder: Path) -> dict[str, Any]:
    """What a point's training took."""
    record = read_object(folder / TRAINING)
    return {key: value for key, value in record.items() if key != CHECKSUMS}


def _answers(
    recipe: "Recipe",
    trainer: MultiObjectiveTrainer,
    data: PreferenceData,
    report: Report,
    asked: ScorePrompt | None,
) -> list[Answer]:
    """Answers to the first distinct prompts of the split, each with its scores."""
    settings = recipe.evaluation
    every = (prompt for pairs in data.pairs.values() for prompt in pairs["prompt"])
    prompts = distinct_prompts(every)[: settings.n_prompts]
    answers = generate_answers(
        trainer.model,
        trainer.processing_class,
        prompts if asked is None else list(map(asked.prompt, prompts)),
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=settings.seed,
        batch_size=settings.batch_size,
        progress=lambda done, total: report("generate", done / total),
    )
    texts = [answer.response for answer in answers]
    responses = texts if asked is None else list(map(asked.words, texts))
    scores = {
        name: scorer.score(prompts, responses) for name, scorer in recipe_scorers(recipe).items()
    }
    return [
        Answer(
            prompt,
            responses[row],
            answer.finished,
            {name: values[row] for name, values in scores.items()},
        )
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
    ]
