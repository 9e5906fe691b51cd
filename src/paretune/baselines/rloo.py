"""MORLHF through TRL's RLOOTrainer: REINFORCE with a leave-one-out baseline, no value function."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from transformers import GenerationConfig
from transformers.trainer_callback import PrinterCallback
from trl import RLOOConfig, RLOOTrainer  # type: ignore[attr-defined]  # all are lazy

from paretune.baselines.context import Context
from paretune.baselines.reward import ScalarReward
from paretune.evaluation.generation import encode_prompt, end_token_ids
from paretune.experiment.resume import train_to_end
from paretune.experiment.setup import float32_adapter, lora_config, trl_arguments
from paretune.experiment.train_point import StepReport, save_weights
from paretune.files import write_jsonl
from paretune.models import gpu, load_model_and_tokenizer
from paretune.spend import Spend, Watch
from paretune.training.checks import check_weights

if TYPE_CHECKING:
    from paretune.baselines.morlhf import Morlhf


def train_rloo(
    context: Context,
    prompts: Sequence[Any],
    reward: ScalarReward,
    options: "Morlhf",
    folder: Path,
    needed: Sequence[str],
    identity: Mapping[str, Any],
) -> None:
    """Train one point; the folder gets what `paretune.baselines.morlhf.train` says.

    Args:
        identity: What checkpoints must share with this training beside model, prompts and options.
        needed: Keys of shared things the reward needed (see `Context.finish`).
    """
    model, tokenizer = load_model_and_tokenizer(**context.recipe.model.model_dump())
    check_weights(model)
    ends = end_token_ids(model, tokenizer, prompts)
    # Of its own settings for generation TRL would take what the arguments leave open.
    model.generation_config = GenerationConfig(
        eos_token_id=ends, pad_token_id=tokenizer.pad_token_id
    )
    account = _Account(reward, tokenizer, options, ends)
    rows = Dataset.from_dict({"prompt": list(prompts)})
    with float32_adapter(model):
        trainer = _Trainer(
            model,
            [account],
            args=_arguments(context, options, folder / "checkpoints"),
            train_dataset=rows,
            processing_class=tokenizer,
            peft_config=lora_config(context.recipe),  # drawn with the arguments' seed
            callbacks=[StepReport(context.report)],
        )
    trainer.remove_callback(PrinterCallback)
    train_to_end(trainer, account, rows, identity)
    account.add()
    save_weights(trainer.model, tokenizer, folder)
    write_jsonl(folder / "log.jsonl", trainer.state.log_history)
    context.finish(folder, trainer.state.global_step, account.spend, needed)


def _arguments(context: Context, options: "Morlhf", folder: Path) -> Any:
    groups = options.batch_size // options.mini_batch_size
    updates = options.epochs * groups  # from one batch of answers
    assert options.steps is not None  # the options see to it
    return RLOOConfig(
        output_dir=str(folder),
        seed=context.seed,
        max_steps=options.steps * updates,
        per_device_train_batch_size=options.mini_batch_size,
        steps_per_generation=groups,
        num_iterations=options.epochs,
        num_generations=2,
        max_completion_length=options.max_new_tokens,
        temperature=options.temperature,
        beta=options.kl_coefficient,
        epsilon=options.clip,
        learning_rate=options.learning_rate,
        lr_scheduler_type="constant",
        max_grad_norm=options.max_grad_norm,
        disable_dropout=True,
        use_cpu=gpu() is None,
        save_steps=options.save_steps * updates,
        logging_steps=updates,
        report_to="none",
        **{**trl_arguments(context.recipe), "bf16": gpu() is not None},
    )


class _Trainer(RLOOTrainer):
    """TRL's, with prompts as tokens the way every other method has them."""

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [encode_prompt(self.processing_class, prompt) for prompt in prompts], None, {}


class _Account:
    """The reward as TRL calls it, once a batch of answers, with what the trainer spends on it."""

    def __init__(
        self, reward: ScalarReward, tokenizer: Any, options: "Morlhf", ends: Sequence[int]
    ) -> None:
        self.__name__ = "scalarised"  # TRL logs rewards by name
        self._reward, self._tokenizer, self._options = reward, tokenizer, options
        self._ends = frozenset(ends)
        self.spend, self._watch = Spend(), Watch()

    def __call__(
        self,
        prompts: list[Any],
        completions: list[Any],
        completion_ids: list[list[int]],
        log_metric: Callable[[str, float], None],
        **_: Any,
    ) -> list[float | None]:
        texts = [each if isinstance(each, str) else each[0]["content"] for each in completions]
        rewards, entry = self._reward(prompts, texts)
        for name, value in entry.items():
            log_metric(name, value)
        self._count(prompts, completion_ids, int(entry["reward_tokens"]))
        penalty = self._options.missing_eos_penalty
        return [
            reward - penalty * (self._ends.isdisjoint(ids) or not text.strip())
            for reward, text, ids in zip(rewards, texts, completion_ids, strict=True)
        ]

    def _count(self, prompts: list[Any], answers: list[list[int]], reward_tokens: int) -> None:
        generated = sum(map(len, answers))
        read = generated + sum(len(encode_prompt(self._tokenizer, prompt)) for prompt in prompts)
        epochs, groups = self._options.epochs, len(answers) // self._options.mini_batch_size
        self.add(
            policy_tokens=epochs * read,
            reference_tokens=2 * read,
            generated_tokens=generated,
            reward_tokens=reward_tokens,
            passes=max(map(len, answers)) + 2 * groups * (1 + epochs),
        )

    def add(self, **counts: int) -> None:
        """Count what was spent, and the time since the last count."""
        self.spend += self._watch.spend(**counts)
        self._watch = Watch()

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints."""
        return {"spend": self.spend.to_json()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on counting from a checkpoint."""
        self.spend = Spend.from_json(state["spend"])
