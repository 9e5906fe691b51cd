"""What is around the steps: scoring, answers, conversations and tokens, each beside the plain way.

    python benchmarks/units.py scoring answers chat
    python benchmarks/units.py tokens --data pairs.jsonl --pairs 100000
    python benchmarks/units.py minimize

``scoring`` is log-probabilities of the demo's test split, where four answers share each prompt, of
one answer a prompt of it, and of random tokens (prompt 100, four answers of 100); packed, and
padded with torch's own products. ``answers`` are those to the demo's test prompts, of the base
model or of the points of a ``--run`` of the demo, ``--batch`` at a time: what all prompts begin
with read once, finished answers making room for the next, and the nucleus found among the likeliest
tokens; and, plainly, prompts read whole, all of a batch kept to the end of the last, the vocabulary
sorted (which matters where ``--temperature`` is above 0), and torch's own products; of points also
all in one batch, ``--batch`` rows of each, beside one point after the other. ``chat`` is a
conversation of four turns, its beginning kept and read again. These are CPU seconds of one thread
on the embedded model, medians of repeats that take both in turn; what both give is compared.
``tokens`` is that many pairs of each of two objectives, of dialogues that a local file gives over
and over with another first word, tokenised and kept for the first point, and read for five more:
seconds of the clock. ``minimize`` is two objectives of three variables: CPU microseconds of an
evaluation, the least of the repeats, in all and without the objectives and their gradients, which
torch takes alone. ``products`` is products with weights of 1,536 x 576, through oneDNN where that
is faster and torch's own, forward and backward, and what is kept of shapes.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

Ways = dict[str, Callable[[], Any]]


def load() -> tuple[Any, Any]:
    from paretune.models import EMBEDDED, load_model_and_tokenizer

    return load_model_and_tokenizer(EMBEDDED, dtype="float32")


def demo_pairs(count: int) -> tuple[list[Any], dict[str, Any]]:
    """The first prompts of the demo's test split, and the pairs on them."""
    from paretune.data import demo, split_by_prompt

    data = demo.load(objectives=["concise", "informative"])
    pairs = split_by_prompt(data, (0.6, 0.1, 0.3), 0)["test"].pairs
    prompts: list[Any] = []
    for rows in pairs.values():
        prompts += [row["prompt"] for row in rows if row["prompt"] not in prompts]
    kept = prompts[:count]
    some = {name: [row for row in rows if row["prompt"] in kept] for name, rows in pairs.items()}
    return kept, some


def compare(title: str, ways: Ways, repeats: int, agree: Callable[[Any, Any], str]) -> None:
    """Print CPU seconds of two ways, their quotient and whether they give the same."""
    given: dict[str, Any] = {}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            start = time.process_time()
            given[name] = way()
            seconds[name].append(time.process_time() - start)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    (first, new), (second, plain) = medians.items()
    quotients = [a / b for a, b in zip(seconds[first], seconds[second], strict=True)]
    print(
        f"| {title} | {first} {new:.2f} | {second} {plain:.2f} | {new / plain:.2f} "
        f"| {min(quotients):.2f} to {max(quotients):.2f} | {agree(*given.values())} |",
        flush=True,
    )


def scoring(args: argparse.Namespace) -> None:
    from paretune.data.tokenization import TokenSequence, tokenize_pairs
    from paretune.logprobs import Packing, score_sequences

    model, tokenizer = load()
    demo = list(tokenize_pairs(demo_pairs(args.prompts)[1], tokenizer, 128).sequences)
    alone = list({s.input_ids[: s.prompt_length]: s for s in demo}.values())
    draw = torch.Generator().manual_seed(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(100, 49_000, (count,), generator=draw).tolist())

    four = [
        TokenSequence(prompt + ids(100), 100)
        for prompt in [ids(100) for _ in range(args.prompts // 3)]
        for _ in range(4)
    ]
    cases = {"demo, four answers a prompt": demo, "demo, one answer a prompt": alone}
    for title, sequences in {**cases, "random, 100 + 4 x 100 tokens": four}.items():

        def way(mode: Any, sequences: Any = sequences) -> Callable[[], Any]:
            packing = Packing(model, mode)

            def score(some: Any) -> Any:
                return score_sequences(model, some, tokenizer.pad_token_id, 16, packing=packing)

            score(sequences[:2])  # a model's first scores prove that packing is exact
            return lambda: score(sequences)

        ways = {"packed": way("on"), "padded": _with_torch(way("off"))}
        compare(f"scoring: {title}", ways, args.repeats, _furthest)


def _with_torch(way: Callable[[], Any]) -> Callable[[], Any]:
    """With torch's own products, as it was before there were others."""
    from paretune.models import products

    def plain() -> Any:
        with patch.object(products, "products_are_slow", lambda: False):
            return way()

    return plain


def _furthest(one: Any, other: Any) -> str:
    return f"differ by {float(((one - other).abs() / (1 + other.abs())).max()):.0e}"


def _same(one: Any, other: Any) -> str:
    return f"{sum(a == b for a, b in zip(one, other, strict=True))} of {len(one)} the same"


def answers(args: argparse.Namespace) -> None:
    from peft import PeftModel

    from paretune.evaluation import decoding
    from paretune.evaluation.generation import generate, generate_answers

    model, tokenizer = load()
    prompts, _ = demo_pairs(args.prompts)
    points = {} if args.run is None else {p.name: p for p in sorted(args.run.glob("points/*"))}
    for number, folder in enumerate(points.values()):
        if number == 0:
            model = PeftModel.from_pretrained(model, folder, "0")
        else:
            model.load_adapter(folder, str(number))

    nucleus = decoding.nucleus

    def sorted_nucleus(probabilities: torch.Tensor, top_p: float) -> Any:
        decreasing, order = probabilities.sort(-1, descending=True)
        inside = decreasing.cumsum(-1) - decreasing < top_p
        kept = torch.zeros_like(probabilities).scatter(-1, order, decreasing * inside)
        return torch.arange(kept.shape[-1]).expand_as(kept), kept

    def way(plain: bool) -> list[str]:
        (decoding._keep_finished.add if plain else decoding._keep_finished.discard)(model)
        decoding.nucleus = sorted_nucleus if plain else nucleus
        settings: dict[str, Any] = {"max_new_tokens": 64, "batch_size": args.batch}
        settings |= {"temperature": args.temperature, "top_p": 0.9}
        make = partial(generate, model, tokenizer, prompts, **settings)
        return (_with_torch(make) if plain else make)()

    def one_by_one() -> list[str]:
        found = []
        for number in range(len(points)):
            model.set_adapter(str(number))
            found += way(False)
        return found

    def together() -> list[str]:
        asked = [prompt for _ in points for prompt in prompts]
        by = [str(number) for number in range(len(points)) for _ in prompts]
        settings: dict[str, Any] = {"max_new_tokens": 64, "batch_size": args.batch * len(points)}
        settings |= {"temperature": args.temperature, "top_p": 0.9, "adapters": by}
        return [answer.response for answer in generate_answers(model, tokenizer, asked, **settings)]

    if points:
        title = f"answers: {len(points)} points, prompts of all in one batch"
        shared: Ways = {"together": together, "one after the other": one_by_one}
        compare(title, shared, args.repeats, _same)
    ways: Ways = {"as it is": lambda: way(False), "plain": lambda: way(True)}
    for number, title in enumerate(points or ["the base model"]):
        if points:
            model.set_adapter(str(number))
        title = f"answers: {title}, {args.batch} at a time, temperature {args.temperature:g}"
        compare(title, ways, args.repeats, _same)


def chat(args: argparse.Namespace) -> None:
    from paretune.evaluation.decoding import KeptPrefix
    from paretune.evaluation.generation import generate_answers

    model, tokenizer = load()
    said = ("Tell me about the moon.", "And its tides?", "Why is that?", "Who found that out?")

    def way(keeps: bool) -> list[str]:
        messages: list[dict[str, str]] = []
        kept = KeptPrefix() if keeps else None
        for text in said:
            messages.append({"role": "user", "content": text})
            settings: dict[str, Any] = {"max_new_tokens": 64, "temperature": 0.0}
            found = generate_answers(model, tokenizer, [list(messages)], **settings, kept=kept)
            messages.append({"role": "assistant", "content": found[0].response})
        return [message["content"] for message in messages]

    ways: Ways = {"kept": lambda: way(True), "read again": lambda: way(False)}
    compare("chat: four turns", ways, args.repeats, _same)


def tokens(args: argparse.Namespace) -> None:
    from transformers import AutoTokenizer

    from paretune.data import safe_rlhf
    from paretune.data.token_cache import cached_pairs
    from paretune.models import embedded_folder

    if args.data is None:
        raise SystemExit("tokens needs --data: a file of pairs.")
    given = safe_rlhf.load(args.data, style="dialogue", bad_rows="skip").pairs
    pairs: dict[str, list[Any]] = {}
    for name, rows in given.items():
        listed, made = [dict(row) for row in rows], []
        while len(made) < args.pairs:
            number = len(made) // len(listed)
            for row in listed[: args.pairs - len(made)]:
                first, *rest = row["prompt"]
                opening = {**first, "content": f"{number} {first['content']}"}
                made.append({**row, "prompt": [opening, *rest]})
        pairs[name] = made
    tokenizer = AutoTokenizer.from_pretrained(embedded_folder())
    with tempfile.TemporaryDirectory() as folder:
        seconds = []
        for _ in range(6):
            start = time.perf_counter()
            cached_pairs(Path(folder), pairs, tokenizer, 1024)
            seconds.append(time.perf_counter() - start)
    print(
        f"| tokens: {args.pairs:,} pairs x {len(pairs)} objectives, six points | first "
        f"{seconds[0]:.1f} | others {json.dumps([round(s, 1) for s in seconds[1:]])} "
        f"| in all {sum(seconds):.1f} | | |",
        flush=True,
    )


def minimize(args: argparse.Namespace) -> None:
    from paretune.moo import Problem
    from paretune.moo import minimize as solve

    ends = torch.eye(3, dtype=torch.float64)[:2]
    problem = Problem(lambda z: ((z - ends) ** 2).sum(1))
    units = torch.eye(2, dtype=torch.float64).unbind()

    def alone(evaluations: int, gradients: int) -> None:
        for _ in range(evaluations):
            z = torch.zeros(3, dtype=torch.float64, requires_grad=True)
            values = problem.evaluate(z)
        for n in range(gradients):
            torch.autograd.grad(values, z, units[n % 2], retain_graph=True)

    def least(work: Callable[[], Any]) -> float:
        seconds = []
        for _ in range(10 * args.repeats):
            start = time.process_time()
            work()
            seconds.append(time.process_time() - start)
        return min(seconds)

    ways: dict[str, dict[str, Any]] = {
        "clamp": {"steps": 300, "tol": 0.0, "lr": 0.01},
        "wc_augmented": {},
    }
    for method, options in ways.items():
        run = partial(solve, problem, [0.7, 0.3], method, x0=[0.3, -0.2, 0.9], **options)
        found = run()
        count, gradients = found.n_function_evaluations, found.n_gradient_evaluations
        all_of_it = 1e6 * least(run) / count
        torch_alone = 1e6 * least(partial(alone, count, gradients)) / count
        print(
            f"| minimize: {method}, µs an evaluation | all {all_of_it:.0f} "
            f"| torch alone {torch_alone:.0f} | | | {all_of_it - torch_alone:.0f} beside it |",
            flush=True,
        )


def products(args: argparse.Namespace) -> None:
    from paretune.models.products import fast_products

    weights = [torch.randn(1536, 576) for _ in range(60)]  # more than a cache holds

    def both(rows: int) -> tuple[float, float]:
        """CPU seconds of products with all the weights, forward and backward."""
        x, signal = torch.randn(rows, 576).requires_grad_(), torch.randn(rows, 1536)
        start = time.process_time()
        made = [torch.nn.functional.linear(x, weight) for weight in weights]
        middle = time.process_time()
        for each in made:
            torch.autograd.grad(each, x, signal)
        return middle - start, time.process_time() - middle

    def fast(rows: int) -> tuple[float, float]:
        with fast_products():
            return both(rows)

    for rows in (8, 36, 100, 285, 800):
        work = 2e-9 * rows * 1536 * 576 * len(weights)
        speeds = []
        for way in (fast, both):
            taken = zip(*[way(rows) for _ in range(args.repeats + 1)][1:], strict=True)
            speeds.append([work / statistics.median(each) for each in taken])
        (new, back), (plain, plain_back) = speeds
        print(
            f"| products: {rows} tokens, 10^9 operations a second | forward {new:.0f} | torch "
            f"{plain:.0f} | {plain / new:.2f} | | backward {back:.0f}, torch {plain_back:.0f} |",
            flush=True,
        )
    del weights[3:]
    for title, way in {"torch": both, "oneDNN": fast}.items():
        before = _resident()
        for rows in range(200, 1400):
            way(rows)
        print(
            f"| products: MiB kept after 1,200 lengths, {title} | {_resident() - before} | | | | |"
        )


def _resident() -> int:
    """MiB that this process holds, without what malloc could give back; Linux only."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) // 1024


KINDS = {
    "products": products,
    "scoring": scoring,
    "answers": answers,
    "chat": chat,
    "tokens": tokens,
    "minimize": minimize,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kinds", nargs="+", choices=KINDS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=36, help="of the demo's test split")
    parser.add_argument("--temperature", type=float, default=0.0, help="of answers")
    parser.add_argument("--run", type=Path, help="of answers: those of a demo run's points")
    parser.add_argument("--batch", type=int, default=36, help="of answers, rows at a time")
    parser.add_argument("--data", help="of tokens: a local file as PKU-SafeRLHF's")
    parser.add_argument("--pairs", type=int, default=100_000, help="of tokens, an objective's")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| what | s | s | quotient | of repeats | results |\n|---|---|---|---:|---:|---|")
    for kind in args.kinds:
        KINDS[kind](args)


if __name__ == "__main__":
    main()
