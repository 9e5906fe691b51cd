"""What a steerable training costs beside one point's, and how soon a new preference answers.

    python benchmarks/steerable.py            # the embedded model, the demo's data
    python benchmarks/steerable.py --steps 3

Steps: the CPU time of this process, of both trainings in turn, on the same rows of the same data;
the conditioned adapter has M blocks of the rank of the point's adapter. Answers: from `/prefer` to
the first token, with one position of the gate visited before and with many.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from peft import LoraConfig

from paretune.data import demo, split_by_prompt
from paretune.models import EMBEDDED, load_model_and_tokenizer
from paretune.moo.calibration import Calibration
from paretune.moo.gates import Gate
from paretune.recipes import load_recipe
from paretune.results.front import FrontPoint
from paretune.results.gates import write_gates
from paretune.serving.chat import ChatModel, Conversation
from paretune.serving.choose import Candidate, Choices
from paretune.training import (
    ConditionedConfig,
    ConditionedTrainer,
    MultiObjectiveConfig,
    MultiObjectiveTrainer,
)

NAMES = ("concise", "informative")


def trainers(folder: str, steps: int) -> dict[str, Any]:
    """Both trainers, with the same settings and data."""
    data = split_by_prompt(demo.load(objectives=list(NAMES)), (0.6, 0.1, 0.3), 0)["train"].pairs
    settings: dict[str, Any] = {
        "output_dir": folder,
        "max_steps": steps,
        "per_device_train_batch_size": 4,
        "learning_rate": 4e-4,
        "loss": "simpo",  # which needs no reference to be scored before
        "max_length": 128,
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    lora = LoraConfig(r=8, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    made: dict[str, Any] = {}
    for title in ("PWG", "steerable"):
        model, tokenizer = load_model_and_tokenizer(EMBEDDED, "float32")
        named = {"processing_class": tokenizer, "peft_config": lora}
        if title == "PWG":
            args = MultiObjectiveConfig(**settings, preference={NAMES[0]: 0.5, NAMES[1]: 0.5})
            made[title] = MultiObjectiveTrainer(model, args, data, **named)
        else:
            made[title] = ConditionedTrainer(model, ConditionedConfig(**settings), data, **named)
    return made


def step_costs(steps: int) -> None:
    """CPU seconds of steps, taken in turn so that both see the same machine."""
    with tempfile.TemporaryDirectory() as folder:
        made = trainers(folder, steps)
        batches, optimizers = {}, {}
        for title, trainer in made.items():
            trainer.create_optimizer_and_scheduler(steps)
            optimizers[title] = trainer.optimizer
            batches[title] = list(trainer.get_train_dataloader())[: steps + 1]
        seconds: dict[str, list[float]] = {title: [] for title in made}
        tokens = dict.fromkeys(made, 0)
        for number in range(steps + 1):  # the first proves the gradients
            for title, trainer in made.items():
                start = time.process_time()
                trainer.training_step(trainer.model, batches[title][number])
                optimizers[title].step()
                optimizers[title].zero_grad()
                if number:
                    seconds[title].append(time.process_time() - start)
                    tokens[title] += int(batches[title][number]["attention_mask"].sum())
        for title, values in seconds.items():
            print(f"{title:<10} {statistics.median(values):.2f} s a step, {tokens[title]} tokens")
        pairs = zip(seconds["steerable"], seconds["PWG"], strict=True)
        print(f"steerable / PWG: {statistics.median(a / b for a, b in pairs):.3f}")


def first_token(positions: int) -> None:
    """Seconds from a new preference to the first words, of a gate that was put elsewhere before."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainers(folder, 1)["steerable"]
        dial = Path(folder) / "run" / "shared" / "dial"
        trainer.model.save_pretrained(dial)
        table = Calibration(np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([[0.8, 0.6], [0.6, 0.8]]))
        write_gates(dial, Gate(2), NAMES, table)
        recipe = load_recipe("demo", ["evaluation.max_new_tokens=1", "evaluation.temperature=0"])
        point = FrontPoint(preference={NAMES[0]: 0.5, NAMES[1]: 0.5}, metrics={}, chebyshev=0.0)
        candidates = (Candidate("point", point, dial),)
        choices = Choices(dial.parents[1], recipe, "conditioned", "test", candidates, dial)
        speaker = ChatModel(recipe)

        def ask(share: float) -> float:
            start = time.process_time()
            best = choices.choose(choices.preference({NAMES[0]: share, NAMES[1]: 1 - share})).best
            Conversation(system="You are helpful.").ask(speaker, best, "Why?", lambda text: None)
            return time.process_time() - start

        ask(0.5)  # loads the adapter
        few = [ask(share) for share in (0.1, 0.9) * 5]
        for share in np.linspace(0, 1, positions):
            candidate = choices.choose(choices.preference({NAMES[0]: share, NAMES[1]: 1 - share}))
            with speaker._speaking(replace(candidate.best)):
                pass
        many = [ask(share) for share in (0.1, 0.9) * 5]
        for count, values in ((2, few), (positions, many)):
            print(f"{count:>4} positions: {1000 * statistics.median(values):.0f} ms of CPU")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--positions", type=int, default=500)
    options = parser.parse_args()
    step_costs(options.steps)
    first_token(options.positions)


if __name__ == "__main__":
    main()
