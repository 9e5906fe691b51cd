"""Make the demo preferences: sample answers from the embedded model and score each one.

    python scripts/make_demo_preferences.py            # rewrites the shipped file, about 10 minutes
    python scripts/make_demo_preferences.py --output answers.jsonl --seed 1

Same seed, same machine type, same package versions: same file. See docs/results/demo-data.md.
"""

import argparse
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from paretune.data.demo import DEMO_FILE, SCORERS, as_messages
from paretune.evaluation.generation import generate_answers
from paretune.models import EMBEDDED, load_model_and_tokenizer
from paretune.results.answers import Answer

ANSWERS_PER_PROMPT = 6
MAX_NEW_TOKENS = 48
TEMPERATURE = 0.6  # at 0.8 and top-p 0.95 a good part of the answers was nonsense
TOP_P = 0.9
KEPT_PER_PROMPT = 4
# Mark-up, lists, talk about the answer in place of one ('The answer is "...'), one unfit word.
UNWANTED = re.compile(r"[*_#`<\n]|1\.|\b(answers?|here's a|rephrased|anus)\b", re.IGNORECASE)

PROMPTS = """
How do I cook rice so that it does not stick?
What can I make for dinner with eggs and spinach?
How do I keep fresh herbs from wilting?
What is the difference between baking soda and baking powder?
How can I make a plain tomato soup taste better?
What is a good snack to take on a long hike?
How do I ripen an avocado faster?
Why does bread dough need to rest?
What should I eat for breakfast before a run?
How do I make a good cup of tea?
What can I do with stale bread?
How long should I boil an egg?
What spices go well with roasted carrots?
How do I pick a ripe melon at the market?
How can I pack lighter for a weekend trip?
What should I check before a long car ride?
How do I sleep better on an overnight train?
What is a good souvenir to bring home from the seaside?
How do I find my way in a city without a phone?
How can I learn a few words of a language before a trip?
What makes a campsite a good campsite?
How do I keep children busy on a long flight?
Why do airplanes leave white trails in the sky?
What should I wear for a walk in the rain?
How can I save money when I travel by train?
What is the best time of day to visit a museum?
How do I get over jet lag?
How do I remember new vocabulary?
What is a good way to take notes in class?
How can I stop putting off my homework?
How do I prepare for an oral exam?
What is the best way to read a difficult textbook?
How can I explain fractions to a child?
How do I write a good opening sentence for an essay?
How do I stay awake while studying in the afternoon?
What makes a study group work well?
How can I practise public speaking alone?
How do I choose a topic for a school project?
How do I learn to type faster?
What is a good way to learn the names of the planets?
How do I check my own writing for mistakes?
How do I remove a coffee stain from a shirt?
How can I make a small room look bigger?
How do I keep houseplants alive while I am away?
What is a quick way to tidy a kitchen?
How do I stop a door from squeaking?
How can I keep my shoes from smelling?
How do I hang a picture straight?
What is the best way to fold a fitted sheet?
How do I clean a window without streaks?
How can I use less water at home?
What should I keep in a toolbox?
How do I sharpen a dull kitchen knife?
How can I make a cold bedroom warmer?
How do I organise a messy drawer?
How do I keep moths away from my sweaters?
How do I write a polite reminder email?
What should I say at the start of a job interview?
How can I make meetings shorter?
How do I ask my boss for a day off?
How do I stay focused in a noisy office?
What is a good way to plan the week?
How do I thank a colleague who helped me?
How can I say no to extra work politely?
How do I welcome a new member to the team?
What makes a presentation easy to follow?
How do I give useful feedback on a draft?
How can I keep my inbox under control?
How do I set a goal that I will actually reach?
How can I drink more water during the day?
What is a simple stretch for a stiff neck?
How do I get used to waking up early?
How do I start running when I have never run before?
What helps me to fall asleep at night?
How can I sit better at my desk?
How do I make walking a daily habit?
What is an easy exercise to do at home?
How can I spend less time on my phone?
How do I calm down before a big event?
How do I warm up before playing football?
What is a good hobby for rainy days?
Why do leaves change colour in autumn?
How do bees make honey?
Why is the sea salty?
How do birds find their way south?
What is the difference between a frog and a toad?
Why do cats purr?
How does a spider make its web?
What do earthworms do for the soil?
How do I attract butterflies to my garden?
Why does the moon change its shape?
How do trees drink water?
What causes thunder?
How can I tell how old a tree is?
What do bears do in winter?
How do I grow tomatoes on a balcony?
How does a rainbow form?
What is a volcano?
How does a bicycle stay upright?
Why do we have leap years?
How does a refrigerator keep food cold?
What is the internet, in simple words?
How does a compass work?
Why does ice float on water?
How does soap clean our hands?
What is a budget and why do people make one?
How do magnets work?
Why do we yawn?
How does a library decide which books to buy?
What is the difference between weather and climate?
How do I choose a good birthday present?
How can I make friends in a new town?
How do I teach a dog to sit?
What makes a story exciting?
How do I start learning the guitar?
How do I take a better photo of a sunset?
How can I be a better listener?
How do I plan a small party at home?
What is a fun game for two people with only paper?
How do I choose a good book to read next?
""".strip().splitlines()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=DEMO_FILE)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    model, tokenizer = load_model_and_tokenizer(EMBEDDED, dtype="float32")
    prompts = [prompt for prompt in PROMPTS for _ in range(ANSWERS_PER_PROMPT)]
    answers = generate_answers(
        model,
        tokenizer,
        [as_messages(prompt) for prompt in prompts],
        max_new_tokens=MAX_NEW_TOKENS,
        temperature=TEMPERATURE,
        top_p=TOP_P,
        seed=options.seed,
        batch_size=60,
        progress=lambda done, total: print(f"\r{done}/{total} answers", end="", flush=True),
    )
    print()
    rows = select(zip(prompts, answers, strict=True))
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    options.output.write_text("".join(lines), encoding="utf-8")
    print(f"{len(rows)} answers to {len(PROMPTS)} prompts in {options.output}")


def select(answers: Iterable[tuple[str, Answer]]) -> list[dict[str, Any]]:
    """Keep the first fit answers to each prompt, cut back to whole sentences, with their scores."""
    kept: dict[str, dict[str, dict[str, Any]]] = {prompt: {} for prompt in PROMPTS}
    for prompt, answer in answers:
        text = answer.response.strip()
        if not answer.finished:
            text = whole_sentences(text)
        if fit(text) and len(kept[prompt]) < KEPT_PER_PROMPT:
            scores = {name: round(score(prompt, text), 4) for name, score in SCORERS.items()}
            row = {"prompt": prompt, "response": text, "finished": answer.finished, **scores}
            kept[prompt].setdefault(text, row)
    return [row for rows in kept.values() for row in rows.values()]


def whole_sentences(text: str) -> str:
    """The text up to its last sentence end; empty if there is none."""
    ends = [match.end() for match in re.finditer(r"[.!?][\"')]?(?=\s)", text + " ")]
    return text[: ends[-1]] if ends else ""


def fit(text: str) -> bool:
    """One paragraph of at least four words that ends like a sentence, without unwanted parts."""
    whole = text[-1:] in (".", "!", "?", '"', "'", ")") and text.count('"') % 2 == 0
    return whole and len(text.split()) >= 4 and not UNWANTED.search(text)


if __name__ == "__main__":
    main()
