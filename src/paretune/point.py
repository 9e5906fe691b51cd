"""One point of a run: trained, kept, and measured."""

import gc
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState

from paretune.data import PreferenceData
from paretune.data.tokenization import TokenizedPairs, tokenize_pairs
from paretune.errors import InputError
from paretune.evaluation.generation import Answer, Prompt, generate_answers, write_answers
from paretune.evaluation.text_statistics import text_statistics
from paretune.experiment import build_trainer, load_weights
from paretune.files import main_process, move, read_json, sync, write_json, write_text
from paretune.front import FrontPoint, ObjectiveMetrics, Score
from paretune.plan import Phase, PlannedPoint, Report
from paretune.rewards.sources import recipe_scorers
from paretune.spend import Spend, Watch
from paretune.training import MultiObjectiveTrainer

if TYPE_CHECKING:
    from paretune.recipes.schema import Recipe

Rewrite = Callable[[Prompt], Prompt]
_TRAINING_SHARE = 0.7  # of a point's preparation, guessed: the rest is the test split


def run_point(
    recipe: "Recipe",
    point: PlannedPoint,
    folder: Path,
    splits: Mapping[Any, PreferenceData],
    start_from: Path | None = None,
    report: Report = lambda phase, done: None,
    shared: Sequence[str] = (),
) -> None:
    """Train a point, unless it is trained already, and measure it on the test split.

    Afterwards `folder` holds the adapter, ``log.jsonl``, ``training.json`` (written when training
    is over), ``answers.jsonl`` and, written last, ``metrics.json``.

    Args:
        start_from: Folder of the point whose adapter to start from.
        shared: As in `train_point`.
    """
    if (folder / "training.json").exists():
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
    if start_from is not None:
        load_weights(trainer.model, start_from)
    train_point(trainer, folder, report, shared)
    scoring.phase, scoring.share = "evaluate", (0.0, 1.0)
    _measure(recipe, point, trainer, test, splits["test"], folder, folder, report)


def train_point(
    trainer: MultiObjectiveTrainer, folder: Path, report: Report, shared: Sequence[str] = ()
) -> None:
    """Train, or go on with it, and keep weights, log and ``training.json``.

    Args:
        shared: What else the point needed, for ``training.json`` (see `paretune.baselines.job`).
    """
    report("train", 0.0)
    watch = Watch()
    trainer.train(resume_from_checkpoint=True)
    _save(trainer, folder, {"shared": sorted(shared)}, watch.spend().peak_memory_bytes)


def measure_point(
    recipe: "Recipe",
    point: PlannedPoint,
    source: Path | None,
    target: Path,
    data: PreferenceData,
    report: Report = lambda phase, done: None,
    rewrite: Rewrite | None = None,
) -> None:
    """Measure the trained point in `source` on `data`; metrics and answers go to `target`.

    Args:
        source: The point's folder; None measures the base model.
        rewrite: Makes of a prompt what the policy is asked. The reference sees the prompt itself.
    """
    report("prepare", 0.0)
    recipe = _with_adapter(recipe, source)
    # The trainer wants training data; what is measured will do, and is prepared once.
    splits = {"train": data, "validation": data}
    scoring = _Scoring(report, (0.0, 1.0))
    trainer = build_trainer(
        recipe, point.preference, point.seed, splits, target / "checkpoints", on_scored=scoring
    )
    pairs = trainer.prepare(data.pairs)
    if rewrite is not None:
        pairs = _rewritten(trainer, data, pairs, rewrite)
    if source is not None:
        load_weights(trainer.model, source)
    scoring.phase = "evaluate"
    _measure(recipe, point, trainer, pairs, data, source, target, report, rewrite)


def _with_adapter(recipe: "Recipe", source: Path | None) -> "Recipe":
    """The recipe with the rank and scale of the adapter in `source`: a soup has its own."""
    config = None if source is None else source / "adapter_config.json"
    if config is None or recipe.lora is None or not config.exists():
        return recipe
    saved = read_json(config)
    lora = recipe.lora.model_copy(update={"r": saved["r"], "alpha": saved["lora_alpha"]})
    return recipe.model_copy(update={"lora": lora})


def _rewritten(
    trainer: MultiObjectiveTrainer, data: PreferenceData, plain: TokenizedPairs, rewrite: Rewrite
) -> TokenizedPairs:
    """The pairs with other prompts, and the reference's log-probabilities under their own."""
    kept = {
        name: [
            {**row, "prompt": rewrite(row["prompt"])} for row in data.pairs[name].select(index.row)
        ]
        for name, index in plain.pairs.items()
    }
    pairs = tokenize_pairs(kept, trainer.processing_class)  # in the same order
    if len(pairs.sequences) != len(plain.sequences):
        raise InputError("Prompts with scores make two test pairs the same: remove one of them.")
    pairs.reference = plain.reference
    return pairs


def wait_for_all() -> None:
    """Let no process go on before all have come here."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def free_memory() -> None:
    """Give back what the last model and trainer held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@dataclass
class _Scoring:
    """Turns the share of a data set that is scored into the share of a phase."""

    report: Report
    share: tuple[float, float]
    phase: Phase = "prepare"

    def __call__(self, done: float) -> None:
        start, end = self.share
        self.report(self.phase, start + (end - start) * done)


class StepReport(TrainerCallback):
    """Reports the share of the training steps that is done."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._report("train", state.global_step / max(state.max_steps, 1))


def _save(
    trainer: MultiObjectiveTrainer, folder: Path, more: Mapping[str, Any], peak_memory: int
) -> None:
    """Keep the trained weights and the log; ``training.json``, written last, says it is all there.

    Several processes hold the same weights: one writes.
    """
    if main_process():
        save_weights(trainer.model, trainer.processing_class, folder)
        history = trainer.state.log_history
        write_text(folder / "log.jsonl", "".join(json.dumps(row) + "\n" for row in history))
        summary = _summary(history, trainer.state.global_step, peak_memory)
        write_json(folder / "training.json", {**summary, **more})
    wait_for_all()


def save_weights(model: Any, tokenizer: Any, folder: Path) -> None:
    """Keep the adapter or, of a model without one, all weights and the tokenizer."""
    partial = folder / "weights.partial"
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    if not hasattr(model, "peft_config"):
        tokenizer.save_pretrained(partial)
    (partial / "README.md").unlink(missing_ok=True)  # PEFT's empty form
    config = partial / "adapter_config.json"
    if config.exists():  # PEFT writes sets in an order that differs from process to process
        write_json(config, _ordered(read_json(config)))
    for file in sorted(partial.iterdir()):
        sync(file)
        move(file, folder / file.name)
    partial.rmdir()


def _ordered(config: Mapping[str, Any]) -> dict[str, Any]:
    modules = config["target_modules"]
    return {**config, "target_modules": sorted(modules) if isinstance(modules, list) else modules}


def _summary(history: Sequence[Mapping[str, Any]], steps: int, peak_memory: int) -> dict[str, Any]:
    """What the training took, over all its sessions, from the trainer's log."""
    rows = [row for row in history if "time/step" in row]
    counts = [b["step"] - a["step"] for a, b in zip([{"step": 0}, *rows], rows, strict=False)]

    def total(key: str) -> float:
        return math.fsum(n * row.get(key, 0.0) for n, row in zip(counts, rows, strict=True))

    logged = max(sum(counts), 1)
    spend = Spend(
        policy_tokens=round(total("spend/policy_tokens")),
        passes=round(total("spend/passes")),
        seconds=total("time/step"),
        peak_memory_bytes=peak_memory,
    )
    return {
        "steps": steps,
        "seconds": spend.seconds,
        "spend": spend.to_json(),
        "vertex_share": total("clamp/vertex") / logged,
        "solver_share": total("time/solver_share") / logged,
    }


def _measure(
    recipe: "Recipe",
    point: PlannedPoint,
    trainer: MultiObjectiveTrainer,
    pairs: TokenizedPairs,
    data: PreferenceData,
    source: Path | None,
    target: Path,
    report: Report,
    rewrite: Rewrite | None = None,
) -> None:
    report("evaluate", 0.0)
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
    report("generate", 0.0)
    if main_process():
        asked = recipe.evaluation.generate
        answers = _answers(recipe, trainer, data, report, rewrite) if asked else []
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
            training=read_json(source / "training.json") if source is not None else {},
        )
        shutil.rmtree(target / "checkpoints", ignore_errors=True)
        write_json(target / "metrics.json", result.to_json())
    wait_for_all()
    report("generate", 1.0)


def _answers(
    recipe: "Recipe",
    trainer: MultiObjectiveTrainer,
    data: PreferenceData,
    report: Report,
    rewrite: Rewrite | None,
) -> list[Answer]:
    """Answers to the first distinct prompts of the split, each with its scores."""
    settings = recipe.evaluation
    distinct = {json.dumps(p): p for pairs in data.pairs.values() for p in pairs["prompt"]}
    prompts = list(distinct.values())[: settings.n_prompts]
    answers = generate_answers(
        trainer.model,
        trainer.processing_class,
        [rewrite(prompt) for prompt in prompts] if rewrite is not None else prompts,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=settings.seed,
        batch_size=settings.batch_size,
        progress=lambda done, total: report("generate", done / total),
    )
    responses = [answer.response for answer in answers]
    scores = {
        name: scorer.score(prompts, responses) for name, scorer in recipe_scorers(recipe).items()
    }
    return [
        Answer(
            prompt,
            answer.response,
            answer.finished,
            {name: values[row] for name, values in scores.items()},
        )
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
    ]
