"""What a step of data weighting by lookahead costs, beside plain training on the same sets.

    python benchmarks/lookahead.py --sets 2 5 10 --criteria 3 5 --repeats 5

A step has one row of each set and of each criterion, sequences of one length of random tokens, on
SmolLM2-135M (--small: a random Llama, hidden 256, four layers) with LoRA r=8 on all linear layers
and AdamW. Plain training is one forward and one
backward pass over the sets' rows and AdamW; `with criteria` is the same over the rows of sets and
criteria, as if they were all trained on. `x_every=1` is lookahead with a step of x in every step,
`default` the mean of its steps with as many to a step of x as it takes by itself, k. Times are CPU
seconds, medians over repeats that take the contenders in turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig

from paretune import DataWeightingConfig, DataWeightingTrainer
from paretune.logprobs import PackedPass
from paretune.models import EMBEDDED, embedded_folder, load_model_and_tokenizer

WORDS = ("the", "of", "and", "to", "in", "is", "you", "that", "it", "he", "was", "for", "on", "are")


def rows(count: int, length: int, generator: torch.Generator) -> list[dict[str, str]]:
    """Rows of about so many tokens, a third of them the prompt."""

    def words(number: int) -> str:
        picks = torch.randint(len(WORDS), (number,), generator=generator).tolist()
        return "".join(f" {WORDS[i]}" for i in picks)

    return [
        {"prompt": words(length // 3), "completion": words(length - length // 3)}
        for _ in range(count)
    ]


def small() -> tuple[Any, Any]:
    """A random Llama of four layers with the embedded model's tokenizer."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(embedded_folder())
    torch.manual_seed(0)
    shape = {"hidden_size": 256, "intermediate_size": 683, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4}
    config = LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=True, **shape, **heads)
    return LlamaForCausalLM(config), tokenizer


def make(
    sets: int, criteria: int, length: int, every: int | None, whole: bool
) -> DataWeightingTrainer:
    if whole:
        model, tokenizer = load_model_and_tokenizer(EMBEDDED, dtype="float32")
    else:
        model, tokenizer = small()
    generator = torch.Generator().manual_seed(0)
    args = DataWeightingConfig(
        output_dir=tempfile.mkdtemp(),
        preference={f"c{s}": 1 / criteria for s in range(criteria)},
        per_device_train_batch_size=1,
        max_length=4 * length,
        x_every=every,
        learning_rate=1e-5,
        lr_scheduler_type="constant",
        max_steps=1000,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = DataWeightingTrainer(
        model,
        args,
        {f"s{n}": rows(4, length, generator) for n in range(sets)},
        {f"c{s}": rows(4, length, generator) for s in range(criteria)},
        processing_class=tokenizer,
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"),
    )
    trainer.create_optimizer()
    return trainer


def lookahead(trainer: DataWeightingTrainer, batch: Any, steps: int) -> None:
    """So many steps as the trainer takes them, without logs and callbacks."""
    for step in range(steps):
        trainer.state.global_step = step
        trainer.steps.begin()
        trainer.steps.add(batch)
        trainer.steps.finish()
        trainer.optimizer.step()
        trainer.steps.moved()
        trainer.model.zero_grad()
    trainer._step_logs.clear()


def plain(trainer: DataWeightingTrainer, batch: Any, sets: int) -> None:
    """One step on the mean loss of the first so many parts, by autograd; packed, as lookahead."""
    names = list(batch["pairs"])[:sets]
    used = torch.cat([batch["pairs"][name]["chosen"] for name in names]).unique()
    packed = batch["packed"].select(used.tolist())
    run = PackedPass(trainer.model, packed)
    lengths = batch["lengths"][used]
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    found = run.gradients(-(run.logps / lengths).mean(), parameters, False)
    for parameter, gradient in zip(parameters, found, strict=True):
        parameter.grad = gradient
    trainer.optimizer.step()
    trainer.model.zero_grad()


def measure(sets: int, criteria: int, args: argparse.Namespace) -> dict[str, float]:
    once, usual = (make(sets, criteria, args.length, every, not args.small) for every in (1, None))
    every = usual.x_every
    batch = once._prepare_inputs(next(iter(once.get_train_dataloader())))
    contenders: dict[str, tuple[Callable[[], None], int]] = {
        "plain": (lambda: plain(once, batch, sets), 1),
        "with criteria": (lambda: plain(once, batch, sets + criteria), 1),
        "x_every=1": (lambda: lookahead(once, batch, 1), 1),
        "default": (lambda: lookahead(usual, batch, every), every),
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(args.repeats + 1):
        for name, (run, steps) in contenders.items():
            started = time.process_time()
            run()
            if repeat:  # the first proves what is exact, and warms up
                times[name].append((time.process_time() - started) / steps)
    return {"k": every} | {name: statistics.median(found) for name, found in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sets", type=int, nargs="+", default=[2, 5, 10])
    parser.add_argument("--criteria", type=int, nargs="+", default=[3, 5])
    parser.add_argument("--length", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="a random Llama of four layers")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| N | S | k | plain step, s | with criteria | x_every=1 | default |\n"
        "|---|---|---|---|---|---|---|"
    )
    for sets in args.sets:
        for criteria in args.criteria:
            found = measure(sets, criteria, args)
            base = found["plain"]
            others = " | ".join(f"{found[n] / base:.2f} ×" for n in list(found)[2:])
            print(f"| {sets} | {criteria} | {found['k']} | {base:.3f} | {others} |", flush=True)
            print(json.dumps({"sets": sets, "criteria": criteria, **found}), flush=True)


if __name__ == "__main__":
    main()
